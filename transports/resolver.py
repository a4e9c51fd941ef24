"""What it takes to reach somebody: the addresses of names, the certificates to trust, and to be told when the network is cut."""

import asyncio
import ipaddress
import socket
import ssl
import threading
from contextlib import suppress

from runtime import StartError

_LONGEST_IDLE = 32767
"""Seconds: systems take no more."""
_AT_ONCE = 3
"""Lookups of one name that are under way at most: a server that is slow is not made quicker by asking it again."""


class Resolver:
    """Looks up host names. The system's resolver blocks, for many seconds where no server answers, so each lookup has a
    thread; one of the event loop's own pool would hold up the end of the process.
    """

    def __init__(self) -> None:
        self._looking: dict[str, set[asyncio.Future[list[str]]]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """The IP addresses of a host, in the system's order; an address stands for itself.

        Raises:
            OSError: the name has no address.
            UnicodeError: it can have none.
        """
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        looking = self._looking.setdefault(host, set())
        if len(looking) < _AT_ONCE:
            found = _look_up(host, port)
            looking.add(found)
            found.add_done_callback(looking.discard)
        done, _ = await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()


def _look_up(host: str, port: int) -> "asyncio.Future[list[str]]":
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def deliver(ips: list[str], error: Exception | None) -> None:
        if error is None:
            found.set_result(ips)
        else:
            found.set_exception(error)
            found.exception()  # whoever asked may have given up

    def look() -> None:
        ips: list[str] = []
        failed: Exception | None = None
        try:
            ips = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            failed = error
        try:
            loop.call_soon_threadsafe(deliver, ips, failed)
        except RuntimeError:  # the loop has ended meanwhile
            return

    threading.Thread(target=look, name=f"looking up {host}", daemon=True).start()
    return found


def detect_cut_connection(sock: socket.socket, seconds: float) -> None:
    """Has the system end a connection whose other end has not taken what was sent, or a probe, for so long (RFC 5482).

    A network that was cut says nothing. A process that is stopped has its system answer for it, until its buffers are full.
    Where the system cannot do it, what is sent on the connection itself finds out later.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # it has ended already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, min(max(round(seconds / 2), 1), _LONGEST_IDLE))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(round(seconds * 1000), 1))


def trusted(ca_file: str | None, setting: str) -> ssl.SSLContext:
    """How others' certificates are verified: by those in a file, or without one by the system's.

    Raises:
        StartError: the file cannot be used; it was named by `setting`.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise StartError(f"{setting}: {ca_file} cannot be used: {error.strerror or error}") from error
