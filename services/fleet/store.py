"""The fleet's scooters. Each is in one state, and only the statements here move it from one to another."""

from datetime import datetime, timedelta

from runtime import Clock, Database, Random, Row, Transaction
from services.fleet.messages import (
    AddScooter,
    FindScooters,
    Reservation,
    Scooter,
    ScooterLost,
    ScooterTaken,
    ScooterUnreachable,
    Telemetry,
    UnknownScooter,
)
from services.fleet.places import METRES_PER_DEGREE, Box, band, boxes

_BOXED = (
    "WITH RECURSIVE bands (band) AS (SELECT CAST($1 AS BIGINT) UNION ALL SELECT band + 1 FROM bands WHERE band < $2), "
    "boxed AS (SELECT scooters.*, (lat - $5) * (lat - $5) + (lon - $6) * (lon - $6) * $7 AS away FROM bands CROSS JOIN scooters "
    "WHERE scooters.band = bands.band AND scooters.state = 'free' AND scooters.lon BETWEEN $3 AND $4) "
)
"""The free scooters in a box, by the square of their distance in degrees: one short walk along the index for each band."""

NEAR = _BOXED + "SELECT * FROM boxed WHERE away <= $8 ORDER BY away, id LIMIT $9"
COUNT = _BOXED + "SELECT count(*) AS count FROM (SELECT 1 FROM boxed WHERE away <= $8 LIMIT $9) AS some"

_FIRST_RADIUS = 250.0
_WIDER = 4
_CROWD = 2000
_TRIES = 16


class Store:
    """Reads through `db`; everything that changes takes the transaction that it belongs to."""

    def __init__(self, db: Database, clock: Clock, random: Random) -> None:
        self._db = db
        self._clock = clock
        self._random = random

    async def add(self, tx: Transaction, new: AddScooter) -> Scooter:
        scooter = Scooter(str(self._random.uuid7()), "free", new.lat, new.lon, new.battery, self._clock.now())
        await tx.execute(
            "INSERT INTO scooters (id, state, band, lat, lon, battery, seen_at) VALUES ($1, 'free', $2, $3, $4, $5, $6)",
            scooter.id, band(new.lat), new.lat, new.lon, new.battery, scooter.seen_at,
        )  # fmt: skip
        return scooter

    async def get(self, scooter_id: str) -> Scooter | None:
        row = await self._db.fetch_one("SELECT * FROM scooters WHERE id = $1", scooter_id)
        return None if row is None else _scooter(row)

    # Near a point

    async def near(self, asked: FindScooters) -> tuple[Scooter, ...]:
        """The nearest free scooters, within a circle that has enough of them and not many more."""
        radius = await self._radius(asked)
        found: dict[str, Row] = {}
        for box in boxes(asked.lat, asked.lon, radius):
            found |= {row["id"]: row for row in await self._within(NEAR, box, radius, asked.limit)}
        return tuple(_scooter(row) for row in sorted(found.values(), key=lambda row: row["away"])[: asked.limit])

    async def _radius(self, asked: FindScooters) -> float:
        """A radius with enough scooters and no crowd of them: wider and wider, and back where that was too much at once."""
        too_narrow, wide_enough = 0.0, asked.radius_m
        radius = min(_FIRST_RADIUS, asked.radius_m)
        for _ in range(_TRIES):
            counts = [await self._within(COUNT, box, radius, _CROWD) for box in boxes(asked.lat, asked.lon, radius)]
            count: int = sum(rows[0]["count"] for rows in counts)
            if asked.limit <= count < _CROWD or (count < asked.limit and radius == asked.radius_m):
                return radius
            if count < asked.limit:
                too_narrow = radius
            else:
                wide_enough = radius
            wider = radius * _WIDER
            radius = (
                min(wider, asked.radius_m)
                if wide_enough == asked.radius_m and count < asked.limit
                else (too_narrow + wide_enough) / 2
            )
        return wide_enough

    async def _within(self, sql: str, box: Box, radius_m: float, limit: int) -> list[Row]:
        """Asks about the free scooters in a box that are no further away than the radius."""
        first, last = box.bands
        return await self._db.fetch(
            sql,
            first, last, box.west, box.east, box.lat, box.lon, box.narrowing**2, (radius_m / METRES_PER_DEGREE) ** 2, limit,
        )  # fmt: skip

    # From free to reserved to riding, and back

    async def reserve(self, tx: Transaction, scooter_id: str, seconds: float) -> Reservation:
        """Takes a free scooter."""
        now = self._clock.now()
        reservation = Reservation(str(self._random.uuid7()), now + timedelta(seconds=seconds))
        taken = await tx.execute(
            "UPDATE scooters SET state = 'reserved', reservation_id = $2, reserved_at = $3 WHERE id = $1 AND state = 'free'",
            scooter_id,
            reservation.id,
            now,
        )
        if not taken:
            row = await tx.fetch_one("SELECT state FROM scooters WHERE id = $1", scooter_id)
            if row is None:
                raise UnknownScooter
            raise ScooterUnreachable(scooter_id) if row["state"] == "lost" else ScooterTaken(scooter_id)
        return reservation

    async def unreserve(self, tx: Transaction, reservation_id: str) -> None:
        """Frees a scooter, unless a ride has confirmed the reservation."""
        await tx.execute(
            "UPDATE scooters SET state = 'free', reservation_id = NULL, reserved_at = NULL "
            "WHERE reservation_id = $1 AND state = 'reserved'",
            reservation_id,
        )

    async def overdue(self, seconds: float) -> list[str]:
        """The reservations that no ride has confirmed within their time."""
        rows = await self._db.fetch(
            "SELECT reservation_id FROM scooters WHERE state = 'reserved' AND reserved_at < $1",
            self._clock.now() - timedelta(seconds=seconds),
        )
        return [row["reservation_id"] for row in rows]

    async def hand_over(self, tx: Transaction, reservation_id: str, ride_id: str) -> bool:
        """Hands the scooter over to the ride, if the reservation stands."""
        return bool(
            await tx.execute(
                "UPDATE scooters SET state = 'riding', ride_id = $2 WHERE reservation_id = $1 AND state = 'reserved'",
                reservation_id,
                ride_id,
            )
        )

    async def take_back(self, tx: Transaction, ride_id: str) -> bool:
        """Takes the scooter back from the ride, if it still has it."""
        return bool(
            await tx.execute(
                "UPDATE scooters SET state = 'free', reservation_id = NULL, reserved_at = NULL, ride_id = NULL WHERE ride_id = $1",
                ride_id,
            )
        )

    # What scooters say, and when they say nothing

    async def note(self, tx: Transaction, telemetry: Telemetry) -> bool | None:
        """Notes what a scooter reports; one that was lost is free again. Says whether a ride has it; None if it is unknown."""
        row = await tx.fetch_one(
            "UPDATE scooters SET band = $2, lat = $3, lon = $4, battery = $5, seen_at = $6, "
            "state = CASE state WHEN 'lost' THEN 'free' ELSE state END WHERE id = $1 RETURNING state",
            telemetry.scooter_id, band(telemetry.lat), telemetry.lat, telemetry.lon, telemetry.battery, self._clock.now(),
        )  # fmt: skip
        return None if row is None else row["state"] == "riding"

    async def silent(self, since: datetime) -> list[str]:
        """The scooters that were last heard of before that time."""
        rows = await self._db.fetch("SELECT id FROM scooters WHERE state <> 'lost' AND seen_at < $1 LIMIT 1000", since)
        return [row["id"] for row in rows]

    async def give_up(self, tx: Transaction, scooter_id: str, since: datetime) -> ScooterLost | None:
        """Marks a scooter as lost, if it is still silent."""
        row = await tx.fetch_one("SELECT ride_id FROM scooters WHERE id = $1", scooter_id)
        lost = row is not None and await tx.execute(
            "UPDATE scooters SET state = 'lost', reservation_id = NULL, reserved_at = NULL, ride_id = NULL "
            "WHERE id = $1 AND seen_at < $2 AND state <> 'lost' AND COALESCE(ride_id, '') = $3",
            scooter_id,
            since,
            row["ride_id"] or "",
        )
        return ScooterLost(scooter_id, row["ride_id"]) if row is not None and lost else None


def _scooter(row: Row) -> Scooter:
    return Scooter(
        row["id"], row["state"], row["lat"], row["lon"], row["battery"], datetime.fromisoformat(row["seen_at"])
    )  # fmt: skip
