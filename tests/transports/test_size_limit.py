"""One limit for the size of a message, on every transport: nothing commits that could not be sent."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    Event,
    InternalError,
    Invalid,
    Node,
    Request,
    Service,
    ServiceError,
    Signal,
    Transaction,
    handles,
    subscribes,
)
from runtime.network import Capabilities, Transport
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.broker import Broker
from tests.http_peers import HttpPeers
from transports.http.transport import HttpTransport
from transports.http_mqtt import HttpMqttTransport
from transports.memory import MemoryNetwork, MemoryTransport
from transports.mqtt.limits import Limits
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

LIMIT = 50_000
KINDS = ("one node", "memory", "mqtt", "http", "http+mqtt")

shelf = Contract("shelf")
reader = Contract("reader")

What = Literal["reply", "error", "event", "signal"]


@shelf.message
class Send(Request[str]):
    """Store a row, and send a message with so many characters of two bytes each."""

    what: What
    characters: int
    transaction: bool = True


@shelf.message
class SendAtOnce(Request[str]):
    """The same without a transaction."""

    what: What
    characters: int


@shelf.message
class Take(Request[None]):
    text: str


@shelf.message
class Happened(Event):
    text: str


@shelf.message
class Noticed(Signal):
    text: str


@shelf.message
class Full(ServiceError):
    code, status = "full", 409
    text: str


class Shelf(Service):
    contract = shelf

    async def on_start(self, ctx: Context) -> None:
        await self.db.execute("CREATE TABLE IF NOT EXISTS rows (what TEXT)")

    @handles(allow=ANYONE, raises=(Full,), once=True)
    async def send(self, message: Send, ctx: Context, tx: Transaction) -> str:
        await tx.execute("INSERT INTO rows VALUES ($1)", message.what)
        if message.what == "event":
            await tx.publish(Happened("ü" * message.characters))
        return await self._send(message, ctx)

    @handles(allow=ANYONE, raises=(Full,))
    async def send_at_once(self, message: SendAtOnce, ctx: Context) -> str:
        return await self._send(message, ctx)

    async def _send(self, message: Send | SendAtOnce, ctx: Context) -> str:
        text = "ü" * message.characters
        if message.what == "error":
            raise Full(text)
        if message.what == "signal":
            await ctx.publish(Noticed(text))
        return text if message.what == "reply" else ""

    @handles(allow=ANYONE)
    async def take(self, message: Take, ctx: Context) -> None: ...


class Reader(Service):
    contract = reader

    def __init__(self) -> None:
        self.got: list[str] = []

    @subscribes
    async def on_happened(self, event: Happened, ctx: Context, tx: Transaction) -> None:
        self.got.append(event.text)


@asynccontextmanager
async def transports(kind: str, folder: Path) -> AsyncGenerator[Callable[[str], Transport], None]:
    """Give what makes the transport of a service's node, with a limit of `LIMIT` bytes."""
    if kind in ("one node", "memory"):
        network = MemoryNetwork()

        def memory(_: str) -> Transport:
            made = MemoryTransport(network)
            made.capabilities = Capabilities(max_body=LIMIT, max_signal=LIMIT)
            return made

        yield memory
        return
    peers = HttpPeers(["shelf", "reader"])
    if kind == "http":
        yield lambda name: HttpTransport(peers.settings(name, max_body=LIMIT))
        return
    async with Broker(folder, "allow_anonymous true", f"max_packet_size {LIMIT + 1024}") as broker:
        mqtt = MqttSettings(url=broker.url)
        yield (
            (lambda _: MqttTransport(mqtt))
            if kind == "mqtt"
            else lambda name: HttpMqttTransport(HttpTransport(peers.settings(name, max_body=LIMIT)), MqttTransport(mqtt))
        )


@asynccontextmanager
async def shelf_and_reader(kind: str, folder: Path) -> AsyncGenerator[tuple[Node, Context, Reader], None]:
    databases, reads = SqliteFolder(folder, durable=False), Reader()
    async with transports(kind, folder) as transport:
        if kind == "one node":
            async with Node([Shelf, lambda: reads], transport(""), databases=databases) as node:
                yield node, node.client("reader", (shelf,)), reads
            return
        async with (
            Node([Shelf], transport("shelf"), databases=databases) as node,
            Node([lambda: reads], transport("reader"), databases=databases) as other,
        ):
            await other.registry.wait_for("shelf")
            yield node, other.client("reader", (shelf,)), reads


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_that_is_too_large_commits(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with shelf_and_reader(kind, tmp_path) as (node, ctx, reads):
        database = node.inbound.instances["shelf"].database
        whats: tuple[What, ...] = ("reply", "error", "event", "signal") if kind != "http" else ("reply", "error", "event")
        half = LIMIT // 2  # characters of two bytes each: the limit counts bytes
        for what in whats:
            caplog.clear()
            with pytest.raises(InternalError):
                await ctx.request(Send(what, half), key=f"{what} too large")
            assert await database.fetch("SELECT what FROM rows") == [], f"the {what} was refused in the transaction"
            [said] = [record.getMessage() for record in caplog.records]
            assert what in said
            assert f"expected at most {LIMIT - (1024 if what == 'event' else 0):,} bytes of JSON, got 50," in said
            assert "send less of it at a time, or send how it can be requested" in said
            if what != "event":
                with pytest.raises(InternalError):
                    await ctx.request(SendAtOnce(what, half))
        with pytest.raises(Invalid, match=r"expected at most 50,000 bytes of JSON, got 50,011"):
            await ctx.request(Take("ü" * half))
        # What just fits arrives
        fits = half - 1
        await ctx.request(Take("ü" * (half - 6)))
        assert await ctx.request(Send("reply", fits), key="reply") == "ü" * fits
        with pytest.raises(Full):
            await ctx.request(Send("error", half - 200), key="error")
        await ctx.request(Send("event", half - 700), key="event")
        await eventually(lambda: reads.got == ["ü" * (half - 700)], "the event arrives")
        if kind != "http":
            await ctx.request(Send("signal", half - 200), key="signal")
            await asyncio.sleep(0)


def test_the_limit_is_the_same_on_every_transport() -> None:
    peers = HttpPeers(["a"])
    default = Capabilities().max_body
    made = (MemoryTransport(), MqttTransport(), HttpTransport(peers.settings("a")))
    assert [(one.capabilities.max_body, one.capabilities.max_signal) for one in made] == [(default, default)] * 3
    assert Limits(max_packet=MqttSettings().max_packet).max_body == default == 16 * 1024 * 1024
    assert HttpTransport(peers.settings("a", max_body=10**9)).capabilities.max_body == default
    assert Limits(max_packet=10**9).max_body == default
    assert Limits(max_packet=200_000).max_body == 198_976, "the rest is for the headers"
