"""HttpPeers: found by an index, taken by one rider at a time, given up when they are silent."""

import itertools
import math
import random
import re
import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest

from runtime import Context, Event, Forbidden, Service, Signal, subscribes
from runtime.testing import FakeAuth, eventually
from services.devices.messages import devices
from services.fleet.messages import (
    AddScooter,
    FindScooters,
    Free,
    GetScooter,
    Lock,
    Reserve,
    Scooter,
    ScooterTaken,
    ScooterUnreachable,
    StillHearing,
    Telemetry,
    UnknownScooter,
    Unlock,
    fleet,
)
from services.fleet.places import METRES_PER_DEGREE
from services.fleet.service import Fleet
from services.fleet.store import NEAR
from services.rides.messages import RideEnded, RideStarted
from services.rides.service import Rides
from services.wallet.service import Wallet
from tests.services import account
from tests.topology import QuickClock, Topology, silence


def metres(lat: float, lon: float, other_lat: float, other_lon: float) -> float:
    """The distance on a sphere (the haversine formula)."""
    a, b = math.radians(lat), math.radians(other_lat)
    half = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(other_lon - lon) / 2) ** 2
    return METRES_PER_DEGREE * math.degrees(2 * math.asin(min(1.0, math.sqrt(half))))


class HttpPeers(Service):
    """Stands where the scooters are: hears what they are told, and speaks for them."""

    contract = devices
    calls = (fleet,)

    def __init__(self) -> None:
        self.told: list[Signal] = []

    async def on_start(self, ctx: Context) -> None:
        self.ctx = ctx

    @subscribes
    async def on_lock(self, signal: Lock, ctx: Context) -> None:
        self.told.append(signal)

    @subscribes
    async def on_unlock(self, signal: Unlock, ctx: Context) -> None:
        self.told.append(signal)


class Town:
    """The fleet and those that it deals with, on a topology."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.clock = topology.clock = QuickClock()

    async def start(self) -> None:
        await self.topology.play(FakeAuth, Wallet, Fleet, Rides, HttpPeers)
        self.scooters = self.topology.service(HttpPeers)
        self.operator = await self.topology.client(fleet, token=FakeAuth.token("operator", "operator"))
        self.rides = await self.topology.client(fleet, name="rides", token=FakeAuth.token("rider", "rider"))

    async def add(self, lat: float = 52.5, lon: float = 13.4) -> str:
        return (await self.operator.request(AddScooter(lat, lon, 90))).id

    async def get(self, scooter_id: str) -> Scooter:
        return await self.operator.request(GetScooter(scooter_id))

    async def becomes(self, scooter_id: str, state: str) -> None:
        async def is_so() -> bool:
            return (await self.get(scooter_id)).state == state

        await eventually(is_so, f"the scooter becomes {state}")

    async def near(self, lat: float, lon: float, radius_m: float = 1000, limit: int = 20) -> list[Scooter]:
        return list((await self.operator.request(FindScooters(lat, lon, radius_m, limit))).items)

    async def happened(self, *events: Event) -> None:
        """Publishes as rides."""
        async with self.topology.service(Rides).db.transaction() as tx:
            for event in events:
                await tx.publish(event)

    async def silence(self, seconds: float) -> None:
        await silence(self.clock, self.topology.service(Fleet), seconds)

    async def say(self, scooter_id: str, *, lat: float = 52.5, lon: float = 13.4, locked: bool = True) -> None:
        await self.scooters.ctx.publish(Telemetry(scooter_id, lat, lon, 50.0, locked))


@pytest.fixture
async def town(topology: Topology) -> Town:
    made = Town(topology)
    await made.start()
    return made


async def test_the_nearest_come_first_and_nobody_is_missed(town: Town) -> None:
    """Against a look at every scooter: in the middle of a town, at the date line, and at a pole."""
    rng = random.Random(3)
    places: dict[str, tuple[float, float]] = {}
    for lat, lon, spread in ((52.5, 13.4, 0.05), (0.0, 179.999, 0.02), (89.99, 0.0, 0.008), (-33.9, 151.2, 0.3)):
        for _ in range(40):
            at = (
                round(lat + rng.uniform(-spread, spread), 6),
                round((lon + rng.uniform(-spread, spread) + 180) % 360 - 180, 6),
            )
            places[await town.add(*at)] = at
    for lat, lon in ((52.5, 13.4), (52.47, 13.42), (0.0, 180.0), (0.001, -179.999), (89.99, 0.01), (-33.9, 151.2), (10.0, 10.0)):
        for radius_m in (50, 700, 5000, 40_000):
            found = await town.near(lat, lon, radius_m, 100)
            assert len({scooter.id for scooter in found}) == len(found), "each once"
            away = [metres(lat, lon, scooter.lat, scooter.lon) for scooter in found]
            # a degree of longitude is taken to be as long everywhere in the circle: far out and near a pole that is not so
            slack = 1.02 if abs(lat) < 80 else 1.5
            assert all(distance <= radius_m * slack for distance in away)
            if abs(lat) < 80:
                assert away == sorted(away) or all(one <= next_one * 1.02 for one, next_one in itertools.pairwise(away))
                inside = {id for id, at in places.items() if metres(lat, lon, *at) <= radius_m / slack}
                assert inside <= {scooter.id for scooter in found} or len(found) == 100
    assert [scooter.id for scooter in await town.near(52.5, 13.4, 100_000, 5)] == [
        scooter.id for scooter in (await town.near(52.5, 13.4, 5000, 100))[:5]
    ], "a wide radius finds the same nearest ones"


async def test_the_index_is_used(town: Town) -> None:
    await town.add()
    with closing(sqlite3.connect(town.topology.folder / "fleet.sqlite")) as database:
        sql = re.sub(r"\$(\d+)", r"?\1", f"EXPLAIN QUERY PLAN {NEAR}")
        plan = [row[3] for row in database.execute(sql, (1, 3, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1))]
    assert any("scooters_near (band=? AND lon>? AND lon<?)" in step for step in plan), plan


async def test_a_reservation(town: Town) -> None:
    one = await town.add()
    spot = await town.rides.request(Reserve(one))
    assert (await town.get(one)).state == "reserved"
    assert await town.near(52.5, 13.4) == [], "only what is free is found"
    with pytest.raises(ScooterTaken) as taken:
        await town.rides.request(Reserve(one))
    assert taken.value.scooter_id == one
    await town.rides.request(Free(spot.id))
    await town.rides.request(Free(spot.id))
    assert (await town.get(one)).state == "free"
    with pytest.raises(UnknownScooter):
        await town.rides.request(Reserve("none"))
    with pytest.raises(Forbidden):
        await town.operator.request(Reserve(one))


async def test_what_no_ride_confirms_is_free_again_after_a_minute(town: Town) -> None:
    one, two = await town.add(), await town.add()
    await town.rides.request(Reserve(one))
    confirmed = await town.rides.request(Reserve(two))
    town.clock.advance(timedelta(seconds=55))
    await town.happened(RideStarted("ride", "rider", two, confirmed.id, "hold"))
    await town.becomes(two, "riding")
    for id in (one, two):
        await town.say(id)
    assert (await town.get(one)).state == "reserved"
    town.clock.advance(timedelta(seconds=6))
    await town.becomes(one, "free")
    assert (await town.get(two)).state == "riding"


async def test_nothing_expires_before_all_that_rides_has_told_is_known(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await town.add()
    spot = await town.rides.request(Reserve(one))
    service = town.topology.service(Fleet)
    asked: list[bool] = []
    caught_up = Context.caught_up

    async def not_yet(ctx: Context, contract: object) -> bool:
        if ctx.service != "fleet":
            return await caught_up(ctx, contract)  # type: ignore[arg-type]
        asked.append(True)
        return False

    monkeypatch.setattr(Context, "caught_up", not_yet)
    town.clock.advance(timedelta(seconds=61))
    await eventually(lambda: len(asked) >= 3, "the fleet asks whether it knows all")
    row = await service.db.fetch_one("SELECT reservation_id FROM scooters WHERE id = $1", one)
    assert row is not None
    assert row["reservation_id"] == spot.id


async def test_lock_and_unlock(town: Town) -> None:
    one = await town.add()
    spot = await town.rides.request(Reserve(one))
    await town.happened(RideStarted("ride", "rider", one, spot.id, "hold"))
    await eventually(lambda: town.scooters.told == [Unlock(one)], "the scooter is unlocked")
    await town.say(one, locked=True)
    await eventually(lambda: town.scooters.told == [Unlock(one)] * 2, "what it has not obeyed is said again")
    await town.say(one, locked=False, lat=52.6)
    await town.becomes(one, "riding")
    await town.happened(RideEnded("ride", "rider", one, 120))
    await eventually(lambda: town.scooters.told[2:] == [Lock(one)], "the scooter is locked")
    assert (await town.get(one)).lat == 52.6
    await town.say(one, locked=False)
    await eventually(lambda: town.scooters.told[2:] == [Lock(one)] * 2, "what it has not obeyed is said again")


async def test_a_scooter_is_lost_and_found(town: Town) -> None:
    one, two = await town.add(), await town.add()
    await town.silence(40)
    await town.say(two)

    async def heard() -> bool:
        return (await town.get(two)).battery == 50.0

    await eventually(heard, "the second is heard of")
    await town.silence(21)
    await town.becomes(one, "lost")
    assert (await town.get(two)).state == "free"
    with pytest.raises(ScooterUnreachable):
        await town.rides.request(Reserve(one))
    await town.say(one)
    await town.becomes(one, "free")


async def test_a_ride_that_begins_on_a_reservation_that_is_gone_is_told_so(town: Town) -> None:
    """The scooter was lost between the reservation and the ride; whoever has it since keeps it."""
    one = await town.add()
    spot = await town.rides.request(Reserve(one))
    await town.silence(61)
    await town.becomes(one, "lost")
    await town.say(one)
    await town.becomes(one, "free")
    other = await town.rides.request(Reserve(one))
    await town.happened(RideStarted("late", "rider", one, spot.id, "hold"))

    def told() -> list[str]:
        rows = account.rows(
            town.topology.folder, "fleet", "SELECT body FROM callboard_stream WHERE type = 'fleet.ReservationLapsed'"
        )
        return [row["body"] for row in rows]

    await eventually(lambda: told() == [f'{{"reservation_id":"{spot.id}","ride_id":"late"}}'], "rides is told")
    await town.happened(RideStarted("early", "rider", one, other.id, "hold"))
    await town.becomes(one, "riding")
    assert len(told()) == 1


async def test_the_fleet_counts_silence_from_when_it_listens(town: Town) -> None:
    """Neither a restart nor a pause of the process, in which it heard nobody, costs a scooter."""
    await town.add()
    state = "SELECT state FROM scooters"
    await town.silence(50)
    await town.topology.crash("fleet")
    await town.silence(50)
    assert account.rows(town.topology.folder, "fleet", state) == [{"state": "free"}]
    town.clock.advance(timedelta(seconds=3600))
    await town.silence(50)
    assert account.rows(town.topology.folder, "fleet", state) == [{"state": "free"}]
    await town.silence(20)
    await eventually(lambda: account.rows(town.topology.folder, "fleet", state) == [{"state": "lost"}], "now it is lost")


async def test_only_devices_may_speak_for_scooters(town: Town) -> None:
    one = await town.add()
    stranger = await town.topology.client(fleet, name="stranger")
    await stranger.publish(Telemetry(one, 1.0, 1.0, 1.0, True))
    node = town.topology.node_of("fleet")
    await eventually(lambda: node.metrics.value("signals_refused_total", service="fleet") == 1, "it is refused")
    assert (await town.get(one)).lat == 52.5


async def test_the_fleet_gives_nobody_up_while_it_is_deaf(town: Town) -> None:
    """With its link down it hears nobody, and its clock goes on: that is no scooter's fault."""
    await town.add()
    fleet_service = town.topology.service(Fleet)
    state = "SELECT state FROM scooters"

    async def deaf(self: Fleet, signal: StillHearing, ctx: Context) -> None:
        return

    node = town.topology.node_of("fleet")
    endpoint = node.inbound.instances["fleet"].signals["fleet.StillHearing"]
    hears, endpoint.call = endpoint.call, deaf.__get__(fleet_service)  # what the cut link does on a broker
    for _ in range(30):
        town.clock.advance(timedelta(seconds=9))
        await eventually(lambda: fleet_service.looked_at >= town.clock.now(), "the fleet looks around")
    assert account.rows(town.topology.folder, "fleet", state) == [{"state": "free"}]
    endpoint.call = hears
    await town.silence(50)
    assert account.rows(town.topology.folder, "fleet", state) == [{"state": "free"}]
    await town.silence(20)
    await eventually(lambda: account.rows(town.topology.folder, "fleet", state) == [{"state": "lost"}], "now it is lost")
