"""What it takes to reach somebody: the addresses of names, and the certificates to trust."""

import asyncio
import ipaddress
import socket
import ssl
import threading

from runtime import StartError


async def addresses(host: str, port: int) -> list[str]:
    """The IP addresses of a host, in the system's order; an address stands for itself.

    The system's resolver blocks, for many seconds where no name server answers. In a thread of the event loop's own pool
    it would hold up the end of the process.

    Raises:
        OSError: the name has no address.
        UnicodeError: it can have none.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def deliver(ips: list[str], error: OSError | UnicodeError | None) -> None:
        if found.done():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(ips)

    def look() -> None:
        ips: list[str] = []
        failed: OSError | UnicodeError | None = None
        try:
            ips = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            failed = error
        try:
            loop.call_soon_threadsafe(deliver, ips, failed)
        except RuntimeError:  # the loop has ended meanwhile
            return

    threading.Thread(target=look, name=f"looking up {host}", daemon=True).start()
    return await found


def trusted(ca_file: str | None, setting: str) -> ssl.SSLContext:
    """How others' certificates are verified: by those in a file, or without one by the system's.

    Raises:
        StartError: the file cannot be used; it was named by `setting`.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise StartError(f"{setting}: {ca_file} cannot be used: {error.strerror or error}") from error
