"""The rides. Unique indexes in the database ensure that a rider and a scooter each have at most one active ride."""

from datetime import datetime, timedelta
from uuid import UUID

from runtime import Clock, Database, Random, Row, Transaction
from services.rides.messages import Ride, RidePage

_MAX_NUMBER = 2**62


class Store:
    """Reads and writes the rides. Methods that write take the transaction of the caller."""

    def __init__(self, db: Database, clock: Clock, random: Random) -> None:
        self._db = db
        self._clock = clock
        self._random = random

    async def begin(self, tx: Transaction, user_id: str, scooter_id: str) -> Ride | None:
        """Add an active ride and return it, or return None if the rider or the scooter already has one."""
        ride = Ride(str(self._random.uuid7()), user_id, scooter_id, "active", self._clock.now())
        inserted = await tx.execute(
            "INSERT INTO rides (id, number, user_id, scooter_id, state, started_at, began) "
            "VALUES ($1, (SELECT COALESCE(MAX(number), 0) + 1 FROM rides), $2, $3, 'active', $4, $5) ON CONFLICT DO NOTHING",
            ride.id, user_id, scooter_id, ride.started_at, self._clock.steady(),
        )  # fmt: skip
        return ride if inserted else None

    async def active_ride(self, user_id: str, tx: Transaction | None = None) -> str | None:
        """Return the id of the user's active ride, or None."""
        row = await (tx or self._db).fetch_one("SELECT id FROM rides WHERE user_id = $1 AND state = 'active'", user_id)
        return None if row is None else row["id"]

    async def get(self, ride_id: str, tx: Transaction | None = None) -> Ride | None:
        row = await (tx or self._db).fetch_one("SELECT * FROM rides WHERE id = $1", ride_id)
        return None if row is None else _ride(row)

    async def duration(self, tx: Transaction, ride: Ride) -> timedelta:
        """Return how long an active ride has taken so far. It is zero if the ride began while the clock was ahead, before a restart."""
        row = await tx.fetch_one("SELECT began FROM rides WHERE id = $1", ride.id)
        began = None if row is None else row["began"]
        if began is None:  # it began in an earlier version
            return self._clock.now() - ride.started_at
        return timedelta(seconds=max(self._clock.steady() - began, 0))

    async def page(self, user_id: str | None, cursor: UUID | None, limit: int) -> RidePage:
        """Return a page of the rides of one user, or of all users if `user_id` is None, the newest first."""
        before = _MAX_NUMBER
        if cursor is not None:
            row = await self._db.fetch_one("SELECT number FROM rides WHERE id = $1", cursor)
            before = 0 if row is None else row["number"]
        if user_id is None:
            rows = await self._db.fetch("SELECT * FROM rides WHERE number < $1 ORDER BY number DESC LIMIT $2", before, limit + 1)
        else:
            rows = await self._db.fetch(
                "SELECT * FROM rides WHERE number < $1 AND user_id = $3 ORDER BY number DESC LIMIT $2", before, limit + 1, user_id
            )
        more = rows[limit - 1]["id"] if len(rows) > limit else None
        return RidePage(tuple(_ride(row) for row in rows[:limit]), more)

    async def end(self, tx: Transaction, ride_id: str, cents: int) -> Ride | None:
        """End a ride and return it, or return None if it is not active."""
        row = await tx.fetch_one(
            "UPDATE rides SET state = 'ended', ended_at = $2, cents = $3 WHERE id = $1 AND state = 'active' RETURNING *",
            ride_id,
            self._clock.now(),
            cents,
        )
        return None if row is None else _ride(row)

    async def abort(self, tx: Transaction, ride_id: str) -> Ride | None:
        """Abort a ride free of charge and return it, or return None if it is not active."""
        row = await tx.fetch_one(
            "UPDATE rides SET state = 'aborted', ended_at = $2, cents = 0 WHERE id = $1 AND state = 'active' RETURNING *",
            ride_id,
            self._clock.now(),
        )
        return None if row is None else _ride(row)


def _ride(row: Row) -> Ride:
    ended_at = row["ended_at"]
    return Ride(
        row["id"], row["user_id"], row["scooter_id"], row["state"], datetime.fromisoformat(row["started_at"]),
        None if ended_at is None else datetime.fromisoformat(ended_at), row["cents"],
    )  # fmt: skip
