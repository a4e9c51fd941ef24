"""The subscriber's side of a stream: pull what follows the cursor, and apply each event exactly once, in order.

The cursor stands in the subscriber's own database. The first statement of an event's transaction moves it from where it
was found to the event, on condition that it is still there; the handler's effects follow; both commit. A replica that
was slower moves no row and stops quietly. This compare-and-set is the whole of the exactly-once argument.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import msgspec

from runtime.clock import Clock, Random
from runtime.contract.errors import ServiceError
from runtime.durable.stream import Batch, Diverged, Position, PositionPruned, Pull, StreamEvent, StreamHead
from runtime.storage.database import Database, DatabaseError, Guard, Row, StatementError, Superseded
from runtime.telemetry import Metrics

POLL_SECONDS = 10.0
"""A subscriber asks this often even when no hint comes."""

_LONGEST_PAUSE = 30.0


class Source(msgspec.Struct, frozen=True):
    """Where an event stands: its publisher and its number there."""

    publisher: str
    epoch: str
    seq: int


class Subscriber(Protocol):
    """The instance whose handlers apply the events."""

    name: str
    log: logging.Logger
    clock: Clock
    random: Random
    metrics: Metrics

    @property
    def database(self) -> Database: ...

    async def ask(self, publisher: str, message: Pull | StreamHead) -> Batch | Position: ...

    async def apply(self, source: Source, events: Sequence[StreamEvent], guard: Guard) -> None:
        """Runs the events' handlers in one transaction that `guard` begins. Raises what a handler raises."""
        ...


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that its handler would not take, and the last error."""

    publisher: str
    epoch: str
    seq: int
    event_id: str
    type: str
    body: str
    at: str
    trace: str
    attempts: int
    error: str


class Cursor(msgspec.Struct, frozen=True):
    """How far one publisher's stream has been applied. `types` says after which number each type is taken."""

    position: Position
    types: dict[str, int]
    stopped: str | None


class Subscription:
    """Applies one publisher's events for one service.

    Args:
        attempts: the event types taken, and how often each one's handler may fail.
        batched: whether several events may share a transaction: the service's handlers call nobody.
    """

    def __init__(self, publisher: str, attempts: Mapping[str, int], batched: bool, subscriber: Subscriber) -> None:
        self.publisher = publisher
        self._attempts = attempts
        self._batched = batched
        self._subscriber = subscriber
        self._database = subscriber.database
        self._nudge = asyncio.Event()
        self._failures = 0
        self._told: str | None = None

    def __repr__(self) -> str:
        return f"<Subscription of {self._subscriber.name} to {self.publisher}>"

    def nudge(self) -> None:
        """Something may have come: look before the next poll."""
        self._nudge.set()

    async def run(self) -> None:
        """Applies what comes, until cancelled."""
        while True:
            try:
                more = await self._step()
            except Superseded:
                continue  # another instance was faster: look where it has come to
            except (ServiceError, DatabaseError) as error:
                await self._back_off(error)
                continue
            self._failures = 0
            if not more:
                await self._wait(self._subscriber.random.jitter(POLL_SECONDS))

    async def _step(self) -> bool:
        """Pulls once and applies what came. Says whether there is more."""
        cursor = await self._cursor()
        if cursor.stopped is not None:
            self._tell(f"stopped: {cursor.stopped}; resume it when its cause is known")
            return False
        missing = cursor.types.keys() - self._attempts.keys()
        if missing:
            self._tell(f"stands down: a newer version of this service also takes {', '.join(sorted(missing))}")
            return False
        self._told = None
        try:
            batch = await self._subscriber.ask(self.publisher, Pull(cursor.position, tuple(sorted(self._attempts))))
        except Diverged as error:
            return await self._stop(
                cursor,
                f"{self.publisher} does not know event {cursor.position.seq} of epoch {cursor.position.epoch} (its head is {error.head})",
            )
        except PositionPruned as error:
            return await self._stop(
                cursor,
                f"{self.publisher} has pruned events {cursor.position.seq + 1} to {error.pruned} that were not applied yet",
            )
        assert isinstance(batch, Batch)
        position = cursor.position
        if batch.forked_at is not None:
            self._subscriber.log.error(
                "%s was restored: its events %d to %d of epoch %s were applied here and are gone there; going on after %d",
                self.publisher, batch.forked_at.seq + 1, position.seq, position.epoch, batch.forked_at.seq,
            )  # fmt: skip
            self._count("stream_forks_total")
            position = await self._fork(cursor, batch.forked_at)
            cursor = await self._cursor()
        await self._apply(position, batch, cursor.types)
        return batch.scanned.seq < batch.head

    async def _apply(self, position: Position, batch: Batch, starts: Mapping[str, int]) -> None:
        epoch = batch.scanned.epoch
        events = [event for event in batch.events if event.seq > starts.get(event.type, 0)]
        if self._batched and len(events) > 1:
            last = Position(epoch, events[-1].seq, events[-1].id)
            try:
                await self._subscriber.apply(Source(self.publisher, epoch, last.seq), events, self._guard(position, last))
            except Superseded:
                raise
            except Exception as error:  # whichever handler it was: one by one shows
                self._subscriber.log.debug("a batch from %s failed (%r): taking its events one by one", self.publisher, error)
            else:
                self._count("events_applied_total", len(events))
                events, position = [], last
        for event in events:
            position = await self._apply_one(position, Position(epoch, event.seq, event.id), event)
        if position != batch.scanned:
            await self._move(position, batch.scanned)

    async def _apply_one(self, position: Position, target: Position, event: StreamEvent) -> Position:
        source = Source(self.publisher, target.epoch, target.seq)
        while True:
            try:
                await self._subscriber.apply(source, (event,), self._guard(position, target))
            except Superseded:
                raise
            except Exception as error:
                if is_transient(error):
                    await self._back_off(error)
                    continue
                attempts = await self._failed(source)
                self._subscriber.log.exception(
                    "attempt %d at %s %d of %s failed", attempts, event.type, event.seq, self.publisher
                )
                if attempts >= self._attempts[event.type]:
                    await self._dead_letter(position, target, event, attempts, error)
                    return target
                await self._subscriber.clock.sleep(self._subscriber.random.jitter(min(0.1 * 2**attempts, _LONGEST_PAUSE)))
            else:
                self._failures = 0
                self._count("events_applied_total")
                return target

    def _guard(self, before: Position, after: Position) -> Guard:
        return Guard(
            "UPDATE callboard_cursors SET epoch = $2, seq = $3, event_id = $4 WHERE publisher = $1 AND epoch = $5 AND seq = $6 AND stopped IS NULL",
            (self.publisher, after.epoch, after.seq, after.event_id, before.epoch, before.seq),
        )

    async def _move(self, before: Position, after: Position) -> Position:
        async with self._database.transaction(self._guard(before, after)):
            pass
        return after

    async def _fork(self, cursor: Cursor, after: Position) -> Position:
        """Moves to the publisher's new branch. What is new there is new to every type."""
        types = {name: min(start, after.seq) for name, start in cursor.types.items()}
        async with self._database.transaction(self._guard(cursor.position, after)) as tx:
            await tx.execute("UPDATE callboard_cursors SET types = $2 WHERE publisher = $1", self.publisher, _types(types))
        return after

    # The cursor

    async def open(self) -> None:
        """Makes the cursor of a new subscription, and notes types that are newly taken: those begin from now.

        Raises:
            ServiceError: the publisher must be asked where it is now, and cannot be.
        """
        row = await self._row()
        if row is None:
            await self._database.execute(
                "INSERT INTO callboard_cursors (publisher, epoch, seq, event_id, types) VALUES ($1, '', 0, '', $2) ON CONFLICT DO NOTHING",
                self.publisher, _types(dict.fromkeys(self._attempts, 0)),
            )  # fmt: skip
            return
        known = _read_types(row)
        new = self._attempts.keys() - known.keys()
        if new:
            head = await self._subscriber.ask(self.publisher, StreamHead())
            assert isinstance(head, Position)
            await self._database.execute(
                "UPDATE callboard_cursors SET types = $2 WHERE publisher = $1 AND types = $3",
                self.publisher, _types(known | dict.fromkeys(new, head.seq)), row["types"],
            )  # fmt: skip

    async def position(self) -> Position:
        """How far this service has come, as committed."""
        return (await self._cursor()).position

    async def resume(self, *, skip: bool = False) -> None:
        """Lets a stopped stream go on, as an operator decides: from the oldest event kept, or (`skip`) from now.

        The types taken are from then on those of this version: one that a newer version took no longer holds it up.
        """
        position = Position("", 0)
        if skip:
            head = await self._subscriber.ask(self.publisher, StreamHead())
            assert isinstance(head, Position)
            position = head
        await self._database.execute(
            "UPDATE callboard_cursors SET epoch = $2, seq = $3, event_id = $4, types = $5, stopped = NULL WHERE publisher = $1",
            self.publisher, position.epoch, position.seq, position.event_id, _types(dict.fromkeys(self._attempts, 0)),
        )  # fmt: skip
        self.nudge()

    async def _cursor(self) -> Cursor:
        row = await self._row()
        if row is None:
            await self.open()
            row = await self._row()
            assert row is not None
        elif self._attempts.keys() - _read_types(row).keys():
            await self.open()
            row = await self._row() or row
        return Cursor(Position(row["epoch"], row["seq"], row["event_id"]), _read_types(row), row["stopped"])

    async def _row(self) -> Row | None:
        return await self._database.fetch_one(
            "SELECT epoch, seq, event_id, types, stopped FROM callboard_cursors WHERE publisher = $1", self.publisher
        )

    async def _stop(self, cursor: Cursor, reason: str) -> bool:
        await self._database.execute(
            "UPDATE callboard_cursors SET stopped = $2 WHERE publisher = $1 AND epoch = $3 AND seq = $4 AND stopped IS NULL",
            self.publisher, reason, cursor.position.epoch, cursor.position.seq,
        )  # fmt: skip
        self._count("streams_stopped_total")
        self._tell(f"stopped: {reason}; resume it when its cause is known")
        return False

    # Failures

    async def _failed(self, source: Source) -> int:
        """Counts an attempt, across restarts, and says which one it was."""
        async with self._database.transaction() as tx:
            await tx.execute(
                "DELETE FROM callboard_attempts WHERE publisher = $1 AND NOT (epoch = $2 AND seq = $3)",
                self.publisher,
                source.epoch,
                source.seq,
            )
            rows = await tx.fetch(
                "INSERT INTO callboard_attempts (publisher, epoch, seq, attempts) VALUES ($1, $2, $3, 1) "
                "ON CONFLICT (publisher) DO UPDATE SET attempts = callboard_attempts.attempts + 1 RETURNING attempts",
                self.publisher, source.epoch, source.seq,
            )  # fmt: skip
        attempts: int = rows[0]["attempts"]
        return attempts

    async def _dead_letter(
        self, position: Position, target: Position, event: StreamEvent, attempts: int, error: Exception
    ) -> None:
        async with self._database.transaction(self._guard(position, target)) as tx:
            await tx.execute(
                "INSERT INTO callboard_dead_letters (publisher, epoch, seq, event_id, type, body, at, trace, attempts, error) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) "
                "ON CONFLICT (publisher, epoch, seq) DO UPDATE SET attempts = $9, error = $10",
                self.publisher, target.epoch, event.seq, event.id, event.type, event.body, event.at, event.trace, attempts, repr(error)[:2000],
            )  # fmt: skip
        self._count("dead_letters_total")
        self._subscriber.log.error(
            "%s %d of %s is a dead letter after %d attempts: %r", event.type, event.seq, self.publisher, attempts, error
        )

    async def dead_letters(self) -> list[DeadLetter]:
        """The events that this service would not take, oldest first."""
        rows = await self._database.fetch(
            "SELECT * FROM callboard_dead_letters WHERE publisher = $1 ORDER BY at, seq", self.publisher
        )
        return [DeadLetter(**row) for row in rows]

    async def retry(self, letter: DeadLetter) -> None:
        """Applies a dead letter again: its effects and its leaving commit together.

        Raises:
            Superseded: it is no dead letter any more.
            Exception: what its handler raises; then it stays.
        """
        event = StreamEvent(letter.seq, letter.event_id, letter.type, letter.body, letter.at, letter.trace)
        guard = Guard(
            "DELETE FROM callboard_dead_letters WHERE publisher = $1 AND epoch = $2 AND seq = $3",
            (letter.publisher, letter.epoch, letter.seq),
        )
        await self._subscriber.apply(Source(letter.publisher, letter.epoch, letter.seq), (event,), guard)

    async def _back_off(self, error: Exception) -> None:
        self._failures += 1
        if self._failures in (5, 10) or self._failures % 100 == 0:
            self._subscriber.log.warning("the events of %s wait (%d tries so far): %s", self.publisher, self._failures, error)
        self._count("stream_retries_total")
        await self._subscriber.clock.sleep(
            self._subscriber.random.jitter(min(0.05 * 2 ** min(self._failures, 10), _LONGEST_PAUSE))
        )

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._nudge.wait()
        except TimeoutError:
            pass
        self._nudge.clear()

    def _tell(self, what: str) -> None:
        if self._told != what:
            self._subscriber.log.error("the stream of %s %s", self.publisher, what)
            self._told = what

    def _count(self, name: str, amount: int = 1) -> None:
        self._subscriber.metrics.count(name, amount, service=self._subscriber.name, publisher=self.publisher)


def is_transient(error: BaseException) -> bool:
    """Whether an error says nothing about the event itself: it waits, and is never counted."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_transient(part) for part in cast("BaseExceptionGroup[BaseException]", error).exceptions)
    if isinstance(error, ServiceError):
        return error.retryable
    return isinstance(error, DatabaseError) and not isinstance(error, StatementError)


def _types(types: Mapping[str, int]) -> str:
    return msgspec.json.encode(types, order="sorted").decode()


def _read_types(row: Row) -> dict[str, int]:
    return msgspec.json.decode(row["types"], type=dict[str, int])
