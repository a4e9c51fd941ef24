"""A publisher and a subscriber whose every row the stream tests can check."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from runtime import (
    ANYONE,
    Clock,
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
from runtime.durable.console import ResumeStream
from runtime.durable.stream import Stream
from runtime.durable.subscription import Subscription
from runtime.identity import TokenSettings
from runtime.storage.postgres import PostgresDatabase
from runtime.testing import CrashingDatabase, CrashPoints
from runtime.testing.expectations import WAIT
from tests.databases import databases
from transports.memory import MemoryNetwork, MemoryTransport

publisher = Contract("publisher")
subscriber = Contract("subscriber")


@publisher.message
class PublishWords(Request[None]):
    """Publishes the words in one transaction."""

    words: tuple[str, ...]
    fail: bool = False


@publisher.message
class WordPublished(Event):
    word: str


@publisher.message
class AsidePublished(Event):
    """Published for words in parentheses: an event type that only newer subscribers take."""

    word: str


@subscriber.message
class WordApplied(Event):
    """Published by the subscriber for each word that it applies."""

    word: str


APPLY = "INSERT INTO applied (number, word) VALUES ((SELECT coalesce(max(number), 0) + 1 FROM applied), $1)"
WRITE = "INSERT INTO published (number, word) VALUES ((SELECT coalesce(max(number), 0) + 1 FROM published), $1)"


class Publisher(Service):
    contract = publisher

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS published (number INTEGER PRIMARY KEY, word TEXT)")

    @handles(allow=ANYONE)
    async def publish_words(self, message: PublishWords, ctx: Context, tx: Transaction) -> None:
        for word in message.words:
            await tx.execute(WRITE, word)
            await tx.publish(AsidePublished(word) if word.startswith("(") else WordPublished(word))
        if message.fail:
            raise RuntimeError("after everything was written")


class Subscriber(Service):
    """Stores the words that it receives, in order, and fails on those in `failures`.

    Attributes:
        failures: Makes the error for a word; set by the tests.
        ids: The word and the message id of every attempt.
        times: The time of day of every attempt, in seconds.
    """

    contract = subscriber
    # because it calls the publisher, each event gets its own transaction; `ctx.caught_up(publisher)` needs the entry, too
    calls: ClassVar[tuple[Contract, ...]] = (publisher,)
    failures: dict[str, Callable[[], BaseException]] = {}
    ids: ClassVar[list[tuple[str, str]]] = []
    times: ClassVar[list[float]] = []

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS applied (number INTEGER PRIMARY KEY, word TEXT)")

    @subscribes(attempts=3)
    async def on_word_published(self, event: WordPublished, ctx: Context, tx: Transaction) -> None:
        self.ids.append((event.word, ctx.message_id))
        self.times.append(self.clock.timestamp())
        await tx.execute(APPLY, event.word)
        await tx.publish(WordApplied(event.word))
        if event.word in self.failures:
            raise self.failures[event.word]()


class BatchingSubscriber(Subscriber):
    """A subscriber that calls no service, so that several events may share a transaction."""

    calls = ()


class NewerSubscriber(Subscriber):
    """A later version that also takes `AsidePublished`."""

    @subscribes
    async def on_aside_published(self, event: AsidePublished, ctx: Context, tx: Transaction) -> None:
        await tx.execute(APPLY, event.word)


def overloaded() -> Overloaded:
    return Overloaded("another service")


WORDS = [f"w{number}" for number in range(40)]


class SkippingClock(Clock):
    """A clock that skips the sleeps of a subscription, and moves the time of day by them.

    Attributes:
        skipping: whether it skips them now.
        skipped: the lengths of these sleeps, in seconds.
    """

    def __init__(self) -> None:
        self.skipping = True
        self.skipped: list[float] = []

    def timestamp(self) -> float:
        return super().timestamp() + sum(self.skipped)

    def steady(self) -> float:
        return self.timestamp()

    async def sleep(self, seconds: float) -> None:
        if self.skipping and 0.3 < seconds < 300:  # the heartbeat is shorter, and the refreshes of tokens are longer
            self.skipped.append(seconds)
            seconds = 0.002
        await super().sleep(seconds)


class Replicas:
    """Replicas of both services, each on a separate node, with databases that outlive the nodes.

    Attributes:
        clock: the clock of all nodes that start later.
    """

    def __init__(self, folder: Path, engine: str = "sqlite") -> None:
        self.folder = folder
        self._databases = databases(engine, folder)
        self.network = MemoryNetwork()
        self.points = {"publisher": CrashPoints(), "subscriber": CrashPoints()}
        self.nodes: dict[str, Node] = {}
        self.settings = NodeSettings(heartbeat=0.2, tokens=TokenSettings(refresh_seconds=3600, keys_seconds=3600))
        self.clock = SkippingClock()

    def database(self, service: str) -> Database:
        inner = self._databases(service)
        return CrashingDatabase(inner, self.points[service]) if service in self.points else inner

    async def start(self, *services: type[Service], name: str = "") -> Node:
        """Start a node per service; `name` tells replicas of one service apart."""
        for service in services:
            node = Node(
                [service], MemoryTransport(self.network), databases=self.database, settings=self.settings, clock=self.clock
            )
            await node.__aenter__()
            self.nodes[name or service.contract.name] = node
        return self.nodes[name or services[-1].contract.name]

    async def lose(self, service: str) -> None:
        """Delete the database of a service that is not running."""
        for path in self.folder.glob(f"{service}.sqlite*"):
            path.unlink()
        database = self._databases(service)
        if isinstance(database, PostgresDatabase):
            await database.open()
            await database.script(f"DROP SCHEMA {service} CASCADE")
            await database.close()

    async def crash(self, name: str) -> None:
        """End a node as `kill -9` would."""
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

    async def publish(self, *words: str, fail: bool = False) -> None:
        node = self.nodes["publisher"]
        await node.registry.wait_for("publisher")
        await node.client("test", (publisher,)).request(PublishWords(words, fail))

    async def rows(self, service: str, sql: str) -> list[Any]:
        """Return the rows that a new connection to a service's database finds; of rows with one column, the values."""
        database = self._databases(service)
        await database.open()
        try:
            return [next(iter(row.values())) if len(row) == 1 else dict(row) for row in await database.fetch(sql)]
        finally:
            await database.close()

    async def applied(self) -> list[str]:
        """Return the words that the subscriber has applied, in order."""
        return await self.rows("subscriber", "SELECT word FROM applied ORDER BY number")

    def subscription(self, name: str = "subscriber") -> Subscription:
        return self.nodes[name].inbound.instances["subscriber"].subscriptions["publisher"]

    async def resume(self, skip_to: int | None = None) -> None:
        """Let the subscriber continue, as an operator does."""
        endpoint = self.nodes["subscriber"].inbound.instances["subscriber"].endpoints["console.ResumeStream"]
        await endpoint.method(ResumeStream("publisher", skip_to), None)

    def stream(self) -> Stream:
        stream = self.nodes["publisher"].inbound.instances["publisher"].stream
        assert stream is not None
        return stream


async def wait_until_applied(replicas: Replicas, expected: list[str]) -> None:
    """Wait until the subscriber has applied exactly the expected words."""
    try:
        async with asyncio.timeout(WAIT):
            while await replicas.applied() != expected:
                await asyncio.sleep(0.01)
    except TimeoutError:
        assert await replicas.applied() == expected


async def wait_until(condition: Callable[[], Any]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.005)
