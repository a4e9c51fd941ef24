"""The cursor of a subscription: how far a service has applied one publisher's stream. It is stored in the service's own database."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from runtime.contract.schema import Schemas
from runtime.durable.stream import Position
from runtime.storage.database import Database, Guard, Row, Statement


class Failed(msgspec.Struct, frozen=True):
    """The event whose handler has failed last.

    Attributes:
        attempts: how often it has failed.
        retry_at: when it is tried again, on the clock's `steady` scale.
    """

    epoch: str
    seq: int
    attempts: int
    retry_at: float


class Cursor(msgspec.Struct, frozen=True):
    """How far one publisher's stream has been applied.

    Attributes:
        position: the position of the last event that was applied or skipped.
        types: for each type, the number after which its events are taken.
        stopped: why the subscription waits for an operator, or None.
        accepted: the digest of the version that an operator lets continue without the events that it cannot decode, or None.
        failed: the event whose handler has failed last, or None.
        set_aside: the number of the event that an operator makes a dead letter, or None.
        diverged: whether it was stopped because the publisher does not know the position.
    """

    position: Position
    types: dict[str, int]
    stopped: str | None
    accepted: str | None
    failed: Failed | None
    set_aside: int | None = None
    diverged: bool = False


class Cursors:
    """The row of one publisher in the tables of cursors and attempts.

    Args:
        publisher: the name of the publishing service.
        database: the subscriber's database.
    """

    def __init__(self, publisher: str, database: Database) -> None:
        self._publisher = publisher
        self._database = database

    async def read(self) -> Cursor | None:
        """Return the committed cursor, or None if the subscription is new."""
        row = await self._database.fetch_one(
            "SELECT c.epoch, c.seq, c.event_id, c.types, c.stopped, c.accepted, c.set_aside, c.diverged, "
            "a.epoch AS failed_epoch, a.seq AS failed_seq, a.attempts, a.retry_at "
            "FROM callboard_cursors c LEFT JOIN callboard_attempts a ON a.publisher = c.publisher WHERE c.publisher = $1",
            self._publisher,
        )
        if row is None:
            return None
        types = msgspec.json.decode(row["types"], type=dict[str, int])
        position = Position(row["epoch"], row["seq"], row["event_id"])
        return Cursor(position, types, row["stopped"], row["accepted"], _failed(row), row["set_aside"], bool(row["diverged"]))

    async def create(self, types: Mapping[str, int]) -> None:
        """Create the cursor of a new subscription, which begins at the oldest retained event."""
        await self._database.execute(
            "INSERT INTO callboard_cursors (publisher, epoch, seq, event_id, types) VALUES ($1, '', 0, '', $2) ON CONFLICT DO NOTHING",
            self._publisher,
            _text(types),
        )

    async def replace_types(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """Record other types, unless another instance has done it."""
        await self._database.execute(
            "UPDATE callboard_cursors SET types = $2 WHERE publisher = $1 AND types = $3",
            self._publisher,
            _text(after),
            _text(before),
        )

    def guard(self, before: Position, after: Position) -> Guard:
        """Return the statement that advances the cursor by compare-and-set."""
        return Guard(
            "UPDATE callboard_cursors SET epoch = $2, seq = $3, event_id = $4, set_aside = CASE WHEN set_aside > $3 THEN set_aside END "
            "WHERE publisher = $1 AND epoch = $5 AND seq = $6 AND stopped IS NULL",
            (self._publisher, after.epoch, after.seq, after.event_id, before.epoch, before.seq),
        )

    def advance(self, before: Position, after: Position) -> Statement:
        """Return the statement that advances the cursor further, in a transaction whose guard has moved it to `before`."""
        guard = self.guard(before, after)
        return guard.sql, guard.params

    async def move(self, before: Position, after: Position) -> Position:
        """Advance the cursor alone, past events that are not taken."""
        async with self._database.transaction(self.guard(before, after)):
            pass
        return after

    async def fork(self, cursor: Cursor, after: Position) -> Position:
        """Move the cursor to the publisher's new branch. All events after the fork are taken."""
        types = {name: min(start, after.seq) for name, start in cursor.types.items()}
        async with self._database.transaction(self.guard(cursor.position, after)) as tx:
            await tx.execute(
                "UPDATE callboard_cursors SET types = $2, set_aside = NULL WHERE publisher = $1", self._publisher, _text(types)
            )
        return after

    async def stop(self, at: Position, reason: str, *, diverged: bool) -> None:
        """Stop the subscription until an operator resumes it."""
        await self._database.execute(
            "UPDATE callboard_cursors SET stopped = $2, diverged = $5 WHERE publisher = $1 AND epoch = $3 AND seq = $4 AND stopped IS NULL",
            self._publisher, reason, at.epoch, at.seq, diverged,
        )  # fmt: skip

    async def resume(self, stopped: Cursor, position: Position, types: Mapping[str, int]) -> bool:
        """Let a subscription that has stopped continue at a position, with these types. Return whether it still was as given."""
        async with self._database.transaction() as tx:
            await tx.execute("DELETE FROM callboard_attempts WHERE publisher = $1", self._publisher)
            found = await tx.execute(
                "UPDATE callboard_cursors SET epoch = $2, seq = $3, event_id = $4, types = $5, stopped = NULL, diverged = FALSE, set_aside = NULL "
                "WHERE publisher = $1 AND stopped IS NOT NULL AND epoch = $6 AND seq = $7",
                self._publisher, position.epoch, position.seq, position.event_id, _text(types),
                stopped.position.epoch, stopped.position.seq,
            )  # fmt: skip
        return bool(found)

    async def accept(self, digest: str) -> bool:
        """Let the version with this digest continue without the events that it cannot decode, which become dead letters.

        Return whether there is such a subscription.
        """
        return bool(
            await self._database.execute(
                "UPDATE callboard_cursors SET accepted = $2 WHERE publisher = $1", self._publisher, digest
            )
        )

    async def set_aside(self, seq: int) -> bool:
        """Let the subscription continue without an event, which becomes a dead letter. Return whether there is such a subscription."""
        return bool(
            await self._database.execute("UPDATE callboard_cursors SET set_aside = $2 WHERE publisher = $1", self._publisher, seq)
        )


def digest_of(events: Mapping[str, type[Any]]) -> str:
    """Return a digest of what a version knows about a publisher's events: their types, fields, and values."""
    schemas = Schemas("")
    fields = {name: schemas.fields_of(cls) for name, cls in sorted(events.items())}
    known = msgspec.json.encode((fields, schemas.named), order="sorted")
    return hashlib.sha256(known).hexdigest()[:32]


def _failed(row: Row) -> Failed | None:
    if row["failed_seq"] is None:
        return None
    return Failed(row["failed_epoch"], row["failed_seq"], row["attempts"], row["retry_at"])


def _text(types: Mapping[str, int]) -> str:
    return msgspec.json.encode(types, order="sorted").decode()
