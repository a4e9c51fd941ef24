"""The gateway's sockets: connections to clients that have vanished end."""

import os
import socket
import stat
import sys
from contextlib import suppress

import pytest

from tests.gateway.environment import GatewayEnvironment


def accepted(peer: tuple[str, int]) -> socket.socket:
    """Return a duplicate of the socket of this process at the other end of a connection."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            duplicate = os.dup(int(name))
        except OSError:  # closed meanwhile
            continue
        candidate = socket.socket(fileno=duplicate)
        with suppress(OSError):  # it has no peer
            if candidate.getpeername() == peer:
                return candidate
        candidate.close()
    raise AssertionError(f"no socket is connected to {peer}")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has TCP_USER_TIMEOUT, and /proc")
async def test_the_system_ends_connections_of_clients_that_have_vanished() -> None:
    """Every accepted connection has the options, whatever it carries: a request, a stream, or nothing yet."""
    async with GatewayEnvironment("one-node-zero-copy") as env:
        with socket.create_connection(("127.0.0.1", env.gateway.port)) as client:
            await env.client.get("/healthz")  # the server has accepted both connections
            with accepted(client.getsockname()) as served:
                assert served.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
                assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
