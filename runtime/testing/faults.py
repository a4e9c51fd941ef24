"""Fault injection: lossy links and crashes, repeatable from a seed."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import msgspec

from runtime.contract.messages import Struct
from runtime.network.envelope import Address, Envelope, Topic
from runtime.network.manifest import Manifest
from runtime.network.transport import Capabilities, Receiver, Transport, TransportError
from runtime.storage.database import Database, Guard, Holder, Row, Transaction
from runtime.tasks import SimulatedCrash


class Faults(Struct):
    """The faults of a link.

    Attributes:
        delay: the longest delay of an envelope, in seconds. Delayed envelopes overtake each other.
        loss: the probability that an envelope is lost.
        duplication: the probability that an envelope is sent twice.
    """

    delay: float = 0.0
    loss: float = 0.0
    duplication: float = 0.0


class FaultyTransport(Transport):
    """A transport that loses, delays, duplicates, and reorders the envelopes that one node sends.

    The sender does not notice: a lost envelope counts as sent. An envelope that is not delayed raises as the inner transport
    does, for example if it is too large; a delayed one that cannot be sent is lost.

    Args:
        inner: the transport that carries the envelopes.
        faults: the faults of the link.
        seed: makes a run repeatable.
    """

    def __init__(self, inner: Transport, faults: Faults, seed: int) -> None:
        self.faults: Faults = faults
        self.cut: bool = False
        """Whether the link is cut: it loses everything silently."""
        self.lost: int = 0
        self.zero_copy: bool = inner.zero_copy
        self._inner = inner
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<FaultyTransport {self._inner!r} [{'CUT' if self.cut else 'FAULTY'}] lost={self.lost}>"

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        inner, faults = self._inner.capabilities, self.faults
        return msgspec.structs.replace(
            inner, ordered=inner.ordered and not faults.delay, duplicates=inner.duplicates or faults.duplication > 0
        )

    @property
    def connected(self) -> bool:
        return self._inner.connected

    async def open(self, node: str, receiver: Receiver) -> None:
        await self._inner.open(node, receiver)

    async def watch(self, service: str | None) -> None:
        await self._inner.watch(service)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._inner.close()

    async def listen(self, service: str) -> None:
        await self._inner.listen(service)

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        await self._inner.subscribe(topic, service, broadcast=broadcast)

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        await self._inner.unsubscribe(topic, service)

    async def announce(self, manifest: Manifest) -> None:
        await self._inner.announce(manifest)

    async def withdraw(self, address: Address) -> None:
        await self._inner.withdraw(address)

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        await self._send(lambda: self._inner.unicast(to, envelope, sender))

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        await self._send(lambda: self._inner.anycast(service, envelope, sender))

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        await self._send(lambda: self._inner.multicast(topic, envelope, sender))

    async def _send(self, hand_over: Callable[[], Awaitable[None]]) -> None:
        copies = 2 if self._random.random() < self.faults.duplication else 1
        for _ in range(copies):
            if self.cut or self._random.random() < self.faults.loss:
                self.lost += 1
                continue
            if not self.faults.delay:
                await hand_over()
                continue
            task = asyncio.create_task(self._later(hand_over, self._random.random() * self.faults.delay))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _later(self, hand_over: Callable[[], Awaitable[None]], seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            await hand_over()
        except TransportError:
            self.lost += 1


class Crash(SimulatedCrash):
    """A crash of the process: nothing after it is executed. No handler can catch it as an `Exception`."""


class CrashPoints:
    """Points at which a crash can be armed. `CrashingDatabase` visits `before commit` and `after commit`."""

    def __init__(self) -> None:
        self._armed: dict[str, int] = {}
        self.reached: list[str] = []

    def arm(self, point: str, *, skip: int = 0) -> None:
        """Crash at the next visit of a point, after `skip` others."""
        self._armed[point] = skip

    async def visit(self, point: str) -> None:
        """Crash if the point is armed."""
        self.reached.append(point)
        left = self._armed.get(point)
        if left is None:
            return
        if left:
            self._armed[point] = left - 1
            return
        del self._armed[point]
        raise Crash(point)


class Points(Protocol):
    """Called at each point, where it may crash, fail, or hang."""

    async def visit(self, point: str) -> None:
        """Pass a point."""


class CrashingDatabase(Database):
    """A database that can crash before and after the commit of every transaction.

    Args:
        inner: the database that does the work.
        points: visited at `before commit` and `after commit`.
    """

    def __init__(self, inner: Database, points: Points) -> None:
        super().__init__()
        self.current: ContextVar[Transaction | None] = inner.current
        self.is_shared: bool = inner.is_shared
        self._inner = inner
        self._points = points

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    @asynccontextmanager
    async def transaction(self, guard: Guard | None = None, holder: Holder | None = None) -> AsyncGenerator[Transaction, None]:
        self._inner.before_commit, self._inner.after_commit = self.before_commit, self.after_commit
        self._inner.transaction_timeout, self._inner.log = self.transaction_timeout, self.log
        async with self._inner.transaction(guard, holder) as tx:
            yield tx
            await self._points.visit("before commit")
        await self._points.visit("after commit")

    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        return await self._inner.fetch(sql, *params)

    async def scan(self, each: Callable[[Row], bool], sql: str, *params: Any) -> None:
        await self._inner.scan(each, sql, *params)

    @property
    def contended(self) -> bool:
        return self._inner.contended

    async def shrink(self) -> None:
        await self._inner.shrink()

    async def script(self, statements: str) -> None:
        await self._inner.script(statements)
