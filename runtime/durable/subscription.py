"""The subscriber's side of a stream: pull what follows the cursor, and apply each event exactly once, in order.

The cursor is stored in the subscriber's own database. The first statement of an event's transaction advances it by
compare-and-set, the handler's effects follow, and both commit. A replica that lost the race updates no row and starts
over from the new cursor. This compare-and-set is the whole exactly-once argument.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import msgspec

from runtime.clock import Clock, Random
from runtime.contract.errors import CallboardError, DeadlineExceeded, ServiceError
from runtime.contract.messages import Request
from runtime.durable.cursor import Cursor, Cursors, digest_of
from runtime.durable.dead_letters import (
    LAST_PAUSE,
    Apply,
    DeadLetters,
    NeedsNewerVersion,
    Source,
    count_dead_letters,
    pause_before_next,
)
from runtime.durable.other_instance import OtherInstance
from runtime.durable.progress import Progress, SubscriptionState
from runtime.durable.stream import (
    MOST_ROWS,
    Batch,
    Diverged,
    EventTooLarge,
    Position,
    PositionPruned,
    Pull,
    StreamEvent,
    StreamHead,
)
from runtime.metrics import Metrics
from runtime.repeats import Repeats, fault
from runtime.storage.database import Database, DatabaseError, Statement, StatementError, Superseded
from runtime.tasks import Backoff, wait_for_event

T = TypeVar("T")

POLL_SECONDS = 10.0
"""The longest time between two pulls, in seconds: for hints that were lost."""

_TRANSIENT_BACKOFF = Backoff(0.05, 30.0)
"""After an error that says nothing about the event."""
_FEW_ROWS = 100
"""The number of events to look at in one pull if each needs its own transaction: after a failure the rest is pulled again."""
_COUNT_SECONDS = 30.0
"""After so many seconds the dead letters are counted again: another instance may have written some, or an operator dropped them."""
_SELDOM = 60
"""After how many looks at an event that needs a newer version it is logged again."""


class Ask(Protocol):
    """Makes a request to a service, by its name. Raises `ServiceError`."""

    async def __call__(self, service: str, message: Request[T], /) -> T: ...


class Taken(msgspec.Struct, frozen=True):
    """A type of event that a service takes.

    Attributes:
        cls: the class of the event.
        attempts: how often its handler may fail before the event is a dead letter.
    """

    cls: type[Any]
    attempts: int


class SetAside(CallboardError):
    """An operator has made an event a dead letter, so that those after it are applied."""


class _Pause(CallboardError):
    """The next event is not tried before so many seconds have passed, because its handler has failed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Subscription:
    """Applies the events of one publisher for one service.

    Args:
        publisher: the name of the publishing service.
        taken: the types of events to take.
        batched: whether several events may share a transaction, because the service's handlers make no requests.
        service: the name of the subscribing service.
        database: its database.
        ask: makes a request to a publisher.
        apply: runs the handlers of events.
    """

    def __init__(
        self,
        publisher: str,
        taken: Mapping[str, Taken],
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
        repeats: Repeats,
    ) -> None:
        self.publisher = publisher
        self._taken = taken
        self._cursors = Cursors(publisher, database)
        self._batched = batched
        self._limit = MOST_ROWS if batched else _FEW_ROWS
        self._service = service
        self._database = database
        self._ask = ask
        self._apply_events = apply
        self.dead_letters: DeadLetters = DeadLetters(publisher, database, apply)
        self._clock = clock
        self._random = random
        self._metrics = metrics
        self._log = log
        self._repeats = repeats
        self._hint = asyncio.Event()
        self._failures = 0
        self._looks = 0
        self._must_pull = False
        """Whether a hint has come that says more than how many events there are."""
        self._count_at = 0.0
        self.progress: Progress = Progress(service, publisher, clock, metrics, log)
        self._other = OtherInstance(self._cursors, self.progress, clock, random)

    def __repr__(self) -> str:
        return f"<Subscription of {self._service} to {self.publisher} [{self.progress!r}]>"

    def hint(self, head: int | None = None) -> None:
        """Pull now instead of at the next poll: there may be new events, up to the one with the number `head`."""
        if head is None or head < self.progress.applied:  # the publisher has joined, or was restored: it has to be asked
            self._must_pull = True
        if head is not None:
            self.progress.hinted(head)
        self._hint.set()

    async def run(self) -> None:
        """Apply events until cancelled."""
        undecoded = True
        while True:
            try:
                if undecoded:
                    self._count("events_applied_total", await self.dead_letters.retry_undecoded(self._log))
                    undecoded = False
                more = await self._step()
            except Superseded:  # another instance was faster: read its cursor
                await self._other.was_faster()
                continue
            except NeedsNewerVersion as error:
                await self._wait_for_newer_version(error)
                continue
            except _Pause as pause:
                await self._clock.sleep(min(pause.seconds, POLL_SECONDS))
                continue
            except Exception as error:
                if not isinstance(error, ServiceError | DatabaseError) and not is_transient(error):
                    raise
                await self._back_off(error)
                continue
            self._failures = 0
            if not more:
                if self.progress.state is SubscriptionState.PULLING:
                    self.progress.enter(SubscriptionState.WAITING)
                await self._count_dead_letters()
                await self._wait()

    async def _wait(self) -> None:
        """Wait for a hint or the next poll, and then until no other instance applies the events that the hint is about."""
        ends = self._clock.monotonic() + self._random.jitter(POLL_SECONDS)
        while True:
            hinted = await wait_for_event(self._hint, max(ends - self._clock.monotonic(), 0.0))
            must_pull, self._must_pull = self._must_pull, False
            self._hint.clear()
            if not hinted or must_pull or not await self._other.applies():
                return

    async def _step(self) -> bool:
        """Pull once and apply the events. Return True if more events are waiting."""
        cursor = await self._cursor()
        self.progress.reached(cursor.position.seq)
        if cursor.stopped is not None:
            self.progress.enter(SubscriptionState.STOPPED, cursor.stopped)
            return False
        missing = cursor.types.keys() - self._taken.keys()
        if missing and not self._accepted(cursor):
            self.progress.enter(SubscriptionState.STANDBY, ", ".join(sorted(missing)))
            return False
        if self.progress.state in (
            SubscriptionState.NEW,
            SubscriptionState.WAITING,
            SubscriptionState.STANDBY,
            SubscriptionState.STOPPED,
        ):
            self.progress.enter(SubscriptionState.PULLING)
        try:
            batch = await self._ask(self.publisher, Pull(cursor.position, tuple(sorted(cursor.types)), self._limit))
        except Diverged as error:
            return await self._stop(
                cursor,
                f"{self.publisher} does not know event {cursor.position.seq} of epoch {cursor.position.epoch} (its head is {error.head})",
                diverged=True,
            )
        except PositionPruned as error:
            return await self._stop(
                cursor,
                f"{self.publisher} has pruned events {cursor.position.seq + 1} to {error.pruned} that were not applied yet",
            )
        except EventTooLarge as error:
            return await self._meet_too_large(cursor, error)
        position = cursor.position
        if batch.forked_at is not None:
            self._log.error(
                "%s was restored: its events %d to %d of epoch %s were applied here and are gone there; resuming after %d",
                self.publisher, batch.forked_at.seq + 1, position.seq, position.epoch, batch.forked_at.seq,
            )  # fmt: skip
            self._count("stream_forks_total")
            position = await self._cursors.fork(cursor, batch.forked_at)
            cursor = await self._cursor()
        await self._apply(position, batch, cursor)
        self.progress.advance()
        self.progress.reached(batch.scanned.seq, batch.head)
        self.progress.enter(SubscriptionState.PULLING)
        return batch.scanned.seq < batch.head

    async def _apply(self, position: Position, batch: Batch, cursor: Cursor) -> None:
        epoch = batch.scanned.epoch
        events = [event for event in batch.events if event.seq > cursor.types.get(event.type, 0)]
        failed = None if cursor.failed is None or cursor.failed.epoch != epoch else cursor.failed
        if (
            self._batched
            and not any(event.seq == cursor.set_aside for event in events)
            and all(event.type in self._taken and (failed is None or event.seq != failed.seq) for event in events)
        ):
            try:
                while len(events) > 1:
                    applied = await self._apply_some(position, epoch, events)
                    position = Position(epoch, events[applied - 1].seq, events[applied - 1].id)
                    events = events[applied:]
            except Superseded:
                raise
            except Exception as error:  # applying them one by one shows whose handler failed
                self._log.debug("a batch from %s failed (%r): applying its events one by one", self.publisher, error)
        for event in events:
            target = Position(epoch, event.seq, event.id)
            if event.seq == cursor.set_aside:
                await self._set_aside(position, target, event)
            else:
                if failed is not None and event.seq == failed.seq and (pause := self._remaining(failed.retry_at)) > 0:
                    self.progress.hold(event, f"its handler has failed {failed.attempts} times")
                    raise _Pause(pause)
                await self._apply_one(position, target, event, cursor)
            position = target
        if position != batch.scanned:
            await self._cursors.move(position, batch.scanned)

    async def _apply_some(self, position: Position, epoch: str, events: Sequence[StreamEvent]) -> int:
        """Apply the first of some events in one transaction. Return how many. Raises what a handler raises."""
        first = Position(epoch, events[0].seq, events[0].id)

        def advance(event: StreamEvent) -> Statement:
            return self._cursors.advance(first, Position(epoch, event.seq, event.id))

        guard = self._cursors.guard(position, first)
        applied = await self._apply_events(Source(self.publisher, epoch, first.seq), events, guard, advance)
        self._count("events_applied_total", applied)
        return applied

    async def _apply_one(self, position: Position, target: Position, event: StreamEvent, cursor: Cursor) -> None:
        """Apply an event, or make it a dead letter.

        Raises:
            NeedsNewerVersion: if this version cannot decode it, and no operator lets it continue without.
            _Pause: if its handler has failed, and is tried again later.
            Exception: what the handler raised, if it says nothing about the event.
        """
        source = Source(self.publisher, target.epoch, target.seq)
        try:
            await self._apply_events(source, (event,), self._cursors.guard(position, target), None)
        except Superseded:
            raise
        except NeedsNewerVersion as error:
            if not self._accepted(cursor):
                raise
            await self._dead_letter(position, target, event, 0, error)
        except Exception as error:
            self.progress.hold(event, error)
            if is_transient(error):
                raise
            limit = self._taken[event.type].attempts
            attempts, retry_at = await self.dead_letters.count_attempt(
                source, self._clock.steady(), lambda failed: self._random.jitter(pause_before_next(failed, limit))
            )
            self._repeats.log(
                self._log, logging.ERROR, (self.publisher, event.type, fault(error)),
                "attempt %d of %d at %s %d of %s failed", attempts, limit, event.type, event.seq, self.publisher, exc_info=error,
            )  # fmt: skip
            if attempts < limit:
                self.progress.enter(
                    SubscriptionState.BACKING_OFF, f"{event.type} {event.seq} has failed {attempts} times of {limit}"
                )
                raise _Pause(self._remaining(retry_at)) from error
            await self._dead_letter(position, target, event, attempts, error)
        else:
            self._failures = 0
            self.progress.enter(SubscriptionState.PULLING)
            self._count("events_applied_total")
        self.progress.advance()

    async def _set_aside(self, position: Position, target: Position, event: StreamEvent) -> None:
        """Make an event a dead letter because an operator asks for it."""
        attempts = self.progress.held_tries or 1  # those without attempts are applied late by a newer version
        await self._dead_letter(position, target, event, attempts, SetAside("an operator has set it aside"))
        self.progress.advance()

    async def _meet_too_large(self, cursor: Cursor, error: EventTooLarge) -> bool:
        """Wait before an event that the network does not carry, or continue after it if an operator asks for it."""
        if error.seq != cursor.set_aside:
            self.progress.too_large(error)
            return False
        event = StreamEvent(error.seq, error.event_id, error.event, "", error.written_at, "")  # its body stays at the publisher
        await self._set_aside(cursor.position, Position(error.epoch, error.seq, error.event_id), event)
        return True

    def _remaining(self, retry_at: float) -> float:
        """Return the seconds until a stored time. One that is further away was stored while the clock was ahead, and is now."""
        remaining = retry_at - self._clock.steady()
        return remaining if 0 < remaining <= LAST_PAUSE else 0.0

    def _accepted(self, cursor: Cursor) -> bool:
        """Return whether an operator lets this version continue without the events that it cannot decode."""
        return cursor.accepted is not None and cursor.accepted == digest_of({name: one.cls for name, one in self._taken.items()})

    # The cursor

    async def open(self) -> None:
        """Create the cursor of a new subscription, and record newly subscribed types, which begin at the current head.

        Raises:
            ServiceError: if the publisher's head is needed and the publisher cannot be reached.
        """
        cursor = await self._cursors.read()
        if cursor is None:
            await self._cursors.create(dict.fromkeys(self._taken, 0))
            return
        new = self._taken.keys() - cursor.types.keys()
        if new:
            head = await self._ask(self.publisher, StreamHead())
            await self._cursors.replace_types(cursor.types, cursor.types | dict.fromkeys(new, head.seq))

    async def position(self) -> Position:
        """Return the committed position of this service."""
        return (await self._cursor()).position

    async def _cursor(self) -> Cursor:
        cursor = await self._cursors.read()
        if cursor is None or self._taken.keys() - cursor.types.keys():
            await self.open()
            cursor = await self._cursors.read() or cursor
            assert cursor is not None
        return cursor

    async def _stop(self, cursor: Cursor, reason: str, *, diverged: bool = False) -> bool:
        await self._cursors.stop(cursor.position, reason, diverged=diverged)
        self._count("streams_stopped_total")
        self.progress.enter(SubscriptionState.STOPPED, reason)
        return False

    # Failures

    async def _dead_letter(
        self, position: Position, target: Position, event: StreamEvent, attempts: int, error: Exception
    ) -> None:
        async with self._database.transaction(self._cursors.guard(position, target)) as tx:
            await self.dead_letters.add(tx, target.epoch, event, attempts, error)
        self.progress.dead_letters += 1
        self._count("dead_letters_total")
        self._repeats.log(
            self._log, logging.ERROR, (self.publisher, event.type, "dead letter"),
            "%s %d of %s is a dead letter after %d attempts: %r", event.type, event.seq, self.publisher, attempts, error,
        )  # fmt: skip

    async def _count_dead_letters(self) -> None:
        now = self._clock.monotonic()
        if now >= self._count_at:
            self._count_at = now + _COUNT_SECONDS
            try:
                self.progress.dead_letters = await count_dead_letters(self._database, self.publisher)
            except DatabaseError as error:
                self._log.debug("dead letters cannot be counted: %s", error)

    async def _back_off(self, error: Exception) -> None:
        self._failures += 1
        self.progress.enter(SubscriptionState.BACKING_OFF)
        if self._failures in (5, 10) or self._failures % 100 == 0 or isinstance(error, DeadlineExceeded | TimeoutError):
            self._log.warning("the events of %s wait (%d tries so far): %s", self.publisher, self._failures, error)
        self._count("stream_retries_total")
        await self._clock.sleep(_TRANSIENT_BACKOFF.delay(min(self._failures, 10), self._random))

    async def _wait_for_newer_version(self, error: NeedsNewerVersion) -> None:
        self.progress.enter(SubscriptionState.NEEDS_NEWER_VERSION, str(error))
        self._looks += 1
        if self._looks % _SELDOM == 0:
            self._log.error("the stream of %s still waits for a newer version of this service: %s", self.publisher, error)
        await self._clock.sleep(self._random.jitter(POLL_SECONDS))

    def _count(self, name: str, amount: int = 1) -> None:
        self._metrics.count(name, amount, service=self._service, publisher=self.publisher)


def is_transient(error: BaseException) -> bool:
    """Return whether an error says nothing about the event itself, so that it is retried and never counted as an attempt."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_transient(part) for part in cast("BaseExceptionGroup[BaseException]", error).exceptions)
    if isinstance(error, ServiceError):
        return error.retryable
    if isinstance(error, TimeoutError):
        return True  # a pause of the process is enough for it
    return isinstance(error, DatabaseError) and not isinstance(error, StatementError)
