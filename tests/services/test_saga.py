"""Starting and ending a ride, with trouble at every commit of every service: it fails, it hangs, or the process dies."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runtime import Context, DatabaseError, ServiceError
from runtime.testing import FakeAuth
from runtime.testing.expectations import ConformanceError
from runtime.testing.faults import CrashingDatabase
from services.fleet.messages import AddScooter, GetScooter, ScooterTaken, fleet
from services.fleet.service import Fleet, FleetSettings
from services.notices.service import Notices
from services.rides.messages import EndRide, Ride, StartRide, rides
from services.rides.service import Rides
from services.wallet.messages import GetWallet, TopUp, wallet
from services.wallet.service import Wallet
from tests.services import account
from tests.topology import QuickClock, Topology, eventually

TIMEOUT = 0.4


class Trouble:
    """Something that happens once: at the `number`th commit of a service, right before it or right after."""

    def __init__(self) -> None:
        self.kind = ""
        self.place = ("", "", 0)
        self.commits: dict[tuple[str, str], int] = {}
        self.happened = asyncio.Event()
        self.died = asyncio.Event()

    def arm(self, kind: str, service: str, moment: str, number: int) -> None:
        self.kind, self.place = kind, (service, moment, number)
        self.commits.clear()

    async def visit(self, service: str, moment: str) -> None:
        number = self.commits[service, moment] = self.commits.get((service, moment), 0) + 1
        if (service, moment, number) != self.place or self.happened.is_set():
            return
        self.happened.set()
        if self.kind == "fail":
            raise DatabaseError("the disk is full")
        if self.kind == "hang":
            await asyncio.sleep(2 * TIMEOUT)  # longer than anybody waits
        else:
            await self.died.wait()
            raise DatabaseError("the process has died")  # for what the test itself waits for in it


class TroubleAt:
    """Where a service's database comes to."""

    def __init__(self, trouble: Trouble, service: str) -> None:
        self._trouble = trouble
        self._service = service

    async def visit(self, place: str) -> None:
        await self._trouble.visit(self._service, place.removesuffix(" commit"))


class City:
    """The rental on a topology, with a rider who has money and a scooter that is free."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.trouble = Trouble()
        self.standing = asyncio.Lock()
        self.clock = topology.clock = QuickClock()
        topology.database = lambda database, service: CrashingDatabase(database, TroubleAt(self.trouble, service))
        self.token = FakeAuth.token("rider", "rider")

    async def start(self) -> None:
        settings = FleetSettings(silent_seconds=1e6)
        await self.topology.play(
            FakeAuth,
            Wallet,
            lambda: Fleet(settings),
            Rides,
            Notices,
            request_timeout=TIMEOUT,
            undo_timeout=TIMEOUT,
            heartbeat=0.5,
        )
        operator = await self.topology.client(fleet, token=FakeAuth.token("operator", "operator"))
        self.scooter = (await operator.request(AddScooter(52.5, 13.4, 90), key="scooter")).id
        await (await self.client()).request(TopUp(2000), key="top-up")

    async def client(self) -> Context:
        async with self.standing:
            return await self.topology.client(rides, wallet, fleet, token=self.token)

    async def settle(self) -> None:
        """90 seconds pass; afterwards the account must be right."""
        self.clock.advance(timedelta(seconds=90))
        try:
            await eventually(lambda: not account.faults(self.topology.folder), "the account is right")
        except ConformanceError:
            raise AssertionError(account.faults(self.topology.folder)) from None

    async def die_if_told(self) -> None:
        await self.trouble.happened.wait()
        if self.trouble.kind == "crash":
            async with self.standing:
                self.trouble.died.set()
                await self.topology.crash(self.trouble.place[0])


# What a ride commits: the wallet takes the hold, hears that the ride began, and settles it; the fleet reserves, hands over, and
# takes back; rides claims the request's key, begins the ride, and ends it; notices tells of the beginning and the end.
COMMITS = [(service, number) for service in ("wallet", "fleet", "rides") for number in (1, 2, 3)] + [
    ("notices", 1),
    ("notices", 2),
]
TROUBLES = [("fail", "before"), ("hang", "before"), ("hang", "after"), ("crash", "before"), ("crash", "after")]


@pytest.fixture(params=["one-node-zero-copy", "apart-serialized"])
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[City, None]:
    topology = Topology(request.param, tmp_path)
    try:
        made = City(topology)
        await made.start()
        yield made
    finally:
        await topology.close()


@pytest.mark.parametrize(("kind", "moment"), TROUBLES)
@pytest.mark.parametrize(("service", "number"), COMMITS)
async def test_a_ride_with_trouble(deployment: City, service: str, number: int, kind: str, moment: str) -> None:
    deployment.trouble.arm(kind, service, moment, number)
    dying = asyncio.create_task(deployment.die_if_told())

    async def insist(message: Any) -> Ride:
        """Asks again as a patient client does, after everything has expired: with the same key, unless the answer was final."""
        key = "once"
        for _ in range(3):
            ctx = await deployment.client()
            try:
                ride: Ride = await ctx.request(message, key=key)
            except ServiceError as error:
                if isinstance(error, ScooterTaken):  # by the attempt that died, until that expires
                    key = "again"
                if deployment.trouble.kind == "crash":
                    await dying
                await deployment.settle()
            else:
                return ride
        raise AssertionError("it was refused three times")

    ride = await insist(StartRide(deployment.scooter))
    assert ride.state == "active"
    if deployment.trouble.kind == "crash" and deployment.trouble.happened.is_set():
        await dying
    await deployment.settle()
    assert (await insist(EndRide(ride.id))).state == "ended"
    await eventually(deployment.trouble.happened.is_set, "the trouble was met")
    await dying
    await deployment.settle()
    (only,) = account.rows(deployment.topology.folder, "rides", "SELECT * FROM rides")
    assert (only["id"], only["state"]) == (ride.id, "ended")
    ctx = await deployment.client()
    assert (await ctx.request(GetWallet())).balance_cents == 2000 - only["cents"]
    assert (await ctx.request(GetScooter(deployment.scooter))).state == "free"
