"""A publisher and a subscriber, small enough to see every row: what the stream tests play with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from runtime import (
    ANYONE,
    Context,
    Contract,
    Database,
    Event,
    Node,
    NodeSettings,
    Overloaded,
    Request,
    Service,
    Transaction,
    handles,
    subscribes,
)
from runtime.durable.stream import Stream
from runtime.durable.subscription import Subscription
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import CrashingDatabase, CrashPoints
from transports.memory import MemoryNetwork, MemoryTransport

press = Contract("press")
board = Contract("board")


@press.message
class Say(Request[None]):
    """Publishes words, in one transaction."""

    words: tuple[str, ...]
    fail: bool = False


@press.message
class Said(Event):
    word: str


@press.message
class Whispered(Event):
    word: str


@board.message
class Heard(Event):
    """What the board publishes for each word it applies: events may lead to events."""

    word: str


class Press(Service):
    contract = press

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS said (word TEXT)")

    @handles(allow=ANYONE)
    async def say(self, message: Say, ctx: Context, tx: Transaction) -> None:
        for word in message.words:
            await tx.execute("INSERT INTO said VALUES ($1)", word)
            await tx.publish(Whispered(word) if word.startswith("(") else Said(word))
        if message.fail:
            raise RuntimeError("after everything was written")


class Board(Service):
    """Writes down every word it hears, in order; does as the word says."""

    contract = board
    calls: ClassVar[tuple[Contract, ...]] = (
        press,
    )  # so that `ctx.caught_up(press)` and requests are possible: one event a transaction
    ills: dict[str, Callable[[], BaseException]] = {}  # set by tests

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS heard (number INTEGER PRIMARY KEY AUTOINCREMENT, word TEXT)")

    ids: ClassVar[list[tuple[str, str]]] = []

    @subscribes(attempts=3)
    async def on_said(self, event: Said, ctx: Context, tx: Transaction) -> None:
        self.ids.append((event.word, ctx.message_id))
        await tx.execute("INSERT INTO heard (word) VALUES ($1)", event.word)
        await tx.publish(Heard(event.word))
        if event.word in self.ills:
            raise self.ills[event.word]()


class Batcher(Board):
    """The same, calling nobody: its events may share a transaction."""

    calls = ()


class AttentiveBoard(Board):
    """A later version that also takes whispers."""

    @subscribes
    async def on_whispered(self, event: Whispered, ctx: Context, tx: Transaction) -> None:
        await tx.execute("INSERT INTO heard (word) VALUES ($1)", event.word)


def overloaded() -> Overloaded:
    return Overloaded("somebody")


class Pair:
    """Both services, each on a node of its own, in files that outlive the nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = MemoryNetwork()
        self.points = {"press": CrashPoints(), "board": CrashPoints()}
        self.nodes: dict[str, Node] = {}
        self.settings = NodeSettings(heartbeat=0.2)

    def database(self, service: str) -> Database:
        inner = SqliteDatabase(self.folder / f"{service}.sqlite", durable=False)
        return CrashingDatabase(inner, self.points[service]) if service in self.points else inner

    async def start(self, *services: type[Service], name: str = "") -> Node:
        for service in services:
            node = Node([service], MemoryTransport(self.network), databases=self.database, settings=self.settings)
            await node.__aenter__()
            self.nodes[name or service.contract.name] = node
        return self.nodes[name or services[-1].contract.name]

    async def crash(self, name: str) -> None:
        node = self.nodes.pop(name)
        transport = node.environment.transport
        assert isinstance(transport, MemoryTransport)
        transport.crash()
        await node.crash()

    async def stop(self, name: str) -> None:
        await self.nodes.pop(name).stop()

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.stop()
        self.nodes.clear()

    async def say(self, *words: str, fail: bool = False) -> None:
        node = self.nodes["press"]
        await node.registry.wait_for("press")
        await node.client("test", (press,)).request(Say(words, fail))

    async def rows(self, service: str, sql: str) -> list[Any]:
        """What a fresh look into a service's file shows."""
        database = SqliteDatabase(self.folder / f"{service}.sqlite")
        await database.open()
        try:
            return [next(iter(row.values())) if len(row) == 1 else dict(row) for row in await database.fetch(sql)]
        finally:
            await database.close()

    async def heard(self) -> list[str]:
        return await self.rows("board", "SELECT word FROM heard ORDER BY number")

    def subscription(self, name: str = "board") -> Subscription:
        return self.nodes[name].inbound.instances["board"].subscriptions["press"]

    def stream(self) -> Stream:
        stream = self.nodes["press"].inbound.instances["press"].stream
        assert stream is not None
        return stream
