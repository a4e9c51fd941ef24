"""Leases of timers: of all instances of a service that share a database, one runs a timer at each of its ticks.

A row of the database says when the timer runs next, and which instance is running it now. To run it, an instance enters
itself by compare-and-set, and renews its lease until the run has ended. If it dies meanwhile, another one takes over: as soon
as the network says that it is gone, or else when the lease has expired.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from runtime.clock import Clock
from runtime.storage.database import Database, DatabaseError, Row
from runtime.tasks import finish

LEASE_SECONDS = 10.0
"""The seconds for which a lease holds, unless it is renewed."""
_RENEW_SECONDS = 3.0
_SKEW = 5.0
"""The seconds by which the clocks of two instances may differ."""
_LOOK_SECONDS = 1.0
"""After how many seconds an instance looks again whether another one has ended its run."""
_LONGEST_WAIT = 60.0
"""The seconds after which it looks again in any case: the clock may have been set."""


class TimerLease:
    """The lease of one timer, for one instance.

    Args:
        timer: its name, which is unique within the service.
        seconds: its interval.
        owner: the id of the instance.
        alive: returns whether the instance with an id is known to run.
        missed: called with the number of ticks at which no instance has run the timer.
    """

    def __init__(
        self,
        database: Database,
        timer: str,
        seconds: float,
        *,
        owner: str,
        alive: Callable[[str], bool],
        clock: Clock,
        missed: Callable[[int], None],
        log: logging.Logger,
    ) -> None:
        self._database = database
        self._timer = timer
        self._seconds = seconds
        self._owner = owner
        self._alive = alive
        self._clock = clock
        self._missed = missed
        self._log = log
        self._seen = ""
        """The owner that was seen alive while it had the lease."""

    async def take(self) -> float:
        """Take the lease if the timer is due. Return 0 then, and otherwise the seconds after which to try again.

        Raises:
            DatabaseError: if the database failed.
        """
        now = self._clock.steady()
        row = await self._database.fetch_one("SELECT due, owner, lease FROM callboard_timers WHERE timer = $1", self._timer)
        if row is None:
            await self._database.execute(
                "INSERT INTO callboard_timers (timer, due, owner, lease) VALUES ($1, $2, '', 0) ON CONFLICT DO NOTHING",
                self._timer,
                now + self._seconds,
            )
            return min(self._seconds, _LONGEST_WAIT)
        if self._is_held(row, now):
            return min(_LOOK_SECONDS, self._seconds)
        wait = row["due"] - now
        if 0 < wait <= self._seconds + _SKEW:  # one that is later was stored while the clock was ahead, and is due
            return float(min(wait, _LONGEST_WAIT))
        taken = await self._database.execute(
            "UPDATE callboard_timers SET owner = $2, lease = $3 WHERE timer = $1 AND owner = $4 AND lease = $5 AND due = $6",
            self._timer, self._owner, now + LEASE_SECONDS, row["owner"], row["lease"], row["due"],
        )  # fmt: skip
        if not taken:
            return min(_LOOK_SECONDS, self._seconds)
        ticks = int(-wait // self._seconds) if wait < 0 else 0
        if ticks:
            self._missed(ticks)
        return 0.0

    def _is_held(self, row: Row, now: float) -> bool:
        """Return whether another instance is running the timer."""
        owner: str = row["owner"]
        left: float = row["lease"] - now
        if owner in ("", self._owner) or not -_SKEW < left < LEASE_SECONDS + _SKEW:
            return False
        if self._alive(owner):
            self._seen = owner
            return True
        return owner != self._seen  # it was never seen here, so that nothing is known of it

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[None, None]:
        """Renew the lease that was taken until the `async with` block ends. Then the next interval begins."""
        renewing = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            renewing.cancel()
            await finish(self._release())

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(_RENEW_SECONDS)
            try:
                renewed = await self._database.execute(
                    "UPDATE callboard_timers SET lease = $3 WHERE timer = $1 AND owner = $2",
                    self._timer, self._owner, self._clock.steady() + LEASE_SECONDS,
                )  # fmt: skip
            except DatabaseError as error:
                self._log.warning("the lease of the timer %s was not renewed: %s", self._timer, error)
                continue
            if not renewed:
                self._log.warning("another instance has taken over the timer %s, although its run goes on here", self._timer)
                return

    async def _release(self) -> None:
        try:
            await self._database.execute(
                "UPDATE callboard_timers SET owner = '', lease = 0, due = $3 WHERE timer = $1 AND owner = $2",
                self._timer, self._owner, self._clock.steady() + self._seconds,
            )  # fmt: skip
        except DatabaseError as error:
            self._log.warning("the lease of the timer %s was not released, and expires: %s", self._timer, error)
