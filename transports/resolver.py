"""Looking up host names without blocking the event loop or the end of the process."""

import asyncio
import ipaddress
import socket
import threading

_CONCURRENT_LOOKUPS = 3
"""Concurrent lookups of one name, at most: a slow server does not become faster by being asked again."""


class Resolver:
    """Looks up host names, each lookup in its own thread.

    The system's resolver blocks, for many seconds if no server answers. A thread of the event loop's own pool would delay the
    end of the process for as long.
    """

    def __init__(self) -> None:
        self._lookups: dict[str, set[asyncio.Future[list[str]]]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """Return the IP addresses of a host, in the system's order. An IP address is returned as it is.

        Raises:
            OSError: if the name has no address.
            UnicodeError: if the name is not a valid host name.
        """
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        lookups = self._lookups.setdefault(host, set())
        if len(lookups) < _CONCURRENT_LOOKUPS:
            lookup = _look_up(host, port)
            lookups.add(lookup)
            lookup.add_done_callback(lookups.discard)
        done, _ = await asyncio.wait(lookups, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()


def _look_up(host: str, port: int) -> "asyncio.Future[list[str]]":
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def deliver(ips: list[str], error: Exception | None) -> None:
        if error is None:
            found.set_result(ips)
        else:
            found.set_exception(error)
            found.exception()  # the caller may have given up

    def look_up() -> None:
        ips: list[str] = []
        failure: Exception | None = None
        try:
            ips = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            failure = error
        try:
            loop.call_soon_threadsafe(deliver, ips, failure)
        except RuntimeError:  # the loop has ended meanwhile
            return

    threading.Thread(target=look_up, name=f"looking up {host}", daemon=True).start()
    return found
