"""Addresses and ports to listen on. A port is probed before a server binds it, because some servers share a port silently."""

import asyncio
import errno
import ipaddress
import itertools
import os
import socket
from contextlib import suppress

from runtime.contract.errors import StartError

_LONGEST_IDLE = 32767
"""The largest number of seconds that operating systems accept."""


class PortTaken(StartError):
    """Another process listens on the port that this process needs."""


def listen_address(host: str, setting: str) -> str:
    """Return the IP address of a host to listen on: an address, with or without brackets, or a name, such as `localhost`.

    If a name has addresses of both kinds, this is one of IPv4: clients try both.

    Args:
        setting: the environment variable that chooses the host, named in the error.

    Raises:
        StartError: if the name has no address.
    """
    try:
        return str(ipaddress.ip_address(without_brackets(host)))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise StartError(
            f"{setting}: {host!r} has no address: expected an address of this machine, such as 127.0.0.1, ::1, or 0.0.0.0, or a name that has one"
        )
    return str(min(found, key=lambda info: info[0] != socket.AF_INET)[4][0])


def without_brackets(host: str) -> str:
    """Return a host as it is outside of a URL: `::1` for `[::1]`."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def free_port(host: str, port: int, setting: str, *, shared: bool = False) -> int:
    """Return the port to listen on, with 0 replaced by a free port.

    Args:
        setting: the environment variable that chooses another port, named in the error.
        shared: whether other processes may share the port, like replicas on one machine (SO_REUSEPORT).

    Raises:
        PortTaken: if another process listens on the port.
        StartError: if the host has no address, or not one of this machine.
    """
    host = listen_address(host, setting.replace("__PORT", "__HOST"))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            where = f"cannot listen on {f'[{host}]' if ':' in host else host}:{port} ({error.strerror})"
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                chosen_by = setting.replace("__PORT", "__HOST")
                raise StartError(f"{where}: choose an address of this machine with {chosen_by}") from error
            raise PortTaken(f"{where}: stop the process that does, or choose another port with {setting}") from error
        found: int = probe.getsockname()[1]
        return found


_LOWEST, _HIGHEST = 12_000, 32_000
"""Below the range that systems use for outgoing connections, so that a free port stays free for a while."""
_given = itertools.count(os.getpid() * 7919)
"""Keeps a process from returning the same port again soon, and processes that start together from returning the same ports."""


def any_free_port() -> int:
    """Return a free port of this machine."""
    while True:
        port = _LOWEST + next(_given) % (_HIGHEST - _LOWEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


async def until_listening(host: str, port: int, server: "asyncio.Task[None]") -> None:
    """Wait until a server that was just started accepts connections. If it has ended with an error, raise that error.

    Args:
        server: the task that runs the server.

    Raises:
        StartError: if the server ended without an error.
    """
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # an address to connect to, not to listen on
    while True:
        if server.done():
            server.result()
            raise StartError("the HTTP server ended at its start")
        if await is_listening(local, port):
            return
        await asyncio.sleep(0.005)


async def is_listening(host: str, port: int) -> bool:
    """Return whether a server accepts connections on a port of an address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(probe, (host, port))
        except OSError:
            return False
    return True


def detect_cut_connection(sock: socket.socket, seconds: float) -> None:
    """Have the operating system end a connection whose peer acknowledges neither data nor probes for a while (RFC 5482).

    On Linux, the connections that a listening socket accepts inherit its options.

    Without this, a network that is cut goes unnoticed. The system of a stopped process still acknowledges, until its buffers are
    full. Where the operating system lacks the option, only the traffic on the connection itself reveals the cut, later.

    Args:
        seconds: how long the peer may stay silent.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # the connection has ended already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, min(max(round(seconds / 2), 1), _LONGEST_IDLE))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(round(seconds * 1000), 1))
