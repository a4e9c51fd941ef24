"""Dead letters: the events of a publisher whose handlers kept failing, and how often each event has failed so far."""

import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from runtime.contract.errors import CallboardError
from runtime.contract.messages import Struct
from runtime.durable.stream import StreamEvent
from runtime.storage.database import Database, Guard, Statement, Superseded, Transaction


class Source(msgspec.Struct, frozen=True):
    """The position of an event: its publisher, the epoch, and its number there."""

    publisher: str
    epoch: str
    seq: int


Advance = Callable[[StreamEvent], Statement]
"""Returns the statement that moves a cursor from the first event of a transaction to a later one."""

Apply = Callable[[Source, Sequence[StreamEvent], Guard, Advance | None], Awaitable[int]]
"""Runs the handlers of events in one transaction that the guard begins, and returns how many events it has applied.

With the last argument these may be fewer than all, so that nobody waits long for the transaction. Raises what a handler raises.
"""


class NeedsNewerVersion(CallboardError):
    """This version of the service cannot decode an event, so that it has to wait for a newer one."""


LAST_PAUSE = 240.0
"""The seconds before the last attempt at an event. Each earlier pause takes a sixth of the next."""


def pause_before_next(attempts: int, of: int) -> float:
    """Return the seconds to wait after so many failed attempts of so many."""
    return LAST_PAUSE / 6.0 ** max(of - 1 - attempts, 0)


class DeadLetter(Struct):
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


async def count_dead_letters(database: Database, publisher: str) -> int:
    """Return how many dead letters of a publisher's events there are, of at most 10,000."""
    row = await database.fetch_one(
        "SELECT count(*) AS n FROM (SELECT 1 FROM callboard_dead_letters WHERE publisher = $1 LIMIT 10000) AS found", publisher
    )
    return 0 if row is None else row["n"]


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

    async def count_attempt(self, source: Source, now: float, pause: Callable[[int], float]) -> tuple[int, float]:
        """Count a failed attempt at an event, across restarts. Return its number and when the next one is due.

        An attempt that another replica made at the same time does not count again.

        Args:
            now: the clock's `steady` time.
            pause: returns the seconds to the next attempt, from the number of this one.
        """
        async with self._database.transaction() as tx:
            await tx.execute(
                "DELETE FROM callboard_attempts WHERE publisher = $1 AND NOT (epoch = $2 AND seq = $3)",
                self._publisher,
                source.epoch,
                source.seq,
            )
            row = await tx.fetch_one("SELECT attempts, retry_at FROM callboard_attempts WHERE publisher = $1", self._publisher)
            if row is not None and now < row["retry_at"] <= now + LAST_PAUSE:
                return row["attempts"], row["retry_at"]
            attempts: int = 1 if row is None else row["attempts"] + 1
            retry_at = now + pause(attempts)
            await tx.execute(
                "INSERT INTO callboard_attempts (publisher, epoch, seq, attempts, retry_at) VALUES ($1, $2, $3, $4, $5) "
                "ON CONFLICT (publisher) DO UPDATE SET attempts = $4, retry_at = $5",
                self._publisher, source.epoch, source.seq, attempts, retry_at,
            )  # fmt: skip
        return attempts, retry_at

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
            "SELECT * FROM callboard_dead_letters WHERE publisher = $1 ORDER BY seq, at", self._publisher
        )
        return [DeadLetter(**row) for row in rows]

    async def retry_undecoded(self, log: logging.Logger) -> int:
        """Apply the events that an older version could not decode, if this one can. Return how many were applied.

        They come after events that were published later, as an operator has chosen.
        """
        applied = 0
        for letter in await self.all():
            if letter.attempts:
                continue  # a handler has failed
            try:
                await self.retry(letter)
            except (NeedsNewerVersion, Superseded):
                continue
            except Exception as error:
                log.warning("%s %d of %s stays a dead letter: %r", letter.type, letter.seq, letter.publisher, error)
            else:
                applied += 1
                log.warning(
                    "%s %d of %s, which an older version could not decode, was applied late",
                    letter.type, letter.seq, letter.publisher,
                )  # fmt: skip
        return applied

    async def failed_again(self, letter: DeadLetter, error: Exception) -> None:
        """Store the error of a retry."""
        await self._database.execute(
            "UPDATE callboard_dead_letters SET attempts = attempts + 1, error = $4 WHERE publisher = $1 AND epoch = $2 AND seq = $3",
            letter.publisher, letter.epoch, letter.seq, repr(error)[:2000],
        )  # fmt: skip

    async def retry(self, letter: DeadLetter) -> None:
        """Apply a dead letter again: its effects and its removal commit together.

        Raises:
            NeedsNewerVersion: if this version cannot decode it, or does not take its type.
            Superseded: if it is not a dead letter any more.
            Exception: what its handler raises; the dead letter stays.
        """
        event = StreamEvent(letter.seq, letter.event_id, letter.type, letter.body, letter.at, letter.trace)
        guard = Guard(
            "DELETE FROM callboard_dead_letters WHERE publisher = $1 AND epoch = $2 AND seq = $3",
            (letter.publisher, letter.epoch, letter.seq),
        )
        await self._apply(Source(letter.publisher, letter.epoch, letter.seq), (event,), guard, None)
