"""The services while somebody sets the clock: forward and back at every step, and between two starts."""

import itertools
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from time import time

import httpx
import pytest

from config import compose
from runtime.testing import FakeAuth, eventually
from services.auth.service import Auth
from services.fleet.messages import AddScooter, GetScooter, Reserve, fleet
from services.fleet.service import Fleet, FleetSettings
from services.rides.service import Rides, price
from services.wallet.messages import GetWallet, Hold, ListEntries, TopUp, wallet
from services.wallet.service import Wallet
from tests.runtime.test_clock import HOUR, LEAPS
from tests.services import consistency
from tests.services.auth.sessions import refresh
from tests.services.test_rides import add_scooter, start, top_up
from tests.system_under_test import System, open_system, settings
from tests.topology import QuickClock, Topology, advance_in_steps

YEAR = timedelta(days=365)


@pytest.fixture
async def leaping(tmp_path: Path) -> AsyncGenerator[tuple[System, QuickClock], None]:
    """The whole system on one node, and its clock, which leaps before each HTTP request."""
    clock, leaps = QuickClock(), itertools.cycle(LEAPS)

    async def leap(request: httpx.Request) -> None:
        clock.leap(next(leaps))

    patient = compose.with_own_settings(settings(tmp_path), "fleet", FleetSettings(silent_seconds=600))
    async with open_system(patient, clock=clock) as system:
        system.client.event_hooks = {"request": [leap]}
        yield system, clock


async def test_a_rider_notices_nothing_of_a_clock_that_leaps_at_every_step(leaping: tuple[System, QuickClock]) -> None:
    system, clock = leaping
    tokens = await system.log_in()
    rider = {"Authorization": f"Bearer {tokens['access_token']}"}
    for scooter_id in [await add_scooter(system), await add_scooter(system, 52.6)]:
        await top_up(system, rider, 1000)
        started = await start(system, rider, scooter_id, **{"Idempotency-Key": scooter_id})
        assert started.status_code == 201, started.text
        for _ in LEAPS:
            again = await start(system, rider, scooter_id, **{"Idempotency-Key": scooter_id})
            assert (again.status_code, again.json()) == (201, started.json())
        await eventually(lambda: not consistency.violations(system.folder), "every service has applied the events")
        await advance_in_steps(clock, system.service(Fleet), 150)
        tokens = (await refresh(system, tokens["refresh_token"])).json()
        rider = {"Authorization": f"Bearer {tokens['access_token']}"}
        ended = (await system.client.post(f"/rides/{started.json()['id']}/end", headers=rider)).json()
        assert ended["cents"] == price(timedelta(seconds=150)), "as long as it lasted"
    await eventually(lambda: not consistency.violations(system.folder), "every service has applied the events")
    listed = (await system.client.get("/rides", headers=rider)).json()["items"]
    assert [ride["scooter_id"] for ride in listed] == [scooter_id, listed[1]["scooter_id"]], "the newest first"
    states = {row["state"] for row in consistency.query(system.folder, "fleet", "SELECT state FROM scooters")}
    assert states == {"free"}, "no scooter was taken for lost"
    assert (await system.client.delete("/sessions/current", headers=rider)).status_code == 204
    await system.service(Auth).clean_up(None)  # type: ignore[arg-type]
    for _ in LEAPS * 2:
        assert (await system.client.get("/wallet", headers=rider)).status_code == 401, "the session has ended, whatever the time"


@pytest.mark.parametrize("leap", [HOUR, -HOUR, YEAR], ids=["an hour ahead", "an hour behind", "a year ahead"])
async def test_everybody_can_log_in_after_a_start_with_a_wrong_clock(tmp_path: Path, leap: timedelta) -> None:
    clock = QuickClock()
    clock.leap(leap)
    async with open_system(settings(tmp_path), clock=clock) as system:
        clock.leap(-leap)
        first = await system.log_in()
        headers = {"Authorization": f"Bearer {first['access_token']}"}
        assert (await system.client.get("/wallet", headers=headers)).status_code == 200
    clock = QuickClock()
    async with open_system(settings(tmp_path), clock=clock) as system:
        headers = await system.bearer()
        assert (await system.client.get("/wallet", headers=headers)).status_code == 200
        assert (await refresh(system, first["refresh_token"])).status_code == 201
        await system.service(Auth).clean_up(None)  # type: ignore[arg-type]
        clock.advance(timedelta(days=31))
        await system.service(Auth).clean_up(None)  # type: ignore[arg-type]
        assert consistency.query(system.folder, "auth", "SELECT * FROM sessions") == [], "no session outlasts its lifetime"
        assert len(system.service(Auth).keys.published().keys) == 2, "the signing key is a month old"


class RentalClock(QuickClock):
    """A clock that leaves tokens alone: those of `FakeAuth` are stamped by the machine's clock."""

    def possible(self) -> tuple[float, float]:
        return time(), time()


class Rental:
    """Fleet, wallet, and rides on one node, with the requests that rides makes."""

    def __init__(self, folder: Path) -> None:
        self.topology = Topology("one-node-serialized", folder)
        self.clock = self.topology.clock = RentalClock()

    async def start(self) -> None:
        await self.topology.start(FakeAuth, Wallet, Fleet, Rides, heartbeat=0.5)
        self.operator = await self.topology.client(fleet, token=FakeAuth.token("operator", "operator"))
        self.rider = await self.topology.client(wallet, token=FakeAuth.token("rider", "rider"))
        self.rides = await self.topology.client(fleet, wallet, name="rides", token=FakeAuth.token("rider", "rider"))

    async def restart(self, leap: timedelta) -> None:
        """Start everything again with a clock that was set meanwhile."""
        await self.topology.close()
        passed = self.clock.now()
        self.topology = Topology("one-node-serialized", self.topology.folder)
        self.clock = self.topology.clock = RentalClock(passed + leap)
        await self.start()

    async def looked(self) -> None:
        """Look for what has expired, as both services do every second."""
        wallet_service, fleet_service = self.topology.service(Wallet), self.topology.service(Fleet)
        await wallet_service.expire_holds(self.topology.nodes[0].inbound.instances["wallet"].context())
        await fleet_service.expire_reservations(self.topology.nodes[0].inbound.instances["fleet"].context())

    async def state(self, scooter_id: str) -> tuple[str, int]:
        return (await self.operator.request(GetScooter(scooter_id))).state, (await self.rider.request(GetWallet())).held_cents


@pytest.fixture
async def rental(tmp_path: Path) -> AsyncGenerator[Rental, None]:
    made = Rental(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.topology.close()


@pytest.mark.parametrize("leap", [HOUR, -HOUR, YEAR, -YEAR], ids=str)
@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
async def test_a_hold_and_a_reservation_last_a_minute_however_the_clock_is_set(
    rental: Rental, leap: timedelta, restarts: bool
) -> None:
    scooter = (await rental.operator.request(AddScooter(52.5, 13.4, 90))).id
    await rental.rider.request(TopUp(1000))
    await rental.rides.request(Hold(500))
    await rental.rides.request(Reserve(scooter))
    if restarts:
        await rental.restart(leap)
    else:
        rental.clock.leap(leap)
    await rental.looked()
    if restarts and leap > timedelta(0):  # nobody can tell it from an hour in which nothing ran
        assert await rental.state(scooter) == ("free", 0)
        return
    rental.clock.advance(timedelta(seconds=58))
    await rental.looked()
    assert await rental.state(scooter) == ("reserved", 500)
    rental.clock.advance(timedelta(seconds=4))

    async def expired() -> bool:
        return await rental.state(scooter) == ("free", 0)

    await eventually(expired, "the reservation and the hold have expired")


@pytest.mark.parametrize("leap", [HOUR, -HOUR], ids=str)
async def test_no_scooter_is_lost_because_the_clock_was_set_between_two_starts(rental: Rental, leap: timedelta) -> None:
    scooter = (await rental.operator.request(AddScooter(52.5, 13.4, 90))).id
    await rental.restart(leap)
    await advance_in_steps(rental.clock, rental.topology.service(Fleet), 50)
    assert (await rental.state(scooter))[0] == "free"
    await advance_in_steps(rental.clock, rental.topology.service(Fleet), 30)

    async def lost() -> bool:
        return (await rental.state(scooter))[0] == "lost"

    await eventually(lost, "the scooter is lost")


async def test_pages_are_in_the_order_of_the_commits_after_the_clock_was_set_back(rental: Rental) -> None:
    for cents in (1, 2):
        await rental.rider.request(TopUp(cents))
    await rental.restart(-YEAR)
    for cents in (3, 4):
        await rental.rider.request(TopUp(cents))
    seen: list[int] = []
    cursor = None
    while True:
        page = await rental.rider.request(ListEntries(cursor, 1))
        seen += [entry.cents for entry in page.items]
        cursor = page.items[-1].id
        if page.next is None:
            break
    assert seen == [4, 3, 2, 1]
