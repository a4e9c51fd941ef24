"""The devices service: it plays the scooters where there are none, as in `callboard dev`."""

import math
from typing import Annotated

from msgspec import Meta

from runtime import Context, NotDelivered, Random, Service, Struct, every, subscribes
from services.devices.messages import devices
from services.devices.scooter import METRES_PER_DEGREE, Scooter
from services.fleet.messages import AddScooter, Latitude, Lock, Longitude, Unlock, fleet

_STEP = 1.0


class DeviceSettings(Struct):
    """Which scooters are played."""

    count: Annotated[int, Meta(ge=0, le=10_000)] = 50
    lat: Latitude = 52.52
    """Around where they stand at first."""
    lon: Longitude = 13.405
    radius_m: Annotated[float, Meta(gt=0, le=100_000)] = 2000.0


class Devices(Service):
    """Plays scooters: they move, drain, report, and obey `Lock` and `Unlock`. Those played before are played again."""

    contract = devices
    calls = (fleet,)

    def __init__(self, settings: DeviceSettings | None = None) -> None:
        self.settings = settings or DeviceSettings()
        self.scooters: dict[str, Scooter] = {}

    async def on_start(self, ctx: Context) -> None:
        rows = await self.db.fetch("SELECT * FROM devices ORDER BY key")
        for row in rows[: self.settings.count]:
            if row["scooter_id"] is not None:
                self._play(row["scooter_id"], row["lat"], row["lon"], row["battery"], locked=bool(row["locked"]))
        try:
            await self._enrol(ctx)
        except NotDelivered as error:
            self.log.info("the fleet cannot be asked yet: %s", error)

    def _play(self, scooter_id: str, lat: float, lon: float, battery: float, *, locked: bool) -> None:
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
    async def play(self, ctx: Context) -> None:
        """Lets a second pass for every scooter."""
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
        """Asks the fleet for the scooters that are missing. The key is kept first: asked again with it, the fleet adds no second one."""
        if len(self.scooters) >= self.settings.count:
            return
        rows = await self.db.fetch("SELECT key, lat, lon, battery FROM devices WHERE scooter_id IS NULL")
        wanted = [(row["key"], AddScooter(row["lat"], row["lon"], row["battery"])) for row in rows]
        while len(self.scooters) + len(wanted) < self.settings.count:
            key, new = str(self.random.uuid7()), somewhere(self.settings, self.random)
            await self.db.execute(
                "INSERT INTO devices (key, lat, lon, battery, locked) VALUES ($1, $2, $3, $4, 1)",
                key,
                new.lat,
                new.lon,
                new.battery,
            )
            wanted.append((key, new))
        for key, new in wanted:
            scooter = await ctx.request(new, key=key)
            await self.db.execute("UPDATE devices SET scooter_id = $2 WHERE key = $1", key, scooter.id)
            self._play(scooter.id, new.lat, new.lon, new.battery, locked=True)


def somewhere(settings: DeviceSettings, random: Random) -> AddScooter:
    """A place for a new scooter: anywhere within the circle that the settings draw."""
    away = settings.radius_m / METRES_PER_DEGREE * math.sqrt(random.random())
    heading = math.tau * random.random()
    lat = settings.lat + away * math.cos(heading)
    lon = settings.lon + away * math.sin(heading) / math.cos(math.radians(lat))
    return AddScooter(round(lat, 6), round(lon, 6), round(60 + 40 * random.random(), 1))
