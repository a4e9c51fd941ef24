"""The fleet: scooters are found through an index, reserved by one rider at a time, and marked lost when they fall silent."""

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
    METRES_PER_DEGREE,
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
from services.fleet.service import Fleet
from services.fleet.store import NEAR
from services.rides.messages import RideEnded, RideStarted
from services.rides.service import Rides
from services.wallet.service import Wallet
from tests.services import consistency
from tests.topology import QuickClock, Topology, advance_in_steps


def metres(lat: float, lon: float, other_lat: float, other_lon: float) -> float:
    """Return the distance between two points on a sphere, in metres (haversine formula)."""
    a, b = math.radians(lat), math.radians(other_lat)
    half = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(other_lon - lon) / 2) ** 2
    return METRES_PER_DEGREE * math.degrees(2 * math.asin(min(1.0, math.sqrt(half))))


class FakeDevices(Service):
    """A fake devices service that records orders to scooters and publishes telemetry for them."""

    contract = devices
    calls = (fleet,)

    def __init__(self) -> None:
        self.orders: list[Signal] = []

    async def on_start(self, ctx: Context) -> None:
        self.ctx = ctx

    @subscribes
    async def on_lock(self, signal: Lock, ctx: Context) -> None:
        self.orders.append(signal)

    @subscribes
    async def on_unlock(self, signal: Unlock, ctx: Context) -> None:
        self.orders.append(signal)


class FleetEnvironment:
    """The fleet and the services it works with, on a topology."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.clock = topology.clock = QuickClock()

    async def start(self) -> None:
        await self.topology.start(FakeAuth, Wallet, Fleet, Rides, FakeDevices)
        self.devices = self.topology.service(FakeDevices)
        self.operator = await self.topology.client(fleet, token=FakeAuth.token("operator", "operator"))
        self.rides = await self.topology.client(fleet, name="rides", token=FakeAuth.token("rider", "rider"))

    async def add(self, lat: float = 52.5, lon: float = 13.4) -> str:
        return (await self.operator.request(AddScooter(lat, lon, 90))).id

    async def get(self, scooter_id: str) -> Scooter:
        return await self.operator.request(GetScooter(scooter_id))

    async def wait_for_state(self, scooter_id: str, state: str) -> None:
        async def in_state() -> bool:
            return (await self.get(scooter_id)).state == state

        await eventually(in_state, f"the scooter is {state}")

    async def near(self, lat: float, lon: float, radius_m: float = 1000, limit: int = 20) -> list[Scooter]:
        return list((await self.operator.request(FindScooters(lat, lon, radius_m, limit))).items)

    async def publish(self, *events: Event) -> None:
        """Publish events as the rides service."""
        async with self.topology.service(Rides).db.transaction() as tx:
            for event in events:
                await tx.publish(event)

    async def silence(self, seconds: float) -> None:
        await advance_in_steps(self.clock, self.topology.service(Fleet), seconds)

    async def report(self, scooter_id: str, *, lat: float = 52.5, lon: float = 13.4, locked: bool = True) -> None:
        await self.devices.ctx.publish(Telemetry(scooter_id, lat, lon, 50.0, locked))


@pytest.fixture
async def env(topology: Topology) -> FleetEnvironment:
    env = FleetEnvironment(topology)
    await env.start()
    return env


async def test_find_scooters_returns_the_nearest_first_and_misses_none(env: FleetEnvironment) -> None:
    """The results are compared with a scan of every scooter: in a city, at the date line, and near a pole."""
    rng = random.Random(3)
    positions: dict[str, tuple[float, float]] = {}
    for lat, lon, spread in ((52.5, 13.4, 0.05), (0.0, 179.999, 0.02), (89.99, 0.0, 0.008), (-33.9, 151.2, 0.3)):
        for _ in range(40):
            at = (
                round(lat + rng.uniform(-spread, spread), 6),
                round((lon + rng.uniform(-spread, spread) + 180) % 360 - 180, 6),
            )
            positions[await env.add(*at)] = at
    for lat, lon in ((52.5, 13.4), (52.47, 13.42), (0.0, 180.0), (0.001, -179.999), (89.99, 0.01), (-33.9, 151.2), (10.0, 10.0)):
        for radius_m in (50, 700, 5000, 40_000):
            found = await env.near(lat, lon, radius_m, 100)
            assert len({scooter.id for scooter in found}) == len(found), "each scooter is listed once"
            distances = [metres(lat, lon, scooter.lat, scooter.lon) for scooter in found]
            # the index treats a degree of longitude as equally long everywhere in the circle, which is wrong far out and near a pole
            slack = 1.02 if abs(lat) < 80 else 1.5
            assert all(distance <= radius_m * slack for distance in distances)
            if abs(lat) < 80:
                assert distances == sorted(distances) or all(
                    one <= next_one * 1.02 for one, next_one in itertools.pairwise(distances)
                )
                inside = {id for id, at in positions.items() if metres(lat, lon, *at) <= radius_m / slack}
                assert inside <= {scooter.id for scooter in found} or len(found) == 100
    assert [scooter.id for scooter in await env.near(52.5, 13.4, 100_000, 5)] == [
        scooter.id for scooter in (await env.near(52.5, 13.4, 5000, 100))[:5]
    ], "a wider radius finds the same nearest scooters"


async def test_find_scooters_uses_the_index(env: FleetEnvironment) -> None:
    await env.add()
    with closing(sqlite3.connect(env.topology.folder / "fleet.sqlite")) as database:
        sql = re.sub(r"\$(\d+)", r"?\1", f"EXPLAIN QUERY PLAN {NEAR}")
        plan = [row[3] for row in database.execute(sql, (1, 3, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1))]
    assert any("scooters_near (band=? AND lon>? AND lon<?)" in step for step in plan), plan


async def test_a_reserved_scooter_is_taken_until_it_is_freed(env: FleetEnvironment) -> None:
    one = await env.add()
    spot = await env.rides.request(Reserve(one))
    assert (await env.get(one)).state == "reserved"
    assert await env.near(52.5, 13.4) == [], "only free scooters are found"
    with pytest.raises(ScooterTaken) as taken:
        await env.rides.request(Reserve(one))
    assert taken.value.scooter_id == one
    await env.rides.request(Free(spot.id))
    await env.rides.request(Free(spot.id))
    assert (await env.get(one)).state == "free"
    with pytest.raises(UnknownScooter):
        await env.rides.request(Reserve("none"))
    with pytest.raises(Forbidden):
        await env.operator.request(Reserve(one))


async def test_a_reservation_that_no_ride_confirms_expires_after_a_minute(env: FleetEnvironment) -> None:
    one, two = await env.add(), await env.add()
    await env.rides.request(Reserve(one))
    confirmed = await env.rides.request(Reserve(two))
    env.clock.advance(timedelta(seconds=55))
    await env.publish(RideStarted("ride", "rider", two, confirmed.id, "hold"))
    await env.wait_for_state(two, "riding")
    for id in (one, two):
        await env.report(id)
    assert (await env.get(one)).state == "reserved"
    env.clock.advance(timedelta(seconds=6))
    await env.wait_for_state(one, "free")
    assert (await env.get(two)).state == "riding"


async def test_no_reservation_expires_before_all_events_of_rides_are_applied(
    env: FleetEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await env.add()
    spot = await env.rides.request(Reserve(one))
    service = env.topology.service(Fleet)
    checks: list[bool] = []
    caught_up = Context.caught_up

    async def not_yet(ctx: Context, contract: object) -> bool:
        if ctx.service != "fleet":
            return await caught_up(ctx, contract)  # type: ignore[arg-type]
        checks.append(True)
        return False

    monkeypatch.setattr(Context, "caught_up", not_yet)
    env.clock.advance(timedelta(seconds=61))
    await eventually(lambda: len(checks) >= 3, "the fleet has checked three times whether it is caught up")
    row = await service.db.fetch_one("SELECT reservation_id FROM scooters WHERE id = $1", one)
    assert row is not None
    assert row["reservation_id"] == spot.id


async def test_lock_and_unlock_are_repeated_until_the_scooter_obeys(env: FleetEnvironment) -> None:
    one = await env.add()
    spot = await env.rides.request(Reserve(one))
    await env.publish(RideStarted("ride", "rider", one, spot.id, "hold"))
    await eventually(lambda: env.devices.orders == [Unlock(one)], "the scooter is unlocked")
    await env.report(one, locked=True)
    await eventually(lambda: env.devices.orders == [Unlock(one)] * 2, "an order that the scooter has not obeyed is repeated")
    await env.report(one, locked=False, lat=52.6)
    await env.wait_for_state(one, "riding")
    await env.publish(RideEnded("ride", "rider", one, 120))
    await eventually(lambda: env.devices.orders[2:] == [Lock(one)], "the scooter is locked")
    assert (await env.get(one)).lat == 52.6
    await env.report(one, locked=False)
    await eventually(lambda: env.devices.orders[2:] == [Lock(one)] * 2, "an order that the scooter has not obeyed is repeated")


async def test_a_silent_scooter_is_lost_until_it_reports_again(env: FleetEnvironment) -> None:
    one, two = await env.add(), await env.add()
    await env.silence(40)
    await env.report(two)

    async def second_has_reported() -> bool:
        return (await env.get(two)).battery == 50.0

    await eventually(second_has_reported, "the second scooter has reported")
    await env.silence(21)
    await env.wait_for_state(one, "lost")
    assert (await env.get(two)).state == "free"
    with pytest.raises(ScooterUnreachable):
        await env.rides.request(Reserve(one))
    await env.report(one)
    await env.wait_for_state(one, "free")


async def test_a_ride_that_starts_on_a_lapsed_reservation_gets_a_reservation_lapsed_event(env: FleetEnvironment) -> None:
    """The scooter was lost between the reservation and the ride. A later reservation by another rider stays valid."""
    one = await env.add()
    spot = await env.rides.request(Reserve(one))
    await env.silence(61)
    await env.wait_for_state(one, "lost")
    await env.report(one)
    await env.wait_for_state(one, "free")
    other = await env.rides.request(Reserve(one))
    await env.publish(RideStarted("late", "rider", one, spot.id, "hold"))

    def lapsed() -> list[str]:
        rows = consistency.query(
            env.topology.folder, "fleet", "SELECT body FROM callboard_stream WHERE type = 'fleet.ReservationLapsed'"
        )
        return [row["body"] for row in rows]

    await eventually(
        lambda: lapsed() == [f'{{"reservation_id":"{spot.id}","ride_id":"late"}}'], "the fleet has published ReservationLapsed"
    )
    await env.publish(RideStarted("early", "rider", one, other.id, "hold"))
    await env.wait_for_state(one, "riding")
    assert len(lapsed()) == 1


async def test_silence_counts_only_while_the_fleet_is_listening(env: FleetEnvironment) -> None:
    """No scooter is lost because the process restarted or paused and received no signals meanwhile."""
    await env.add()
    state = "SELECT state FROM scooters"
    await env.silence(50)
    await env.topology.crash_and_restart("fleet")
    await env.silence(50)
    assert consistency.query(env.topology.folder, "fleet", state) == [{"state": "free"}]
    env.clock.advance(timedelta(seconds=3600))
    await env.silence(50)
    assert consistency.query(env.topology.folder, "fleet", state) == [{"state": "free"}]
    await env.silence(20)
    await eventually(lambda: consistency.query(env.topology.folder, "fleet", state) == [{"state": "lost"}], "the scooter is lost")


async def test_telemetry_is_accepted_only_from_devices(env: FleetEnvironment) -> None:
    one = await env.add()
    intruder = await env.topology.client(fleet, name="intruder")
    await intruder.publish(Telemetry(one, 1.0, 1.0, 1.0, True))
    node = env.topology.node_of("fleet")
    await eventually(lambda: node.metrics.value("signals_refused_total", service="fleet") == 1, "the signal is refused")
    assert (await env.get(one)).lat == 52.5


async def test_no_scooter_is_lost_while_the_fleet_receives_no_signals(env: FleetEnvironment) -> None:
    """While its link is down, the fleet receives nothing although time passes. No scooter is to blame for that."""
    await env.add()
    fleet_service = env.topology.service(Fleet)
    state = "SELECT state FROM scooters"

    async def ignore(self: Fleet, signal: StillHearing, ctx: Context) -> None:
        return

    node = env.topology.node_of("fleet")
    endpoint = node.inbound.instances["fleet"].signals["fleet.StillHearing"]
    original, endpoint.call = endpoint.call, ignore.__get__(fleet_service)  # has the same effect as a cut link to a broker
    for _ in range(30):
        env.clock.advance(timedelta(seconds=9))
        await eventually(lambda: fleet_service.looked_at >= env.clock.steady(), "the fleet has checked its scooters")
    assert consistency.query(env.topology.folder, "fleet", state) == [{"state": "free"}]
    endpoint.call = original
    await env.silence(50)
    assert consistency.query(env.topology.folder, "fleet", state) == [{"state": "free"}]
    await env.silence(20)
    await eventually(lambda: consistency.query(env.topology.folder, "fleet", state) == [{"state": "lost"}], "the scooter is lost")
