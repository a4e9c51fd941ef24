"""The open-loop load generator."""

import asyncio
import time
from typing import cast

import pytest

from runtime.testing import eventually
from tests.bench.latency import Latencies, open_loop


class _Server(asyncio.Protocol):
    """Answers every request, and blocks the event loop at the first one."""

    status = b"200 OK"
    stall = 0.0
    open_connections = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _Server.open_connections += 1
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        _Server.open_connections -= 1

    def data_received(self, data: bytes) -> None:
        time.sleep(_Server.stall)
        _Server.stall = 0.0
        self.transport.write(b"HTTP/1.1 " + _Server.status + b'\r\ncontent-length: 7\r\n\r\n{"s":2}')


async def _measure(rate: float, seconds: float) -> Latencies:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        try:
            return await asyncio.to_thread(open_loop, url, "token", rate, seconds)
        finally:
            await eventually(lambda: _Server.open_connections == 0, "all connections are closed")


async def test_requests_that_were_due_during_a_pause_count_as_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed loop would see one slow request. All that were due in the 200 ms of the pause are slow."""
    monkeypatch.setattr(_Server, "stall", 0.2)
    found = await _measure(200, 0.3)
    assert len(found.seconds) == 60
    assert sum(latency > 0.05 for latency in found.seconds) >= 25
    assert found.seconds[-1] >= 0.19
    assert found.cpu > 0


async def test_another_status_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Server, "status", b"503 Service Unavailable")
    with pytest.raises(AssertionError, match="503"):
        await _measure(100, 0.1)


def test_a_quantile_is_the_latency_that_so_many_did_not_exceed() -> None:
    found = Latencies(tuple(float(number) for number in range(1000)), 0.1)
    assert (found.quantile(0.5), found.quantile(0.99), found.quantile(0.999)) == (500.0, 990.0, 999.0)
