"""Socket options and TLS settings that the transports share."""

import socket
import ssl
from contextlib import suppress

from runtime import StartError

_LONGEST_IDLE = 32767
"""The largest number of seconds that operating systems accept."""


def detect_cut_connection(sock: socket.socket, seconds: float) -> None:
    """Have the operating system end a connection whose peer acknowledges neither data nor probes for a while (RFC 5482).

    Without this, a network that is cut goes unnoticed. The system of a stopped process still acknowledges, until its buffers are
    full. Where the operating system lacks the option, only the traffic on the connection itself reveals the cut, later.

    Args:
        seconds: How long the peer may stay silent.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # the connection has ended already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, min(max(round(seconds / 2), 1), _LONGEST_IDLE))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(round(seconds * 1000), 1))


def tls_context(ca_file: str | None, setting: str) -> ssl.SSLContext:
    """Return a context that verifies peers by the certificates in a file, or by the system's without one.

    Args:
        setting: The name of the setting that the file comes from.

    Raises:
        StartError: if the file cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise StartError(f"{setting}: {ca_file} cannot be used: {error.strerror or error}") from error
