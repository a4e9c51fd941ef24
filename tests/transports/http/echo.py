"""A small service for the tests of the HTTP transport, and a fake server to take its place."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from runtime import ANYONE, Context, Contract, Node, Request, Service, ServiceError, Signal, Struct, handles, roles, subscribes
from tests.http_peers import HttpPeers
from transports.http.transport import HttpTransport

echo = Contract("echo")


class Said(Struct):
    """The text of a request, and what its handler knew about the request."""

    text: str
    caller: str
    key: str
    trace: str


@echo.message
class Say(Request[Said]):
    """Return the text with the caller, the label, and the trace id."""

    text: str


@echo.message
class Wait(Request[None]):
    """Never answer."""


@echo.message
class Tell(Request[None]):
    """Accept a text of any size."""

    text: str


@echo.message
class Much(Request[str]):
    """Return a text of that many letters."""

    count: int


@echo.message
class Riders(Request[None]):
    """Answer riders only."""


@echo.message
class Gone(ServiceError):
    """The thing no longer exists."""

    code, status = "gone", 404
    what: str


@echo.message
class Find(Request[None]):
    """Fail with `Gone`."""


class Echo(Service):
    """A service that counts its calls."""

    contract = echo

    def __init__(self, name: str = "") -> None:
        self.label = name
        self.running = 0
        self.ran = 0

    @handles(allow=ANYONE, idempotent=True)
    async def say(self, message: Say, ctx: Context) -> Said:
        self.ran += 1
        return Said(message.text, ctx.caller, self.label, ctx.trace.split("-")[1])

    @handles(allow=ANYONE)
    async def wait(self, message: Wait, ctx: Context) -> None:
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1

    @handles(allow=ANYONE)
    async def tell(self, message: Tell, ctx: Context) -> None: ...

    @handles(allow=ANYONE)
    async def much(self, message: Much, ctx: Context) -> str:
        self.ran += 1
        return "x" * message.count

    @handles(allow=roles("rider"))
    async def riders(self, message: Riders, ctx: Context) -> None: ...

    @handles(allow=ANYONE, raises=(Gone,))
    async def find(self, message: Find, ctx: Context) -> None:
        self.ran += 1
        raise Gone("it")


@echo.message
class Ping(Signal):
    """A signal without fields."""


class SubscribedEcho(Echo):
    """An `Echo` that counts the pings it receives."""

    pings_received = 0

    @subscribes(broadcast=True)
    async def on_ping(self, signal: Ping, ctx: Context) -> None:
        self.pings_received += 1


NAMES = ("echo", "client", "other")


@asynccontextmanager
async def echo_over_http(http_peers: HttpPeers, service: Echo, **settings: Any) -> AsyncGenerator[tuple[Node, Context], None]:
    """Run the service on one node, and yield that node with a context of `client` on another."""
    transport = HttpTransport(msgspec.structs.replace(http_peers.settings("echo"), **settings))
    async with (
        Node([lambda: service], transport, name="server") as node,
        Node([], HttpTransport(http_peers.settings("client")), name="client") as client_node,
    ):
        await client_node.registry.wait_for("echo")
        yield node, client_node.client("client", (echo,))


@asynccontextmanager
async def fake_server(port: int, answer: Callable[[bytes], Awaitable[bytes]]) -> AsyncGenerator[None, None]:
    """Run a server on a service's port that sends one answer to each request's head and closes the connection."""
    busy: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            writer.write(await answer(await reader.readuntil(b"\r\n\r\n")))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            busy.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for task in list(busy):
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await server.wait_closed()


def presence_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nCallboard-Node: fake\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
