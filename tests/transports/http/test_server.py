"""The HTTP server, as clients see it that write whatever they like to a socket."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from runtime import Clock
from runtime.repeats import Repeats
from runtime.sockets import any_free_port
from runtime.testing import eventually
from transports.http import exchange as exchange_module
from transports.http import server as server_module
from transports.http.exchange import Exchange
from transports.http.server import HttpServer

MAX_BODY = 100_000


class Recorder:
    """An app that returns requests to their clients, or does something else that the path names."""

    def __init__(self) -> None:
        self.waiting: list[Exchange] = []
        self.gone = 0

    def accept(self, exchange: Exchange) -> Callable[[], None] | None:
        match exchange.path:
            case "/refuse":
                exchange.refuse(404, b"", b"no")
            case "/answer":
                exchange.answer(401, b"", b"who?")
            case "/fail":
                raise RuntimeError("broken")
            case "/unnamed":
                exchange.answer(499, b"", b"no")
            case _:
                return lambda: self.take(exchange)
        return None

    def take(self, exchange: Exchange) -> None:
        if exchange.body is None:
            exchange.answer(408, b"", b"late")
        elif exchange.path == "/wait":
            exchange.gone = self.left
            self.waiting.append(exchange)
        elif exchange.path == "/large":
            exchange.answer(200, b"", bytes(8_000_000))
        elif exchange.path == "/fail-later":
            raise RuntimeError("broken, too")
        else:
            said = f"{exchange.method} {exchange.path}?{exchange.query} {exchange.fields.get('x')} ".encode()
            exchange.answer(200, b"content-type: text/plain\r\n", said + exchange.body)

    def left(self) -> None:
        self.gone += 1


class Raw:
    """A client that writes bytes and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def answer(self, *, bodiless: bool = False) -> tuple[int, dict[bytes, bytes], bytes]:
        """Return the status, the fields, and the body of the next answer."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        first, *more = head[:-4].split(b"\r\n")
        fields = {name: value for name, _, value in (line.partition(b": ") for line in more)}
        body = await self.reader.readexactly(0 if bodiless else int(fields.get(b"content-length", b"0")))
        return int(first.split()[1]), fields, body

    async def ended(self) -> bool:
        """Wait until the server has closed the connection. Return whether it had sent nothing more."""
        try:
            return await asyncio.wait_for(self.reader.read(), 5) == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def serving(app: Recorder | None = None) -> AsyncGenerator[tuple[Callable[[], "asyncio.Future[Raw]"], HttpServer], None]:
    """Run a server, and yield a function that connects to it."""
    clock = Clock()
    server = HttpServer((app or Recorder()).accept, MAX_BODY, "127.0.0.1", any_free_port(), "PORT", clock, Repeats(clock))
    await server.start()
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> Raw:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.append(writer)
        return Raw(reader, writer)

    try:
        yield lambda: asyncio.ensure_future(connect()), server
    finally:
        for writer in writers:
            writer.close()
        await server.stop()


GET = b"GET /a%20b?q=1 HTTP/1.1\r\nhost: x\r\nX:  y \r\n\r\n"
POST = b"POST /%b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"


async def test_requests_follow_each_other_on_a_connection() -> None:
    async with serving() as (connect, _):
        client = await connect()
        for _ in range(3):
            client.write(GET)
            status, fields, body = await client.answer()
            assert (status, body) == (200, b"GET /a b?q=1 y ")
            assert fields.keys() == {b"content-type", b"date", b"content-length"}
            client.write(POST % (b"", 3, b"abc"))
            assert (await client.answer())[2] == b"POST /? None abc"
            client.write(b"\r\n")  # an old client's empty line
        client.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: trailer\r\n\r\n")
        assert (await client.answer())[2] == b"POST /? None abc"
        client.write(b"HEAD / HTTP/1.1\r\n\r\n")
        assert (await client.answer(bodiless=True))[0] == 200
        client.write(GET)
        assert (await client.answer())[0] == 200, "an answer to HEAD has no body"


async def test_a_request_is_the_same_byte_by_byte() -> None:
    async with serving() as (connect, _):
        client = await connect()
        for text, answer in ((GET, b"GET /a b?q=1 y "), (POST % (b"", 2, b"{}"), b"POST /? None {}")):
            for byte in text:
                client.write(bytes([byte]))
                await asyncio.sleep(0)
            assert (await client.answer())[2] == answer


@pytest.mark.parametrize(
    "request_head",
    [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"],
)
async def test_a_connection_ends_when_its_client_wants_that(request_head: bytes) -> None:
    async with serving() as (connect, _):
        client = await connect()
        client.write(request_head)
        status, fields, _ = await client.answer()
        assert (status, fields[b"connection"]) == (200, b"close")
        assert await client.ended()


@pytest.mark.parametrize("later", [False, True])
async def test_a_request_that_does_not_await_the_last_answer_is_not_read(later: bool) -> None:
    app = Recorder()
    async with serving(app) as (connect, _):
        client = await connect()
        client.write(POST % (b"wait", 0, b""), b"" if later else GET)
        await eventually(lambda: len(app.waiting) == 1, "the first has arrived")
        if later:
            client.write(GET)
            await client.writer.drain()
            await asyncio.sleep(0.01)
        app.waiting[0].answer(200, b"", b"first")
        assert (await client.answer())[2] == b"first"
        assert await client.ended()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"garbage\r\n\r\n", 400), (b"GET / HTTP/1.1\r\na b: c\r\n\r\n", 400), (b"GET / HTTP/1.1\r\na: b\0c\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400), (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nz\r\n", 400),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", 400), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: " + b"x" * 420_000, 431), (b"GET /" + b"x" * 420_000, 431),
    ],
)  # fmt: skip
async def test_what_is_not_a_request_is_refused_and_ends_the_connection(text: bytes, status: int) -> None:
    async with serving() as (connect, _):
        client = await connect()
        client.write(text)
        found, fields, _ = await client.answer()
        assert (found, fields[b"connection"]) == (status, b"close")
        assert await client.ended()


async def test_an_upgrade_is_ignored_unless_a_body_would_be_lost() -> None:
    async with serving() as (connect, _):
        for length, rest, expected in ((0, b"", 200), (0, GET, 200), (2, b"ab", 400)):
            client = await connect()
            client.write(b"POST /path HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n")
            client.write(b"content-length: %d\r\n\r\n" % length, rest)
            status, fields, _ = await client.answer()
            assert (status, fields[b"connection"]) == (expected, b"close")
            assert await client.ended()


async def test_a_body_without_end_ends_the_connection() -> None:
    async with serving() as (connect, _):
        for path, size in ((b"", MAX_BODY + 1), (b"answer", 5 * MAX_BODY)):
            client = await connect()
            client.write(b"POST /%b HTTP/1.1\r\ncontent-length: 9999999\r\n\r\n" % path, bytes(size))
            if path:
                assert (await client.answer())[0] == 401
            assert await client.ended()


async def test_a_refused_request_is_read_to_its_end() -> None:
    body = bytes(10 * MAX_BODY)
    async with serving() as (connect, _):
        client = await connect()
        client.write(POST % (b"refuse", len(body), body[:-1]))
        await client.writer.drain()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.05)
        client.write(body[-1:])
        assert (await client.answer())[::2] == (404, b"no")
        client.write(POST % (b"answer", 9, b""))
        assert (await client.answer())[::2] == (401, b"who?")
        client.write(b"123456789", GET)
        assert await client.ended(), "the second request came with the rest of the first"
        client = await connect()
        client.write(POST % (b"answer", 9, b""))
        await client.answer()
        client.write(b"123456789")
        await asyncio.sleep(0.01)
        client.write(GET)
        assert (await client.answer())[0] == 200, "the connection can be used again"


async def test_a_status_without_a_name_is_sent() -> None:
    async with serving() as (connect, _):
        client = await connect()
        client.write(POST % (b"unnamed", 0, b""))
        assert (await client.answer())[0::2] == (499, b"no")


async def test_a_client_that_expects_100_gets_it() -> None:
    async with serving() as (connect, _):
        client = await connect()
        head = b"POST /%b HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        client.write(head % b"")
        assert (await client.answer())[0] == 100
        client.write(b"{}")
        assert (await client.answer())[2] == b"POST /? None {}"
        for path, status in ((b"refuse", 404), (b"answer", 401)):
            client = await connect()
            client.write(head % path)
            assert (await client.answer())[0] == status, "its body does not come before the answer"
            assert await client.ended()


async def test_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_IDLE", 0.1)
    monkeypatch.setattr(server_module, "_LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(exchange_module, "_BODY_TIMEOUT", 0.1)
    app = Recorder()
    async with serving(app) as (connect, _):
        silent, slow, busy, late = [await connect() for _ in range(4)]
        slow.write(GET[:10])
        busy.write(POST % (b"wait", 0, b""))
        late.write(POST % (b"", 2, b"{"))
        assert await silent.ended()
        assert await slow.ended()
        assert (await late.answer())[::2] == (408, b"late")
        assert await late.ended()
        for path, status in ((b"refuse", 404), (b"answer", 401)):
            late = await connect()
            late.write(POST % (path, 2, b"{"))
            assert (await late.answer())[0] == status
            assert await late.ended()
        app.waiting[0].answer(200, b"", b"")
        assert (await busy.answer())[0] == 200, "there is no limit for the answer"


async def test_an_app_learns_of_a_client_that_has_gone() -> None:
    app = Recorder()
    async with serving(app) as (connect, _):
        for number in (1, 2):
            client = await connect()
            client.write(POST % (b"wait", 0, b""))
            await eventually(lambda number=number: len(app.waiting) == number, "it has arrived")  # type: ignore[misc]  # a lambda's default
            client.writer.transport.abort()
            await eventually(lambda number=number: app.gone == number, "the app knows")  # type: ignore[misc]  # a lambda's default
        app.waiting[0].answer(200, b"", b"too late")
        client = await connect()
        client.write(GET)
        assert (await client.answer())[0] == 200
        client.writer.close()
        await asyncio.sleep(0.01)
        assert app.gone == 2, "the client had its answer"


async def test_a_large_answer_is_written_as_fast_as_the_client_reads_it() -> None:
    async with serving() as (connect, server):
        client = await connect()
        client.write(b"POST /large HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
        await eventually(lambda: len(client.reader._buffer) > 100_000, "its beginning is there")  # type: ignore[attr-defined]
        (connection,) = server._serving.connections  # pyright: ignore[reportPrivateUsage]
        assert "[WRITING]" in repr(connection)
        assert connection._transport.get_write_buffer_size() < 500_000  # pyright: ignore[reportPrivateUsage]
        status, _, body = await client.answer()
        assert (status, body) == (200, bytes(8_000_000))
        client.write(GET)
        assert (await client.answer())[0] == 200
        client.write(b"GET /large HTTP/1.0\r\n\r\n")
        assert len((await client.answer())[2]) == 8_000_000
        assert await client.ended()


async def test_a_failure_of_the_app_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (connect, _):
        client = await connect()
        for path in (b"fail", b"fail-later"):
            client.write(POST % (path, 1, b"x"))
            assert (await client.answer())[::2] == (500, b"")
        assert "answering POST /fail failed: RuntimeError('broken')" in caplog.text
        assert "answering POST /fail-later failed" in caplog.text


async def test_stopping_ends_idle_connections_and_awaits_answers() -> None:
    app = Recorder()
    async with serving(app) as (connect, server):
        idle, busy = await connect(), await connect()
        idle.write(GET)
        await idle.answer()
        busy.write(POST % (b"wait", 0, b""))
        await eventually(lambda: len(app.waiting) == 1, "it has arrived")
        stopping = asyncio.create_task(server.stop())
        assert await idle.ended()
        with pytest.raises(OSError):
            await connect()
        assert not stopping.done()
        app.waiting[0].answer(200, b"", b"done")
        assert (await busy.answer())[2] == b"done"
        assert await busy.ended()
        await stopping


async def test_stopping_does_not_take_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(server_module, "_STOP_TIMEOUT", 0.05)
    app = Recorder()
    async with serving(app) as (connect, server):
        client = await connect()
        client.write(POST % (b"wait", 0, b""))
        await eventually(lambda: len(app.waiting) == 1, "it has arrived")
        await server.stop()
        assert await client.ended()
        assert app.gone == 1
    assert "did not stop in time" in caplog.text
