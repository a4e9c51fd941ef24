"""Dead letters: the events of a publisher whose handlers kept failing, and how often each event has failed so far."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from runtime.durable.stream import StreamEvent
from runtime.storage.database import Database, Guard, Transaction


class Source(msgspec.Struct, frozen=True):
    """The position of an event: its publisher, the epoch, and its number there."""

    publisher: str
    epoch: str
    seq: int


Apply = Callable[[Source, Sequence[StreamEvent], Guard], Awaitable[None]]
"""Runs the handlers of events in one transaction that the guard begins. Raises what a handler raises."""


class DeadLetter(msgspec.Struct, frozen=True):
    """An event whose handler kept failing, with the last error."""

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


class DeadLetters:
    """The dead letters of one publisher's events in a subscriber's database.

    Args:
        publisher: the name of the publisher.
        database: the subscriber's database.
        apply: runs the handlers of events.
    """

    def __init__(self, publisher: str, database: Database, apply: Apply) -> None:
        self._publisher = publisher
        self._database = database
        self._apply = apply

    async def count_attempt(self, source: Source) -> int:
        """Count a failed attempt at an event, across restarts, and return its number."""
        async with self._database.transaction() as tx:
            await tx.execute(
                "DELETE FROM callboard_attempts WHERE publisher = $1 AND NOT (epoch = $2 AND seq = $3)",
                self._publisher,
                source.epoch,
                source.seq,
            )
            rows = await tx.fetch(
                "INSERT INTO callboard_attempts (publisher, epoch, seq, attempts) VALUES ($1, $2, $3, 1) "
                "ON CONFLICT (publisher) DO UPDATE SET attempts = callboard_attempts.attempts + 1 RETURNING attempts",
                self._publisher, source.epoch, source.seq,
            )  # fmt: skip
        attempts: int = rows[0]["attempts"]
        return attempts

    async def add(self, tx: Transaction, epoch: str, event: StreamEvent, attempts: int, error: Exception) -> None:
        """Store an event as a dead letter."""
        await tx.execute(
            "INSERT INTO callboard_dead_letters (publisher, epoch, seq, event_id, type, body, at, trace, attempts, error) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) "
            "ON CONFLICT (publisher, epoch, seq) DO UPDATE SET attempts = $9, error = $10",
            self._publisher, epoch, event.seq, event.id, event.type, event.body, event.at, event.trace, attempts, repr(error)[:2000],
        )  # fmt: skip

    async def all(self) -> list[DeadLetter]:
        """Return all dead letters, oldest first."""
        rows = await self._database.fetch(
            "SELECT * FROM callboard_dead_letters WHERE publisher = $1 ORDER BY at, seq", self._publisher
        )
        return [DeadLetter(**row) for row in rows]

    async def retry(self, letter: DeadLetter) -> None:
        """Apply a dead letter again: its effects and its removal commit together.

        Raises:
            Superseded: if it is not a dead letter any more.
            Exception: what its handler raises; the dead letter stays.
        """
        event = StreamEvent(letter.seq, letter.event_id, letter.type, letter.body, letter.at, letter.trace)
        guard = Guard(
            "DELETE FROM callboard_dead_letters WHERE publisher = $1 AND epoch = $2 AND seq = $3",
            (letter.publisher, letter.epoch, letter.seq),
        )
        await self._apply(Source(letter.publisher, letter.epoch, letter.seq), (event,), guard)
