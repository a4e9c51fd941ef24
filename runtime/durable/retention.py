"""How long a stream retains its events: until they are old and every subscriber has applied them, or there are too many.

A subscriber that has not pulled for `FORGET_SECONDS` in which this service ran is forgotten, so that one that was removed
does not keep events for ever. Silence is measured on the monotonic clock: a change of the time of day forgets nobody.
"""

import logging
from datetime import UTC, datetime

import msgspec

from runtime.clock import Clock, rfc3339
from runtime.storage.database import Database
from runtime.storage.pruning import STEP, next_step

KEEP_SECONDS = 7 * 24 * 3600
"""The age, in seconds, below which events are retained."""
KEEP_AT_MOST = 1_000_000
"""The hard cap: the number of events that a stream retains at most, even if a subscriber has not applied them yet."""
FORGET_SECONDS = 30 * 24 * 3600
"""The hard age: the seconds of silence after which a subscriber is forgotten."""


_SKEW = 60.0
"""Seconds by which the clocks of two instances may differ. What was heard later than that was stored while a clock was ahead."""


_HEARD_LATER = "callboard_readers.heard > $3 AND callboard_readers.heard <= $4"


class KnownSubscriber(msgspec.Struct, frozen=True):
    """A subscriber for which a stream retains events.

    Attributes:
        seq: the number of the last event that it is known to have applied.
        silent: the seconds since it pulled, without the time in which the publisher was not running.
    """

    subscriber: str
    seq: int
    silent: float


class Retention:
    """The subscribers of one service's stream, and what is deleted from it."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._pulled: dict[str, tuple[int, float]] = {}
        """The subscribers that have pulled since they were stored last, with their highest position, and when they had it."""
        self._stored_at: float | None = None

    def pulled(self, subscriber: str, seq: int) -> None:
        """Record that a subscriber has applied everything up to an event.

        Of several, the highest counts: an instance of the subscriber may have read the position before another one advanced it.
        """
        known = self._pulled.get(subscriber)
        if known is None or known[0] <= seq:
            self._pulled[subscriber] = seq, self._clock.steady()

    async def subscribers(self) -> list[KnownSubscriber]:
        """Return the known subscribers as of the last pruning, the one that is furthest behind first."""
        return await self._database.fetch(
            "SELECT subscriber, seq, silent FROM callboard_readers ORDER BY seq, subscriber", into=KnownSubscriber
        )

    async def forget(self, subscriber: str) -> bool:
        """Retain no more events for a subscriber. Return whether it was known. If it pulls again, it is known again."""
        self._pulled.pop(subscriber, None)
        return bool(await self._database.execute("DELETE FROM callboard_readers WHERE subscriber = $1", subscriber))

    async def _store(self) -> None:
        now, latest = self._clock.monotonic(), self._clock.steady() + _SKEW
        passed = 0.0 if self._stored_at is None else now - self._stored_at
        pulled = dict(self._pulled)
        async with self._database.transaction() as tx:
            # each instance adds the time that it has run, but nobody is silent for longer than since it was heard
            await tx.execute(
                "UPDATE callboard_readers SET silent = CASE WHEN heard > 0 AND heard <= $2 AND silent + $1 > $2 - heard "
                "THEN $2 - heard ELSE silent + $1 END",
                passed,
                latest,
            )
            for subscriber, (seq, heard) in pulled.items():  # another instance may have stored what it has heard later
                await tx.execute(
                    "INSERT INTO callboard_readers (subscriber, seq, silent, heard) VALUES ($1, $2, 0, $3) "
                    "ON CONFLICT (subscriber) DO UPDATE SET silent = 0, "
                    f"seq = CASE WHEN {_HEARD_LATER} THEN callboard_readers.seq ELSE $2 END, "
                    f"heard = CASE WHEN {_HEARD_LATER} THEN callboard_readers.heard ELSE $3 END",
                    subscriber,
                    seq,
                    heard,
                    latest,
                )
        self._stored_at = now
        self._pulled = {name: found for name, found in self._pulled.items() if pulled.get(name) != found}  # others came meanwhile

    async def prune(
        self,
        log: logging.Logger,
        *,
        keep_seconds: float = KEEP_SECONDS,
        keep_at_most: int = KEEP_AT_MOST,
        forget_seconds: float = FORGET_SECONDS,
    ) -> int:
        """Delete the prefix that is old and applied by every known subscriber, or beyond the hard cap. Return the number of events."""
        await self._store()
        for gone in await self._database.fetch(
            "SELECT subscriber, seq, silent FROM callboard_readers WHERE silent > $1", forget_seconds, into=KnownSubscriber
        ):
            await self.forget(gone.subscriber)
            log.warning(
                "%s has not pulled the stream for %d days, and is forgotten: events after %d are no longer kept for it",
                gone.subscriber, gone.silent // 86_400, gone.seq,
            )  # fmt: skip
        limits = await self._database.fetch_one(
            "SELECT seq, pruned, (SELECT min(seq) FROM callboard_readers) AS taken FROM callboard_stream_head"
        )
        assert limits is not None, "the migration inserts it"
        last = limits["seq"] if limits["taken"] is None else limits["taken"]
        first = pruned = int(limits["pruned"])
        looked, young = pruned, False
        while looked < last and not young:
            until = min(looked + STEP, last)
            old, young = await self._old_between(looked, until, keep_seconds)
            pruned, looked = await self._delete(pruned, old), until
        return await self._delete(pruned, limits["seq"] - keep_at_most) - first

    async def _old_between(self, after: int, until: int, keep_seconds: float) -> tuple[int, bool]:
        """Return the number of the last old event of a range, and whether a younger one ends the prefix there.

        An event from the future, which was written while the clock was wrong, is as old as those around it. A clock that is
        set forward makes no event old.
        """
        today, steady = self._clock.timestamp(), self._clock.steady()
        oldest, latest = (
            rfc3339(datetime.fromtimestamp(at, UTC)) for at in (min(today, steady) - keep_seconds, max(today, steady))
        )
        young = await self._database.fetch_one(
            "SELECT min(seq) AS seq FROM callboard_stream WHERE seq > $1 AND seq <= $2 AND at >= $3 AND at <= $4",
            after, until, oldest, latest,
        )  # fmt: skip
        first_young = None if young is None else young["seq"]
        old = await self._database.fetch_one(
            "SELECT max(seq) AS seq FROM callboard_stream WHERE seq > $1 AND seq < $2 AND at < $3",
            after, until + 1 if first_young is None else first_young, oldest,
        )  # fmt: skip
        return after if old is None or old["seq"] is None else old["seq"], first_young is not None

    async def _delete(self, pruned: int, until: int) -> int:
        """Delete the events after one and up to another, in steps. Return the number up to which events are deleted now."""
        rows = STEP
        while pruned < until:
            upto, began = min(pruned + rows, until), self._clock.monotonic()
            async with self._database.transaction() as tx:
                await tx.execute("DELETE FROM callboard_stream WHERE seq <= $1", upto)
                await tx.execute("UPDATE callboard_stream_head SET pruned = $1 WHERE pruned < $1", upto)
            pruned, rows = upto, next_step(rows, self._clock.monotonic() - began)
        return pruned
