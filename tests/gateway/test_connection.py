"""Connections of clients: requests one after the other, bodies that are asked for, clients that send no more, and slow ones."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator

import pytest

from gateway import connection
from gateway.exchange import Exchange
from gateway.server import Server
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.gateway.environment import GatewayEnvironment

GET = b"GET /look/x HTTP/1.1\r\nHost: a\r\n"
PUT = b"PUT /put HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
BODY = b'{"inner":{"number":7}}'


@pytest.fixture
async def env() -> AsyncGenerator[GatewayEnvironment, None]:
    async with GatewayEnvironment("one-node-serialized") as opened:
        yield opened


async def all_of(env: GatewayEnvironment, *parts: bytes) -> bytes:
    """Return all that the gateway sends for some requests, the last of which closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


def statuses(text: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d)", text)]


async def test_requests_that_come_at_once_are_answered_in_order(env: GatewayEnvironment) -> None:
    get, put = GET + b"\r\n", PUT + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    chunked = PUT + b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + BODY[:5] + b"\r\n11\r\n" + BODY[5:] + b"\r\n0\r\nX: y\r\n\r\n"
    nowhere = b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /"
    last = GET + b"Connection: close\r\n\r\n"
    text = get + b"\r\n" + put + chunked + nowhere + get.replace(b"GET", b"HEAD") + last
    expected = [200, 200, 200, 404, 200, 200]
    assert statuses(await all_of(env, text + get)) == expected
    assert statuses(await all_of(env, *[text[at : at + 1] for at in range(len(text))])) == expected


async def test_fields_that_change_between_requests_are_read_again(env: GatewayEnvironment) -> None:
    """A connection remembers its last fields."""
    ids = (b"a", b"a", b"b", b"a" * 60, b"a", b"a")
    requests = [GET + b"X-Request-Id: " + one + b"\r\n\r\n" for one in ids]
    other = GET.replace(b"1.1", b"1.0") + b"X-Request-Id: a\r\n\r\n"  # without Connection, it ends a connection of HTTP/1.0 alone
    text = await all_of(env, *requests, other)
    assert re.findall(rb"x-request-id: (\w+)", text) == [*ids, b"a"]


async def test_requests_wait_while_their_client_does_not_read(env: GatewayEnvironment) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port, limit=1024)
    count = 60
    writer.write(b"GET /big?size=1000000 HTTP/1.1\r\nHost: a\r\n\r\n" * (count - 1))
    writer.write(b"GET /big?size=1000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert env.gateway.server is not None
    server = env.gateway.server
    await eventually(lambda: any(not one._is_writable for one in server.connections), "the buffers are full")
    size = 0
    async with asyncio.timeout(20):
        while part := await reader.read(1 << 20):
            size += len(part)
    assert count * 1_000_000 < size < count * 1_001_000
    writer.close()


async def test_a_client_that_reads_nothing_cannot_send_without_limit(env: GatewayEnvironment) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port, limit=1024)
    assert env.gateway.server is not None
    (served,) = env.gateway.server.connections
    big = b"GET /big?size=1000000 HTTP/1.1\r\nHost: a\r\n\r\n"
    for _ in range(60):
        writer.write(big)
        if not served._is_writable:
            break
        await asyncio.sleep(0.05)
    await eventually(lambda: not served._is_writable and served._exchange is None, "the buffers are full")
    writer.write(big * 100_000)
    await eventually(lambda: not served._is_reading, "the connection is not read")
    assert len(served._buffer) < 1_000_000
    served.since = -100
    for _ in range(5):
        async with asyncio.timeout(10):
            await reader.readuntil(b"HTTP/1.1 200")
            await reader.readexactly(1_000_000)
    await eventually(lambda: served.since >= 0, "the wait for the next request begins after the answer")
    writer.transport.abort()


async def test_all_who_write_to_a_slow_client_go_on_when_it_reads() -> None:
    done: list[int] = []

    async def stream(exchange: Exchange) -> None:
        async def write(number: int) -> None:
            await exchange.write(bytes(10_000_000))
            done.append(number)

        exchange.start(200, [])
        await asyncio.gather(*map(write, range(3)))
        exchange.end()

    server, port = Server(stream, 2, asyncio.get_running_loop()), any_free_port()
    server.start("127.0.0.1", port, shared=False, silence=30)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET + b"Connection: close\r\n\r\n")
    await eventually(lambda: any(not one._is_writable for one in server.connections), "the buffers are full")
    async with asyncio.timeout(10):
        while await reader.read(1 << 20):
            pass
    assert done == [0, 1, 2]
    writer.close()
    await server.stop(0)


async def test_a_client_is_asked_for_its_body_only_if_it_is_wanted(env: GatewayEnvironment) -> None:
    expects = b"Content-Length: %d\r\nExpect: 100-continue\r\n" % len(BODY)
    reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
    writer.write(PUT + expects + b"\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
    writer.close()
    refused = await all_of(env, PUT.replace(b"/put", b"/nowhere") + expects + b"\r\n")
    assert statuses(refused) == [404]
    assert b"\r\nconnection: close\r\n" in refused


async def test_a_body_that_was_not_waited_for_leaves_the_connection_open(env: GatewayEnvironment) -> None:
    put = PUT + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY) + BODY
    assert statuses(await all_of(env, put + GET + b"Connection: close\r\n\r\n")) == [200, 200]


async def test_nothing_after_a_malformed_chunk_is_taken_for_the_body() -> None:
    async with GatewayEnvironment("one-node-serialized", bodies_per_address=1) as env:
        _, first = await asyncio.open_connection("127.0.0.1", env.gateway.port)
        first.write(PUT + b"Content-Length: 5\r\n\r\n")
        await eventually(lambda: env.gateway.limits.reading == 1, "the first body is being read")
        reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
        assert env.gateway.server is not None
        await eventually(lambda: len(env.gateway.server.connections) == 2, "the second client is there")  # type: ignore[union-attr]
        writer.write(PUT + b"Transfer-Encoding: chunked\r\n\r\n")
        for part in (b"zz\r\n", b"16\r\n" + BODY + b"\r\n0\r\n\r\n"):
            await asyncio.sleep(0.05)  # the second body waits for the first one
            writer.write(part)
        await asyncio.sleep(0.05)
        first.close()
        async with asyncio.timeout(5):
            assert statuses(await reader.read()) == [400]
        writer.close()


async def test_http_1_0_closes_unless_asked_to_keep_the_connection(env: GatewayEnvironment) -> None:
    get = b"GET /look/x HTTP/1.0\r\n"
    assert b"\r\nconnection: close\r\n" in await all_of(env, get + b"\r\n")
    kept = await all_of(env, get + b"Connection: Keep-Alive\r\n\r\n" + get + b"\r\n")
    assert statuses(kept) == [200, 200]
    assert kept.count(b"\r\nconnection: keep-alive\r\n") == 1


async def test_an_upgrade_is_ignored(env: GatewayEnvironment) -> None:
    upgrade = GET + b"Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c, websocket\r\n\r\n"
    assert statuses(await all_of(env, upgrade + upgrade + GET + b"Connection: close\r\n\r\n")) == [200, 200, 200]


async def test_what_cannot_be_read_is_answered_and_closes_the_connection(env: GatewayEnvironment) -> None:
    for text, status in (
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (GET + b"A : b\r\n\r\n", 400),
        (GET + b"A: b\r\n" * 100 + b"\r\n", 431),
        (GET + b"A: " + b"b" * 500_000, 431),
        (PUT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (PUT.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (PUT + b"Content-Length: 1_0\r\n\r\n", 400),
        (PUT + b"Content-Length: %d\r\n\r\n" % 10**15, 400),
        (PUT + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400),
    ):
        answer = await all_of(env, text + GET + b"\r\n")
        assert statuses(answer) == [status], text[:60]
        assert b"\r\nconnection: close\r\n" in answer, text[:60]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == status


async def test_a_client_that_sends_no_more_gets_its_answer(env: GatewayEnvironment) -> None:
    for text, status in ((GET + b"\r\n", 200), (PUT + b"Content-Length: 50\r\n\r\n{", 400)):
        answer, _, _ = await env.raw(text, half_close=True)
        assert answer == status


async def test_requests_that_came_before_a_client_sends_no_more_are_answered(env: GatewayEnvironment) -> None:
    for rest in (b"", GET, PUT + b"Content-Length: 5\r\n\r\nab"):  # nothing, or a request that is not complete
        reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
        writer.write((GET + b"\r\n") * 5 + rest)
        writer.write_eof()
        async with asyncio.timeout(5):
            found = statuses(await reader.read())
        writer.close()
        assert found[:5] == [200] * 5
        assert found[5:] in ([], [400])


async def test_a_client_that_sends_no_more_and_waits_too_long_is_taken_to_be_gone(env: GatewayEnvironment) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
    writer.write(b"POST /behave/hang HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    writer.write_eof()
    assert await reader.read() == b""
    assert env.probe.hang_log == ["started", "cancelled"]
    writer.close()


async def test_requests_that_have_to_wait_are_not_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_BUFFERED", 1000)
    async with GatewayEnvironment("one-node-serialized", request_timeout=0.2) as env:
        _, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
        writer.write(b"POST /behave/hang HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await eventually(lambda: env.probe.hang_log == ["started"], "the first request is being answered")
        writer.write(GET * 100)
        assert env.gateway.server is not None
        (served,) = env.gateway.server.connections
        await eventually(lambda: not served._is_reading, "the connection is not read")
        writer.close()
