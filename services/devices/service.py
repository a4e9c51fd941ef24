"""The devices service: it simulates scooters where there are no real ones, as in `callboard dev`."""

import hashlib
import math
from typing import Annotated

from msgspec import Meta

from runtime import Context, NotDelivered, Random, Service, Struct, every, subscribes
from services.devices.messages import devices
from services.devices.scooter import Scooter
from services.fleet.messages import METRES_PER_DEGREE, AddScooter, Latitude, Lock, Longitude, Unlock, fleet

_STEP = 1.0
"""Seconds that each step of the simulation covers."""
_FORGOTTEN_SECONDS = 3600.0
_GONE_SECONDS = 5.0
"""Seconds after which an instance that has not been heard of has no share any more."""


class DeviceSettings(Struct):
    """The settings of the devices service, which simulates scooters."""

    count: Annotated[int, Meta(ge=0, le=10_000)] = 50
    """The number of scooters."""
    lat: Latitude = 52.52
    """The latitude of the centre of the circle in which new scooters are placed, in degrees."""
    lon: Longitude = 13.405
    """The longitude of the centre of that circle, in degrees."""
    radius_m: Annotated[float, Meta(gt=0, le=100_000)] = 2000.0
    """The radius of that circle, in metres."""


class Devices(Service):
    """Simulates scooters that move, drain, report, and obey `Lock` and `Unlock`.

    After a restart, it simulates the same scooters again.
    """

    contract = devices
    calls = (fleet,)
    Settings = DeviceSettings
    settings: DeviceSettings

    def __init__(self, settings: DeviceSettings | None = None) -> None:
        super().__init__(settings)
        self.scooters: dict[str, Scooter] = {}
        self._sharing: frozenset[str] = frozenset()
        """The instances that shared the scooters when this one took its share last, and how many scooters there were then."""
        self._shared = -1

    async def on_start(self, ctx: Context) -> None:
        self._id = str(self.random.uuid7())
        await self.db.execute("DELETE FROM simulators WHERE seen < $1", self.clock.steady() - _FORGOTTEN_SECONDS)
        await self._take_share()
        try:
            await self._enrol(ctx)
        except NotDelivered as error:
            self.log.info("the fleet is not reachable yet: %s", error)

    async def on_stop(self, ctx: Context) -> None:
        await self.db.execute("DELETE FROM simulators WHERE id = $1", self._id)

    async def _take_share(self) -> None:
        """Simulate the scooters whose keys prefer this instance to all others that run."""
        sharing = frozenset((self._id,))
        if self.db.is_shared:
            now = self.clock.steady()
            await self.db.execute(
                "INSERT INTO simulators (id, seen) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET seen = $2", self._id, now
            )
            rows = await self.db.fetch("SELECT id FROM simulators WHERE seen > $1", now - _GONE_SECONDS)
            sharing |= {row["id"] for row in rows}
        [row] = await self.db.fetch("SELECT count(*) AS n FROM devices WHERE scooter_id IS NOT NULL")
        if (sharing, row["n"]) == (self._sharing, self._shared):
            return
        self._sharing, self._shared = sharing, row["n"]
        rows = await self.db.fetch(
            "SELECT * FROM devices WHERE scooter_id IS NOT NULL ORDER BY key LIMIT $1", self.settings.count
        )
        mine = {row["scooter_id"]: row for row in rows if max(sharing, key=lambda one: _weight(one, row["key"])) == self._id}
        for scooter_id in self.scooters.keys() - mine.keys():
            del self.scooters[scooter_id]
        for scooter_id in mine.keys() - self.scooters.keys():
            row = mine[scooter_id]
            self._add(scooter_id, row["lat"], row["lon"], row["battery"], locked=bool(row["locked"]))

    def _add(self, scooter_id: str, lat: float, lon: float, battery: float, *, locked: bool) -> None:
        self.scooters[scooter_id] = Scooter(scooter_id, lat, lon, battery, locked=locked)

    @subscribes(broadcast=True)
    async def on_unlock(self, signal: Unlock, ctx: Context) -> None:
        if signal.scooter_id in self.scooters:
            self.scooters[signal.scooter_id].obey(locked=False)

    @subscribes(broadcast=True)
    async def on_lock(self, signal: Lock, ctx: Context) -> None:
        if signal.scooter_id in self.scooters:
            self.scooters[signal.scooter_id].obey(locked=True)

    @every(seconds=_STEP, each=True)
    async def step(self, ctx: Context) -> None:
        """Advance every scooter of this instance by one second, and store and publish the reports that are due."""
        await self._enrol(ctx)
        await self._take_share()
        reports = [report for scooter in self.scooters.values() if (report := scooter.step(_STEP, self.random)) is not None]
        if not reports:
            return
        async with self.db.transaction() as tx:
            for report in reports:
                await tx.execute(
                    "UPDATE devices SET lat = $2, lon = $3, battery = $4, locked = $5 WHERE scooter_id = $1",
                    report.scooter_id, report.lat, report.lon, report.battery, report.locked,
                )  # fmt: skip
        for report in reports:
            await ctx.publish(report)

    async def _enrol(self, ctx: Context) -> None:
        """Request the missing scooters from the fleet.

        The idempotency key of each request is stored first. So a request that is repeated after a crash, or by another instance,
        adds no second scooter.
        """
        if self._shared >= self.settings.count:
            return
        async with self.db.transaction() as tx:
            row = await tx.fetch_one("SELECT count(*) AS n FROM devices")
            for _ in range(self.settings.count - (0 if row is None else row["n"])):
                new = somewhere(self.settings, self.random)
                await tx.execute(
                    "INSERT INTO devices (key, lat, lon, battery, locked) VALUES ($1, $2, $3, $4, 1)",
                    str(self.random.uuid7()), new.lat, new.lon, new.battery,
                )  # fmt: skip
        rows = await self.db.fetch("SELECT key, lat, lon, battery FROM devices WHERE scooter_id IS NULL ORDER BY key")
        for row in rows:
            scooter = await ctx.request(AddScooter(row["lat"], row["lon"], row["battery"]), key=row["key"])
            await self.db.execute("UPDATE devices SET scooter_id = $2 WHERE key = $1", row["key"], scooter.id)
        await self._take_share()


def _weight(instance: str, key: str) -> bytes:
    """Return how much a scooter prefers an instance (rendezvous hashing): few scooters move when an instance comes or goes."""
    return hashlib.sha256(f"{instance} {key}".encode()).digest()


def somewhere(settings: DeviceSettings, random: Random) -> AddScooter:
    """Return a new scooter at a random position within the circle that the settings describe."""
    distance = settings.radius_m / METRES_PER_DEGREE * math.sqrt(random.random())
    heading = math.tau * random.random()
    lat = settings.lat + distance * math.cos(heading)
    lon = settings.lon + distance * math.sin(heading) / math.cos(math.radians(lat))
    return AddScooter(round(lat, 6), round(lon, 6), round(60 + 40 * random.random(), 1))
