"""The devices service: it simulates scooters where there are no real ones, as in `callboard dev`."""

import math
from typing import Annotated

from msgspec import Meta

from runtime import Context, NotDelivered, Random, Service, Struct, every, subscribes
from services.devices.messages import devices
from services.devices.scooter import Scooter
from services.fleet.messages import METRES_PER_DEGREE, AddScooter, Latitude, Lock, Longitude, Unlock, fleet

_STEP = 1.0
"""Seconds that each step of the simulation covers."""


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

    async def on_start(self, ctx: Context) -> None:
        rows = await self.db.fetch("SELECT * FROM devices ORDER BY key")
        for row in rows[: self.settings.count]:
            if row["scooter_id"] is not None:
                self._add(row["scooter_id"], row["lat"], row["lon"], row["battery"], locked=bool(row["locked"]))
        try:
            await self._enrol(ctx)
        except NotDelivered as error:
            self.log.info("the fleet is not reachable yet: %s", error)

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

    @every(seconds=_STEP)
    async def step(self, ctx: Context) -> None:
        """Advance every scooter by one second, and store and publish the reports that are due."""
        await self._enrol(ctx)
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

        The idempotency key of each request is stored first. So a request that is repeated after a crash adds no second scooter.
        """
        if len(self.scooters) >= self.settings.count:
            return
        rows = await self.db.fetch("SELECT key, lat, lon, battery FROM devices WHERE scooter_id IS NULL")
        missing = [(row["key"], AddScooter(row["lat"], row["lon"], row["battery"])) for row in rows]
        while len(self.scooters) + len(missing) < self.settings.count:
            key, new = str(self.random.uuid7()), somewhere(self.settings, self.random)
            await self.db.execute(
                "INSERT INTO devices (key, lat, lon, battery, locked) VALUES ($1, $2, $3, $4, 1)",
                key,
                new.lat,
                new.lon,
                new.battery,
            )
            missing.append((key, new))
        for key, new in missing:
            scooter = await ctx.request(new, key=key)
            await self.db.execute("UPDATE devices SET scooter_id = $2 WHERE key = $1", key, scooter.id)
            self._add(scooter.id, new.lat, new.lon, new.battery, locked=True)


def somewhere(settings: DeviceSettings, random: Random) -> AddScooter:
    """Return a new scooter at a random position within the circle that the settings describe."""
    distance = settings.radius_m / METRES_PER_DEGREE * math.sqrt(random.random())
    heading = math.tau * random.random()
    lat = settings.lat + distance * math.cos(heading)
    lon = settings.lon + distance * math.sin(heading) / math.cos(math.radians(lat))
    return AddScooter(round(lat, 6), round(lon, 6), round(60 + 40 * random.random(), 1))
