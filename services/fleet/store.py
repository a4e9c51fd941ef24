"""The scooters of the fleet. Each is in one state, and only the statements in this module change it."""

from datetime import datetime, timedelta

from runtime import Clock, Database, Random, Row, Transaction
from services.fleet.geo import Box, band, bounding_boxes
from services.fleet.messages import (
    METRES_PER_DEGREE,
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

_IN_BOX = (
    "WITH RECURSIVE bands (band) AS (SELECT CAST($1 AS BIGINT) UNION ALL SELECT band + 1 FROM bands WHERE band < $2), "
    "boxed AS (SELECT scooters.*, (lat - $5) * (lat - $5) + (lon - $6) * (lon - $6) * $7 AS away FROM bands CROSS JOIN scooters "
    "WHERE scooters.band = bands.band AND scooters.state = 'free' AND scooters.lon BETWEEN $3 AND $4) "
)
"""The free scooters in a box, with the square of their distance in degrees. Each band takes one short range scan of the index."""

NEAR = _IN_BOX + "SELECT * FROM boxed WHERE away <= $8 ORDER BY away, id LIMIT $9"
COUNT = _IN_BOX + "SELECT count(*) AS count FROM (SELECT 1 FROM boxed WHERE away <= $8 LIMIT $9) AS found"

_INITIAL_RADIUS = 250.0
"""The first radius to try, in metres."""
_RADIUS_FACTOR = 4
"""The factor by which a radius with too few scooters grows."""
_MAX_COUNT = 2000
"""Scooters that a circle may have, at most, before the radius is narrowed."""
_MAX_ATTEMPTS = 16


class Store:
    """Reads and writes the scooters. Methods that write take the transaction of the caller."""

    def __init__(self, db: Database, clock: Clock, random: Random) -> None:
        self._db = db
        self._clock = clock
        self._random = random

    async def add(self, tx: Transaction, new: AddScooter) -> Scooter:
        """Add a free scooter and return it."""
        scooter = Scooter(str(self._random.uuid7()), "free", new.lat, new.lon, new.battery, self._clock.now())
        await tx.execute(
            "INSERT INTO scooters (id, state, band, lat, lon, battery, seen_at, heard_at) VALUES ($1, 'free', $2, $3, $4, $5, $6, $7)",
            scooter.id, band(new.lat), new.lat, new.lon, new.battery, scooter.seen_at, self._clock.steady(),
        )  # fmt: skip
        return scooter

    async def get(self, scooter_id: str) -> Scooter | None:
        row = await self._db.fetch_one("SELECT * FROM scooters WHERE id = $1", scooter_id)
        return None if row is None else _scooter(row)

    # Search

    async def nearest(self, search: FindScooters) -> tuple[Scooter, ...]:
        """Return the nearest free scooters.

        The search is limited to a circle that contains enough of them and not many more.
        """
        radius = await self._search_radius(search)
        found: dict[str, Row] = {}
        for box in bounding_boxes(search.lat, search.lon, radius):
            found |= {row["id"]: row for row in await self._query_box(NEAR, box, radius, search.limit)}
        return tuple(_scooter(row) for row in sorted(found.values(), key=lambda row: row["away"])[: search.limit])

    async def _search_radius(self, search: FindScooters) -> float:
        """Return a radius, in metres, within which there are enough scooters but fewer than `_MAX_COUNT`.

        The radius grows until there are enough scooters. If there are then too many, bisection narrows it.
        """
        too_narrow, wide_enough = 0.0, search.radius_m
        radius = min(_INITIAL_RADIUS, search.radius_m)
        for _ in range(_MAX_ATTEMPTS):
            boxes = bounding_boxes(search.lat, search.lon, radius)
            counts = [await self._query_box(COUNT, box, radius, _MAX_COUNT) for box in boxes]
            count: int = sum(rows[0]["count"] for rows in counts)
            if search.limit <= count < _MAX_COUNT or (count < search.limit and radius == search.radius_m):
                return radius
            if count < search.limit:
                too_narrow = radius
            else:
                wide_enough = radius
            wider = radius * _RADIUS_FACTOR
            radius = (
                min(wider, search.radius_m)
                if wide_enough == search.radius_m and count < search.limit
                else (too_narrow + wide_enough) / 2
            )
        return wide_enough

    async def _query_box(self, sql: str, box: Box, radius_m: float, limit: int) -> list[Row]:
        """Run `NEAR` or `COUNT` on the free scooters in a box that lie within the radius, in metres."""
        first, last = box.bands
        return await self._db.fetch(
            sql,
            first, last, box.west, box.east, box.lat, box.lon, box.lon_scale**2, (radius_m / METRES_PER_DEGREE) ** 2, limit,
        )  # fmt: skip

    # From free to reserved to riding, and back

    async def reserve(self, tx: Transaction, scooter_id: str, seconds: float) -> Reservation:
        """Reserve a free scooter for a number of seconds.

        Raises:
            UnknownScooter: if there is no such scooter.
            ScooterUnreachable: if the scooter is lost.
            ScooterTaken: if the scooter is reserved or ridden.
        """
        reservation = Reservation(str(self._random.uuid7()), self._clock.now() + timedelta(seconds=seconds))
        reserved = await tx.execute(
            "UPDATE scooters SET state = 'reserved', reservation_id = $2, reserved_at = $3 WHERE id = $1 AND state = 'free'",
            scooter_id,
            reservation.id,
            self._clock.steady_now(),
        )
        if not reserved:
            row = await tx.fetch_one("SELECT state FROM scooters WHERE id = $1", scooter_id)
            if row is None:
                raise UnknownScooter
            raise ScooterUnreachable(scooter_id) if row["state"] == "lost" else ScooterTaken(scooter_id)
        return reservation

    async def unreserve(self, tx: Transaction, reservation_id: str) -> None:
        """Cancel a reservation and free its scooter, unless a ride has confirmed it."""
        await tx.execute(
            "UPDATE scooters SET state = 'free', reservation_id = NULL, reserved_at = NULL "
            "WHERE reservation_id = $1 AND state = 'reserved'",
            reservation_id,
        )

    async def expired_reservations(self, seconds: float) -> list[str]:
        """Return the ids of up to 500 reservations that are older than `seconds` and that no ride has confirmed, the oldest first."""
        now = self._clock.steady_now()
        rows = await self._db.fetch(
            "SELECT * FROM (SELECT reservation_id, 0 AS ahead FROM scooters "
            "WHERE state = 'reserved' AND reserved_at < $1 ORDER BY reserved_at LIMIT 500) AS old "
            "UNION ALL SELECT * FROM (SELECT reservation_id, 1 FROM scooters WHERE state = 'reserved' AND reserved_at > $2 LIMIT 1) AS ahead",
            now - timedelta(seconds=seconds),
            now,
        )
        if any(row["ahead"] for row in rows):  # stored before a restart, while the clock was ahead: they are made now
            await self._db.execute("UPDATE scooters SET reserved_at = $1 WHERE state = 'reserved' AND reserved_at > $1", now)
        return [row["reservation_id"] for row in rows if not row["ahead"]]

    async def hand_over(self, tx: Transaction, reservation_id: str, ride_id: str) -> bool:
        """Give the scooter to a ride if the reservation is still valid. Return whether it was."""
        return bool(
            await tx.execute(
                "UPDATE scooters SET state = 'riding', ride_id = $2 WHERE reservation_id = $1 AND state = 'reserved'",
                reservation_id,
                ride_id,
            )
        )

    async def take_back(self, tx: Transaction, ride_id: str) -> bool:
        """Free the scooter of a ride. Return False if the ride has none."""
        return bool(
            await tx.execute(
                "UPDATE scooters SET state = 'free', reservation_id = NULL, reserved_at = NULL, ride_id = NULL WHERE ride_id = $1",
                ride_id,
            )
        )

    # Telemetry and lost scooters

    async def record_telemetry(self, tx: Transaction, telemetry: Telemetry) -> bool | None:
        """Store a report of a scooter. A lost scooter becomes free again.

        Returns:
            Whether the scooter is on a ride, or None if the scooter is unknown.
        """
        row = await tx.fetch_one(
            "UPDATE scooters SET band = $2, lat = $3, lon = $4, battery = $5, seen_at = $6, heard_at = $7, "
            "state = CASE state WHEN 'lost' THEN 'free' ELSE state END WHERE id = $1 RETURNING state",
            telemetry.scooter_id, band(telemetry.lat), telemetry.lat, telemetry.lon, telemetry.battery, self._clock.now(), self._clock.steady(),
        )  # fmt: skip
        return None if row is None else row["state"] == "riding"

    async def silent_since(self, since: float) -> list[str]:
        """Return the ids of up to 1000 scooters that are not lost and whose last report is older than `since`, on the steady clock."""
        now = self._clock.steady()
        rows = await self._db.fetch(
            "SELECT * FROM (SELECT id, 0 AS ahead FROM scooters WHERE state <> 'lost' AND heard_at < $1 LIMIT 1000) AS silent "
            "UNION ALL SELECT * FROM (SELECT id, 1 FROM scooters WHERE state <> 'lost' AND heard_at > $2 LIMIT 1) AS ahead",
            since,
            now,
        )
        if any(row["ahead"] for row in rows):  # stored before a restart, while the clock was ahead: they report now
            await self._db.execute("UPDATE scooters SET heard_at = $1 WHERE state <> 'lost' AND heard_at > $1", now)
        return [row["id"] for row in rows if not row["ahead"]]

    async def mark_lost(self, tx: Transaction, scooter_id: str, since: float) -> ScooterLost | None:
        """Mark a scooter as lost, unless it has reported since or its ride has changed. Return the event to publish, or None."""
        row = await tx.fetch_one("SELECT ride_id FROM scooters WHERE id = $1", scooter_id)
        lost = row is not None and await tx.execute(
            "UPDATE scooters SET state = 'lost', reservation_id = NULL, reserved_at = NULL, ride_id = NULL "
            "WHERE id = $1 AND heard_at < $2 AND state <> 'lost' AND COALESCE(ride_id, '') = $3",
            scooter_id,
            since,
            row["ride_id"] or "",
        )
        return ScooterLost(scooter_id, row["ride_id"]) if row is not None and lost else None


def _scooter(row: Row) -> Scooter:
    return Scooter(
        row["id"], row["state"], row["lat"], row["lon"], row["battery"], datetime.fromisoformat(row["seen_at"])
    )  # fmt: skip
