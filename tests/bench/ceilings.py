"""Python's own ceilings: the least that a call, a message, an HTTP request, or an event costs without a framework.

They only move the data. None has deadlines, routing, limits, errors, or identity. A `Work` does something a number of times.
"""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import mqtt5
import msgspec
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from config.cli.bench.measured import Add, Sum
from runtime.sockets import any_free_port, until_listening
from tests.bench.wide import REQUEST, GetQuote, Quote, Quoted

Work = Callable[[int], Awaitable[None]]

_encode = msgspec.json.Encoder().encode
_decode_add, _decode_sum = msgspec.json.Decoder(Add).decode, msgspec.json.Decoder(Sum).decode
_MESSAGE = Add(1)


async def _handle(message: Add) -> Sum:
    return Sum(message.a + 1)


async def direct_await(count: int) -> None:
    for _ in range(count):
        await _handle(_MESSAGE)


async def direct_wait(count: int) -> None:
    """Await a handler that waits for one turn of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)
        await _handle(_MESSAGE)


async def task_per_call(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.create_task(_handle(_MESSAGE))


async def mailbox_round_trip(count: int) -> None:
    """Send each message through a queue to a worker, which answers with a future."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[Add, asyncio.Future[Sum]]] = asyncio.Queue()

    async def worker() -> None:
        while True:
            message, future = await queue.get()
            future.set_result(await _handle(message))

    running = loop.create_task(worker())
    for _ in range(count):
        future: asyncio.Future[Sum] = loop.create_future()
        queue.put_nowait((_MESSAGE, future))
        await future
    running.cancel()


async def json_both_ways(count: int) -> None:
    for _ in range(count):
        _decode_sum(_encode(await _handle(_decode_add(_encode(_MESSAGE)))))


async def wide_json_both_ways(count: int) -> None:
    """Encode and decode the request, the reply, and the signal of the service with larger messages."""
    decode_request, decode_reply = msgspec.json.Decoder(GetQuote).decode, msgspec.json.Decoder(Quote).decode
    decode_signal = msgspec.json.Decoder(Quoted).decode
    for _ in range(count):
        request = decode_request(_encode(REQUEST))
        decode_signal(_encode(Quoted(request.rider_id, 1)))
        decode_reply(_encode(Quote("trip-1", 1, 1, request.legs)))


class _Link(asyncio.Protocol):
    """A bare MQTT connection: it reads packets, and collects what is sent in a turn of the event loop into one write."""

    def __init__(self, on_publish: Callable[[mqtt5.PublishPacket], None]) -> None:
        self._on_publish = on_publish
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._out: list[bytes] = []
        self._last_id = 0
        self.subscribed = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        self.transport.writelines(self._out)
        self._out = []

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        view, start = memoryview(data), 0
        while start < len(data):
            try:
                packet, size = mqtt5.read(view[start:])
            except IndexError:  # the rest of the packet is still to come
                break
            start += size
            if isinstance(packet, mqtt5.PublishPacket):
                self._on_publish(packet)
                if packet.packet_id is not None:
                    self.send(mqtt5.PubAckPacket(packet.packet_id).write())
            elif isinstance(packet, mqtt5.SubAckPacket):
                self.subscribed.set_result(None)
        self._buffer = bytes(view[start:])

    def publish(self, topic: str, payload: bytes, **properties: Any) -> None:
        self._last_id = self._last_id % 65_535 + 1
        qos = mqtt5.QoS.AT_LEAST_ONCE
        self.send(mqtt5.PublishPacket(topic, payload, qos=qos, packet_id=self._last_id, **properties).write())


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@asynccontextmanager
async def _link(
    url: str, name: str, topic: str, on_publish: Callable[[mqtt5.PublishPacket], None]
) -> AsyncGenerator[_Link, None]:
    host, port = _address(url)
    _, link = await asyncio.get_running_loop().create_connection(lambda: _Link(on_publish), host, port)
    link.send(mqtt5.ConnectPacket(name, clean_start=True, keep_alive=60).write())
    link.send(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter(topic, max_qos=mqtt5.QoS.AT_LEAST_ONCE)]).write())
    await link.subscribed
    try:
        yield link
    finally:
        link.transport.close()


@asynccontextmanager
async def mqtt_pair(url: str, namespace: str, callers: int) -> AsyncGenerator[Work, None]:
    """Provide requests between two bare MQTT connections, with a task for each, as many at a time as there are callers."""
    loop = asyncio.get_running_loop()
    waiting: dict[bytes, asyncio.Future[bytes]] = {}
    last = 0

    async def answer(packet: mqtt5.PublishPacket) -> None:
        assert packet.response_topic is not None
        body = _encode(await _handle(_decode_add(packet.payload)))
        server.publish(packet.response_topic, body, correlation_data=packet.correlation_data)

    def on_reply(packet: mqtt5.PublishPacket) -> None:
        assert packet.correlation_data is not None
        waiting.pop(packet.correlation_data).set_result(packet.payload)

    async def request() -> None:
        nonlocal last
        last += 1
        key = last.to_bytes(4, "big")
        future = waiting[key] = loop.create_future()
        client.publish(f"{namespace}/request", _encode(_MESSAGE), response_topic=f"{namespace}/reply", correlation_data=key)
        _decode_sum(await future)

    async def work(count: int) -> None:
        async def requests() -> None:
            for _ in range(count // callers):
                await request()

        await asyncio.gather(*(requests() for _ in range(callers)))

    def on_request(packet: mqtt5.PublishPacket) -> None:
        loop.create_task(answer(packet))

    async with (
        _link(url, f"{namespace}-server", f"{namespace}/request", on_request) as server,
        _link(url, f"{namespace}-client", f"{namespace}/reply", on_reply) as client,
    ):
        yield work


class _Client(asyncio.Protocol):
    """A bare HTTP connection that sends the same request again when the response has arrived."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._received = b""
        self._left = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server has closed the connection"))

    async def requests(self, count: int) -> None:
        self._left, self._done = count, asyncio.get_running_loop().create_future()
        self.transport.write(self._request)
        await self._done

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
            return
        self._received = b""
        self._left -= 1
        if not head.startswith(b"HTTP/1.1 200"):
            self._done.set_exception(AssertionError(head.decode("latin-1")))
        elif self._left:
            self.transport.write(self._request)
        else:
            self._done.set_result(None)


@asynccontextmanager
async def http_client(url: str, token: str, callers: int) -> AsyncGenerator[Work, None]:
    """Provide GET requests from bare connections, as many at a time as there are callers."""
    host, port = _address(url)
    request = f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    connecting = [loop.create_connection(lambda: _Client(request), host, port) for _ in range(callers)]
    clients = [client for _, client in await asyncio.gather(*connecting)]

    async def work(count: int) -> None:
        await asyncio.gather(*(client.requests(count // callers) for client in clients))

    try:
        yield work
    finally:
        for client in clients:
            client.transport.close()


class _App:
    """A bare RSGI application that adds one to the number at the end of the path."""

    async def __rsgi__(self, scope: Any, exchange: Any) -> None:
        body = _encode(await _handle(Add(int(scope.path.rpartition("/")[2]))))
        exchange.response_bytes(200, [("content-type", "application/json")], body)


@asynccontextmanager
async def granian() -> AsyncGenerator[str, None]:
    """Run the bare application on granian. Yield the URL of its route."""
    host, port = "127.0.0.1", any_free_port()
    server = Server(
        _App(), address=host, port=port, interface=Interfaces.RSGI, http=HTTPModes.http1, websockets=False, log_enabled=False
    )
    serving = asyncio.create_task(server.serve())
    await until_listening(host, port, serving)
    try:
        yield f"http://{host}:{port}/add/1"
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait((serving,), timeout=2)


@contextmanager
def sqlite_loop(folder: Path) -> Generator[Work, None, None]:
    """Provide events between two SQLite databases: each is committed with a row, read, and committed with a row and a cursor."""

    def opened(name: str, *tables: str) -> sqlite3.Connection:
        connection = sqlite3.connect(folder / f"{name}.sqlite", isolation_level=None)
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", "CREATE TABLE numbers (number)", *tables):
            connection.execute(statement)
        return connection

    with (
        closing(opened("publisher", "CREATE TABLE stream (seq INTEGER PRIMARY KEY, body BLOB)")) as publisher,
        closing(opened("subscriber", "CREATE TABLE cursor (seq)", "INSERT INTO cursor VALUES (0)")) as subscriber,
    ):
        last = 0

        async def work(count: int) -> None:
            nonlocal last
            for _ in range(count):
                last += 1
                publisher.execute("BEGIN IMMEDIATE")
                publisher.execute("INSERT INTO numbers VALUES (?)", (last,))
                publisher.execute("INSERT INTO stream VALUES (?, ?)", (last, _encode(Add(last))))
                publisher.execute("COMMIT")
                ((body,),) = publisher.execute("SELECT body FROM stream WHERE seq = ?", (last,))
                subscriber.execute("BEGIN IMMEDIATE")
                subscriber.execute("UPDATE cursor SET seq = ? WHERE seq = ?", (last, last - 1))
                subscriber.execute("INSERT INTO numbers VALUES (?)", (_decode_add(body).a,))
                subscriber.execute("COMMIT")

        yield work
