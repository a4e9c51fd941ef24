"""Leases of timers: of all instances of a service that share a database, one runs a timer at each of its ticks.

A row of the database says when the timer runs next, and which instance is running it now. To run it, an instance enters
itself by compare-and-set, and renews its lease until the run has ended. If it dies meanwhile, another one takes over: when the
network says that it is gone and its lease is not renewed, or else when the lease has expired.

The times are those of the database's server, the one clock that all instances have in common.
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
_RENEW_SECONDS = 1.5
_GONE_SECONDS = 3.5
"""The seconds for which the lease of an instance that the network has lost is not renewed before it counts as gone. One that is stopping, or
that is cut off, renews it."""
_LOOK_SECONDS = 1.0
"""After how many seconds an instance looks again whether another one has ended its run."""
_LONGEST_WAIT = 60.0
"""The seconds after which it looks again in any case: the clock may have been set."""
_NOW = "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


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
        self._lost: tuple[float, float] | None = None
        """The lease of that owner when the network had lost it, and when that was noticed."""

    async def take(self) -> float:
        """Take the lease if the timer is due. Return 0 then, and otherwise the seconds after which to try again.

        Raises:
            DatabaseError: if the database failed.
        """
        row = await self._database.fetch_one(
            f"SELECT due, owner, lease, {_NOW} AS now FROM callboard_timers WHERE timer = $1", self._timer
        )
        if row is None:
            await self._database.execute(
                f"INSERT INTO callboard_timers (timer, due, owner, lease) VALUES ($1, {_NOW} + $2, '', 0) ON CONFLICT DO NOTHING",
                self._timer,
                self._seconds,
            )
            return min(self._seconds, _LONGEST_WAIT)
        if self._is_held(row):
            return min(_LOOK_SECONDS, self._seconds)
        wait: float = row["due"] - row["now"]
        if 0 < wait <= self._seconds + 1:  # one that is later was stored while the clock was ahead, and is due
            return min(wait, _LONGEST_WAIT)
        taken = await self._database.execute(
            f"UPDATE callboard_timers SET owner = $2, lease = {_NOW} + $3 WHERE timer = $1 AND owner = $4 AND lease = $5 AND due = $6",
            self._timer, self._owner, LEASE_SECONDS, row["owner"], row["lease"], row["due"],
        )  # fmt: skip
        if not taken:
            return min(_LOOK_SECONDS, self._seconds)
        ticks = int(-wait // self._seconds) if wait < 0 else 0
        if ticks:
            self._missed(ticks)
        return 0.0

    def _is_held(self, row: Row) -> bool:
        """Return whether another instance is running the timer."""
        owner: str = row["owner"]
        lease: float = row["lease"]
        if owner in ("", self._owner) or not 0 < lease - row["now"] <= LEASE_SECONDS + 1:
            return False
        if self._alive(owner):
            self._seen, self._lost = owner, None
            return True
        if owner != self._seen:
            return True  # it was never seen here, so that nothing is known of it
        if self._lost is None or self._lost[0] != lease:
            self._lost = lease, self._clock.monotonic()
        return self._clock.monotonic() - self._lost[1] < _GONE_SECONDS

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
                    f"UPDATE callboard_timers SET lease = {_NOW} + $3 WHERE timer = $1 AND owner = $2",
                    self._timer, self._owner, LEASE_SECONDS,
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
                f"UPDATE callboard_timers SET owner = '', lease = 0, due = {_NOW} + $3 WHERE timer = $1 AND owner = $2",
                self._timer, self._owner, self._seconds,
            )  # fmt: skip
        except DatabaseError as error:
            self._log.warning("the lease of the timer %s was not released, and expires: %s", self._timer, error)
