"""Answers that come before the body was read: the client sees them, and the rest of the body is dropped within limits."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway import unread
from gateway.unread import Unread
from runtime.testing import eventually
from tests.gateway.environment import GatewayEnvironment

PARTS = 80


async def large() -> AsyncGenerator[bytes, None]:
    for _ in range(PARTS):
        yield bytes(65536)


async def test_a_client_that_is_still_sending_sees_the_answer() -> None:
    """Otherwise it sees a connection error in most tries: 401, 404, 405, 413, 429, 503, and what the pages answer."""
    async with GatewayEnvironment("one-node-zero-copy", rate=0.001, burst=6) as env:
        for method, path, headers, status in (
            ("POST", "/behave/x", {"Authorization": "Bearer é"}, 401),
            ("POST", "/nowhere", {}, 404),
            ("DELETE", "/put", {}, 405),
            ("PUT", "/put", {}, 413),
            ("PUT", "/put", {"Content-Length": str(PARTS * 65536)}, 413),
            ("PUT", "/put", {"Idempotency-Key": "two"}, 413),
            ("PUT", "/put", {}, 429),
            ("POST", "/healthz", {}, 405),
            ("PUT", "/put", {"Host": "a b"}, 400),
        ):
            raw = {name.encode(): value.encode() for name, value in headers.items()}
            answer = await env.client.request(method, path, headers=raw, content=large())
            assert (answer.status_code, answer.json()["status"]) == (status, status)


async def test_a_client_that_is_still_sending_sees_that_its_body_is_malformed() -> None:
    async with GatewayEnvironment("one-node-serialized") as env:
        reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
        writer.write(b"PUT /put HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        for _ in range(PARTS):
            writer.write(bytes(65536))
            await writer.drain()
        async with asyncio.timeout(5):
            assert b" 400 Bad Request\r\n" in await reader.read()
        writer.close()


class Body:
    """A body that never ends.

    Args:
        stalls: whether no more of it arrives.
    """

    def __init__(self, *, stalls: bool = False) -> None:
        self.received = 0
        self._stalls = stalls

    async def receive(self) -> dict[str, Any]:
        if self._stalls:
            await asyncio.Event().wait()
        self.received += 1
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}


async def test_what_is_dropped_has_a_largest_size() -> None:
    body = Body()
    await Unread(1, lambda: False).drain(body.receive)
    assert body.received == 65


async def test_a_body_that_stalls_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "_LONGEST_PAUSE", 0.01)
    await Unread(1, lambda: False).drain(Body(stalls=True).receive)


async def test_nothing_is_drained_beyond_the_limit_or_while_the_gateway_stops() -> None:
    first, second, third = Body(stalls=True), Body(), Body()
    drains = Unread(1, lambda: False)
    draining = asyncio.create_task(drains.drain(first.receive))
    await eventually(lambda: repr(drains) == "<Unread 1 of 1>", "the first body is being drained")
    await drains.drain(second.receive)
    await Unread(1, lambda: True).drain(third.receive)
    assert (second.received, third.received) == (0, 0)
    draining.cancel()
