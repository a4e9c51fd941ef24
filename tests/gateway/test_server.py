"""The HTTP server: how many connections it takes, how long it waits for a request, and how it stops."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway import server as server_module
from gateway.exchange import Exchange
from gateway.server import Server
from runtime.sockets import any_free_port
from runtime.testing import eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Answers:
    """Answers every request, once `released` is set."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()

    async def __call__(self, exchange: Exchange) -> None:
        await self.released.wait()
        exchange.respond(200, [], b"ok")


class Started:
    def __init__(self, most: int) -> None:
        self.answers = Answers()
        self.port = any_free_port()
        self.server = Server(self.answers, most, asyncio.get_running_loop())
        self.server.start("127.0.0.1", self.port, shared=False, silence=30)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture
async def started() -> AsyncGenerator[Started, None]:
    made = Started(2)
    yield made
    await made.server.stop(0)


async def answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        return await reader.readuntil(b"ok")


async def test_connections_beyond_the_most_wait(started: Started) -> None:
    clients = [await started.connect() for _ in range(3)]
    for _, writer in clients:
        writer.write(GET)
    for reader, _ in clients[:2]:
        await answer(reader)
    assert len(started.server.connections) == 2
    clients[0][1].close()
    await answer(clients[2][0])
    for _, writer in clients:
        writer.close()


async def test_a_connection_is_counted_once(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, opened = started.server.loop.connect_accepted_socket, asyncio.Event()

    async def linger(*args: Any) -> None:
        await connect(*args)
        await opened.wait()

    monkeypatch.setattr(started.server.loop, "connect_accepted_socket", linger)
    clients = [await started.connect()]
    await eventually(lambda: len(started.server.connections) == 1, "the first connection is open")
    clients.append(await started.connect())
    await asyncio.sleep(0.05)
    opened.set()
    clients[1][1].write(GET)
    await answer(clients[1][0])
    for _, writer in clients:
        writer.close()


async def test_a_connection_that_cannot_be_opened_makes_room(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = asyncio.Event()

    async def fail(*_: object) -> None:
        await failing.wait()
        raise OSError("the client has gone")

    with monkeypatch.context() as patch:
        patch.setattr(started.server.loop, "connect_accepted_socket", fail)
        clients = [await started.connect() for _ in range(3)]
        await eventually(lambda: len(started.server._opening) == 2, "two connections are being opened")
    failing.set()
    clients[2][1].write(GET)
    await answer(clients[2][0])
    for _, writer in clients:
        writer.close()


async def test_that_connections_cannot_be_accepted_is_logged_once(
    started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = 0

    class Refusing:
        def accept(self) -> None:
            nonlocal refused
            refused += 1
            raise OSError("too many open files")

        def fileno(self) -> int:
            return listening.fileno()

    listening = started.server._listening
    monkeypatch.setattr(server_module, "_PAUSE", 0.001)
    with monkeypatch.context() as patch:
        patch.setattr(started.server, "_listening", Refusing())
        reader, writer = await started.connect()
        await eventually(lambda: refused > 3, "connections were refused")
    assert caplog.text.count("too many open files") == 1
    writer.write(GET)
    await answer(reader)
    writer.close()


async def test_a_connection_that_is_being_opened_ends_when_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(10)
    connect, stopping = started.server.loop.connect_accepted_socket, asyncio.Event()

    async def wait(*args: Any) -> None:
        await stopping.wait()
        await connect(*args)

    monkeypatch.setattr(started.server.loop, "connect_accepted_socket", wait)
    reader, writer = await started.connect()
    await eventually(lambda: len(started.server._opening) == 1, "the connection is being opened")
    stopping.set()
    async with asyncio.timeout(5):
        await started.server.stop(0)
        assert await reader.read() == b""
    assert not started.server.connections
    writer.close()


async def test_a_client_that_sends_no_head_is_disconnected(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_HEAD_TIMEOUT", -1)
    idle, slow = await started.connect(), await started.connect()
    slow[1].write(GET[:-2])
    async with asyncio.timeout(5):
        assert [await reader.read() for reader, _ in (idle, slow)] == [b"", b""]
    for _, writer in (idle, slow):
        writer.close()


async def test_a_request_that_is_being_answered_may_take_longer(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    started.answers.released.clear()
    reader, writer = await started.connect()
    writer.write(GET)
    await eventually(lambda: any(not one.is_idle for one in started.server.connections), "the request is being answered")
    monkeypatch.setattr(server_module, "_HEAD_TIMEOUT", -1)
    started.server._tick()
    started.answers.released.set()
    assert b"200 OK" in await answer(reader)
    writer.close()


async def test_stopping_closes_idle_connections_and_answers_the_others() -> None:
    started = Started(10)
    idle, busy = await started.connect(), await started.connect()
    started.answers.released.clear()
    busy[1].write(GET)
    await eventually(lambda: any(not one.is_idle for one in started.server.connections), "the request is being answered")
    stopping = asyncio.create_task(started.server.stop(5))
    await eventually(lambda: started.server.progress.is_closing, "the server is stopping")
    started.answers.released.set()
    assert b"\r\nconnection: close\r\n" in await answer(busy[0])
    assert await stopping
    assert [await reader.read() for reader, _ in (idle, busy)] == [b"", b""]
    with pytest.raises(OSError, match=r".+"):
        await started.connect()
    for _, writer in (idle, busy):
        writer.close()


async def test_what_is_not_answered_in_time_ends() -> None:
    started = Started(10)
    reader, writer = await started.connect()
    started.answers.released.clear()
    writer.write(GET)
    await eventually(lambda: any(not one.is_idle for one in started.server.connections), "the request is being answered")
    assert not await started.server.stop(0)
    started.answers.released.set()
    assert await reader.read() == b""
    writer.close()
