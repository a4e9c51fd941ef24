"""The subscriber's side of a stream: pull what follows the cursor, and apply each event exactly once, in order.

The cursor is stored in the subscriber's own database. The first statement of an event's transaction advances it by
compare-and-set, the handler's effects follow, and both commit. A replica that lost the race updates no row and starts
over from the new cursor. This compare-and-set is the whole exactly-once argument.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import cast

import msgspec

from runtime.clock import Clock, Random
from runtime.contract.errors import ServiceError
from runtime.durable.dead_letters import Apply, DeadLetters, Source
from runtime.durable.stream import Batch, Diverged, Position, PositionPruned, Pull, StreamEvent, StreamHead
from runtime.storage.database import Database, DatabaseError, Guard, Row, StatementError, Superseded
from runtime.tasks import Backoff, wait_for_event
from runtime.telemetry import Metrics

POLL_SECONDS = 10.0
"""The longest time between two pulls, in seconds: for hints that were lost."""

_TRANSIENT_BACKOFF = Backoff(0.05, 30.0)
"""After an error that says nothing about the event."""
_HANDLER_BACKOFF = Backoff(0.1, 30.0)
"""After an attempt at an event whose handler failed."""


Ask = Callable[[str, Pull | StreamHead], Awaitable[Batch | Position]]
"""Makes a request to a publisher, by its name. Raises `ServiceError`."""


class SubscriptionState(Enum):
    """What a subscription is doing."""

    NEW = "NEW"
    """It has not run yet."""
    PULLING = "PULLING"
    """It asks the publisher for events, or applies them."""
    WAITING = "WAITING"
    """It has applied everything, and waits for a hint or the next poll."""
    BACKING_OFF = "BACKING_OFF"
    """A transient error occurred: it waits before it tries again."""
    STANDBY = "STANDBY"
    """The cursor lists event types that this version does not handle. Instances of the newer version apply all events."""
    STOPPED = "STOPPED"
    """It waits until an operator resumes it."""


class Cursor(msgspec.Struct, frozen=True):
    """How far one publisher's stream has been applied.

    Attributes:
        position: the position of the last event that was applied or skipped.
        types: for each type, the number after which its events are taken.
        stopped: why the subscription waits for an operator, or None.
    """

    position: Position
    types: dict[str, int]
    stopped: str | None


class Subscription:
    """Applies the events of one publisher for one service.

    Args:
        publisher: the name of the publishing service.
        attempts: the types of events to take, and how often the handler of each may fail.
        batched: whether several events may share a transaction, because the service's handlers make no requests.
        service: the name of the subscribing service.
        database: its database.
        ask: makes a request to a publisher.
        apply: runs the handlers of events.
    """

    def __init__(
        self,
        publisher: str,
        attempts: Mapping[str, int],
        *,
        batched: bool,
        service: str,
        database: Database,
        ask: Ask,
        apply: Apply,
        clock: Clock,
        random: Random,
        metrics: Metrics,
        log: logging.Logger,
    ) -> None:
        self.publisher = publisher
        self._attempts = attempts
        self._batched = batched
        self._service = service
        self._database = database
        self._ask = ask
        self._apply_events = apply
        self.dead_letters: DeadLetters = DeadLetters(publisher, database, apply)
        self._clock = clock
        self._random = random
        self._metrics = metrics
        self._log = log
        self._hint = asyncio.Event()
        self._failures = 0
        self._state = SubscriptionState.NEW
        self._reason = ""

    def __repr__(self) -> str:
        reason = f": {self._reason}" if self._reason else ""
        return f"<Subscription of {self._service} to {self.publisher} [{self._state.value}{reason}]>"

    def _enter(self, state: SubscriptionState, reason: str = "") -> None:
        """Change the state. The two states that need an operator are logged, once for each reason."""
        if (state, reason) == (self._state, self._reason):
            return
        self._state, self._reason = state, reason
        if state is SubscriptionState.STOPPED:
            self._log.error("the stream of %s stopped: %s; resume it when its cause is known", self.publisher, reason)
        elif state is SubscriptionState.STANDBY:
            self._log.error("the stream of %s stands down: a newer version of this service also takes %s", self.publisher, reason)

    def hint(self) -> None:
        """Pull now instead of at the next poll: there may be new events."""
        self._hint.set()

    async def run(self) -> None:
        """Apply events until cancelled."""
        while True:
            try:
                more = await self._step()
            except Superseded:
                continue  # another instance was faster: read its cursor
            except (ServiceError, DatabaseError) as error:
                await self._back_off(error)
                continue
            self._failures = 0
            if not more:
                if self._state is SubscriptionState.PULLING:
                    self._enter(SubscriptionState.WAITING)
                await wait_for_event(self._hint, self._random.jitter(POLL_SECONDS))
                self._hint.clear()

    async def _step(self) -> bool:
        """Pull once and apply the events. Return True if more events are waiting."""
        cursor = await self._cursor()
        if cursor.stopped is not None:
            self._enter(SubscriptionState.STOPPED, cursor.stopped)
            return False
        missing = cursor.types.keys() - self._attempts.keys()
        if missing:
            self._enter(SubscriptionState.STANDBY, ", ".join(sorted(missing)))
            return False
        self._enter(SubscriptionState.PULLING)
        try:
            batch = await self._ask(self.publisher, Pull(cursor.position, tuple(sorted(self._attempts))))
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
            self._log.error(
                "%s was restored: its events %d to %d of epoch %s were applied here and are gone there; resuming after %d",
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
                await self._apply_events(Source(self.publisher, epoch, last.seq), events, self._guard(position, last))
            except Superseded:
                raise
            except Exception as error:  # applying them one by one shows whose handler failed
                self._log.debug("a batch from %s failed (%r): applying its events one by one", self.publisher, error)
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
                await self._apply_events(source, (event,), self._guard(position, target))
            except Superseded:
                raise
            except Exception as error:
                if is_transient(error):
                    await self._back_off(error)
                    continue
                attempts = await self.dead_letters.count_attempt(source)
                self._log.exception("attempt %d at %s %d of %s failed", attempts, event.type, event.seq, self.publisher)
                if attempts >= self._attempts[event.type]:
                    await self._dead_letter(position, target, event, attempts, error)
                    return target
                await self._clock.sleep(_HANDLER_BACKOFF.delay(attempts, self._random))
            else:
                self._failures = 0
                self._enter(SubscriptionState.PULLING)
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
        """Move the cursor to the publisher's new branch. All events after the fork are taken."""
        types = {name: min(start, after.seq) for name, start in cursor.types.items()}
        async with self._database.transaction(self._guard(cursor.position, after)) as tx:
            await tx.execute("UPDATE callboard_cursors SET types = $2 WHERE publisher = $1", self.publisher, _types(types))
        return after

    # The cursor

    async def open(self) -> None:
        """Create the cursor of a new subscription, and record newly subscribed types, which begin at the current head.

        Raises:
            ServiceError: if the publisher's head is needed and the publisher cannot be reached.
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
            head = await self._ask(self.publisher, StreamHead())
            assert isinstance(head, Position)
            await self._database.execute(
                "UPDATE callboard_cursors SET types = $2 WHERE publisher = $1 AND types = $3",
                self.publisher, _types(known | dict.fromkeys(new, head.seq)), row["types"],
            )  # fmt: skip

    async def position(self) -> Position:
        """Return the committed position of this service."""
        return (await self._cursor()).position

    async def resume(self, *, skip: bool = False) -> None:
        """Resume a stopped subscription from the oldest retained event, or with `skip` from the current head.

        From then on the subscribed types are those of this version: a type that only a newer version takes no longer
        blocks it.
        """
        position = Position("", 0)
        if skip:
            head = await self._ask(self.publisher, StreamHead())
            assert isinstance(head, Position)
            position = head
        await self._database.execute(
            "UPDATE callboard_cursors SET epoch = $2, seq = $3, event_id = $4, types = $5, stopped = NULL WHERE publisher = $1",
            self.publisher, position.epoch, position.seq, position.event_id, _types(dict.fromkeys(self._attempts, 0)),
        )  # fmt: skip
        self.hint()

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
        self._enter(SubscriptionState.STOPPED, reason)
        return False

    # Failures

    async def _dead_letter(
        self, position: Position, target: Position, event: StreamEvent, attempts: int, error: Exception
    ) -> None:
        async with self._database.transaction(self._guard(position, target)) as tx:
            await self.dead_letters.add(tx, target.epoch, event, attempts, error)
        self._count("dead_letters_total")
        self._log.error(
            "%s %d of %s is a dead letter after %d attempts: %r", event.type, event.seq, self.publisher, attempts, error
        )

    async def _back_off(self, error: Exception) -> None:
        self._failures += 1
        self._enter(SubscriptionState.BACKING_OFF)
        if self._failures in (5, 10) or self._failures % 100 == 0:
            self._log.warning("the events of %s wait (%d tries so far): %s", self.publisher, self._failures, error)
        self._count("stream_retries_total")
        await self._clock.sleep(_TRANSIENT_BACKOFF.delay(min(self._failures, 10), self._random))

    def _count(self, name: str, amount: int = 1) -> None:
        self._metrics.count(name, amount, service=self._service, publisher=self.publisher)


def is_transient(error: BaseException) -> bool:
    """Return whether an error says nothing about the event itself, so that it is retried and never counted as an attempt."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_transient(part) for part in cast("BaseExceptionGroup[BaseException]", error).exceptions)
    if isinstance(error, ServiceError):
        return error.retryable
    return isinstance(error, DatabaseError) and not isinstance(error, StatementError)


def _types(types: Mapping[str, int]) -> str:
    return msgspec.json.encode(types, order="sorted").decode()


def _read_types(row: Row) -> dict[str, int]:
    return msgspec.json.decode(row["types"], type=dict[str, int])
