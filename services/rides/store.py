"""The rides. Unique indexes in the database ensure that a rider and a scooter each have at most one active ride."""

from datetime import datetime
from uuid import UUID

from runtime import Clock, Database, Random, Row, Transaction
from services.rides.messages import Ride, RidePage

_MAX_UUID = UUID(int=2**128 - 1)


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
            "INSERT INTO rides (id, user_id, scooter_id, state, started_at) VALUES ($1, $2, $3, 'active', $4) ON CONFLICT DO NOTHING",
            ride.id, user_id, scooter_id, ride.started_at,
        )  # fmt: skip
        return ride if inserted else None

    async def active_ride(self, user_id: str, tx: Transaction | None = None) -> str | None:
        """Return the id of the user's active ride, or None."""
        row = await (tx or self._db).fetch_one("SELECT id FROM rides WHERE user_id = $1 AND state = 'active'", user_id)
        return None if row is None else row["id"]

    async def get(self, ride_id: str, tx: Transaction | None = None) -> Ride | None:
        row = await (tx or self._db).fetch_one("SELECT * FROM rides WHERE id = $1", ride_id)
        return None if row is None else _ride(row)

    async def page(self, user_id: str | None, cursor: UUID | None, limit: int) -> RidePage:
        """Return a page of the rides of one user, or of all users if `user_id` is None, the newest first."""
        before = str(cursor or _MAX_UUID)
        if user_id is None:
            rows = await self._db.fetch("SELECT * FROM rides WHERE id < $1 ORDER BY id DESC LIMIT $2", before, limit + 1)
        else:
            rows = await self._db.fetch(
                "SELECT * FROM rides WHERE id < $1 AND user_id = $3 ORDER BY id DESC LIMIT $2", before, limit + 1, user_id
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
