"""Ports to listen on: what is free is found out before a server takes it, for some share a port without a word."""

import asyncio
import itertools
import os
import socket

from runtime.contract.errors import StartError


class PortTaken(StartError):
    """Somebody else listens where this process should."""


def free_port(host: str, port: int, setting: str, *, shared: bool = False) -> int:
    """The port to listen on; 0 becomes a free one.

    Args:
        setting: the environment variable that chooses another.
        shared: with others who share it too, as replicas on one machine (SO_REUSEPORT).

    Raises:
        PortTaken: somebody listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {host}:{port} ({error.strerror}): stop who does, or choose another port with {setting}"
            ) from error
        found: int = probe.getsockname()[1]
        return found


_LOWEST, _HIGHEST = 12_000, 32_000
"""Below what systems give to outgoing connections: so what is free stays free for a while."""
_given = itertools.count(os.getpid() * 7919)
"""A process does not give the same port soon again, and processes that are started together begin far from each other."""


def any_free_port() -> int:
    """A free port of this machine."""
    while True:
        port = _LOWEST + next(_given) % (_HIGHEST - _LOWEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


async def until_listening(host: str, port: int, server: "asyncio.Task[None]") -> None:
    """Waits until a server that was just started takes connections. Raises what ended it, if it has ended.

    Raises:
        StartError: it ended without a reason.
    """
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # not a place to listen at: one to ask
    while True:
        if server.done():
            server.result()
            raise StartError("the HTTP server ended at its start")
        with socket.socket(socket.AF_INET6 if ":" in local else socket.AF_INET) as probe:
            probe.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(probe, (local, port))
            except OSError:
                await asyncio.sleep(0.005)
            else:
                return
