"""Starting and ending a ride with a fault at every commit of every service: the commit fails or hangs, or the process dies."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from itertools import product
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
from tests.services import consistency
from tests.topology import QuickClock, Topology, eventually

TIMEOUT = 0.4


class CommitFault:
    """A fault that occurs once, right before or right after the `number`th commit of a service."""

    def __init__(self) -> None:
        self.kind = ""
        self.target = ("", "", 0)
        self.commits: dict[tuple[str, str], int] = {}
        self.occurred = asyncio.Event()
        self.died = asyncio.Event()

    def arm(self, kind: str, service: str, moment: str, number: int) -> None:
        self.kind, self.target = kind, (service, moment, number)
        self.commits.clear()

    async def visit(self, service: str, moment: str) -> None:
        number = self.commits[service, moment] = self.commits.get((service, moment), 0) + 1
        if (service, moment, number) != self.target or self.occurred.is_set():
            return
        self.occurred.set()
        if self.kind == "fail":
            raise DatabaseError("the disk is full")
        if self.kind == "hang":
            await asyncio.sleep(2 * TIMEOUT)  # longer than any caller waits
        else:
            await self.died.wait()
            raise DatabaseError("the process has died")  # ends what this test itself still awaits in the dead node


class CommitHook:
    """The hook that a service's `CrashingDatabase` visits around each commit."""

    def __init__(self, fault: CommitFault, service: str) -> None:
        self._fault = fault
        self._service = service

    async def visit(self, place: str) -> None:
        await self._fault.visit(self._service, place.removesuffix(" commit"))


class RentalSystem:
    """The rental services on a topology, with a funded rider and a free scooter."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.fault = CommitFault()
        self.topology_lock = asyncio.Lock()
        self.clock = topology.clock = QuickClock()
        topology.wrap_database = lambda database, service: CrashingDatabase(database, CommitHook(self.fault, service))
        self.token = FakeAuth.token("rider", "rider")

    async def start(self) -> None:
        settings = FleetSettings(silent_seconds=1e6)
        await self.topology.start(
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
        self.scooter = (await operator.request(AddScooter(52.5, 13.4, 90), key="scooter", timeout=10)).id
        await (await self.client()).request(TopUp(2000), key="top-up", timeout=10)

    async def client(self) -> Context:
        async with self.topology_lock:
            return await self.topology.client(rides, wallet, fleet, token=self.token)

    async def settle(self) -> None:
        """Advance the clock by 90 seconds, then wait until the databases are consistent."""
        self.clock.advance(timedelta(seconds=90))
        try:
            await eventually(lambda: not consistency.violations(self.topology.folder), "the databases are consistent")
        except ConformanceError:
            raise AssertionError(consistency.violations(self.topology.folder)) from None

    async def crash_when_the_fault_occurs(self) -> None:
        await self.fault.occurred.wait()
        if self.fault.kind == "crash":
            async with self.topology_lock:
                self.fault.died.set()
                await self.topology.crash_and_restart(self.fault.target[0])


# The commits of one ride. The wallet places the hold, applies the ride's start, and settles it. The fleet reserves the scooter,
# hands it over, and takes it back. Rides claims the request's key, starts the ride, and ends it. Notices writes a notice for
# the start and one for the end.
COMMITS = [(service, number) for service in ("wallet", "fleet", "rides") for number in (1, 2, 3)] + [
    ("notices", 1),
    ("notices", 2),
]
FAULTS = [("fail", "before"), ("hang", "before"), ("hang", "after"), ("crash", "before"), ("crash", "after")]


TOPOLOGIES = ("one-node-zero-copy", "separate-nodes-serialized")


def cases() -> Iterator[Any]:
    """Yield every fault at every commit on every topology. The shorter run has each on one of the topologies, in turn."""
    for (at, topology), (what, fault), (where, commit) in product(enumerate(TOPOLOGIES), enumerate(FAULTS), enumerate(COMMITS)):
        marks = pytest.mark.long if (at + what + where) % 2 else ()
        name = "-".join(map(str, (topology, *commit, *fault)))
        yield pytest.param(topology, *commit, *fault, marks=marks, id=name)


@pytest.fixture
async def rental(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[RentalSystem, None]:
    topology = Topology(request.param, tmp_path)
    try:
        rental_system = RentalSystem(topology)
        await rental_system.start()
        yield rental_system
    finally:
        await topology.close()


@pytest.mark.parametrize(("rental", "service", "number", "kind", "moment"), list(cases()), indirect=["rental"])
async def test_a_ride_survives_a_fault_at_any_commit_of_any_service(
    rental: RentalSystem, service: str, number: int, kind: str, moment: str
) -> None:
    rental.fault.arm(kind, service, moment, number)
    crashing = asyncio.create_task(rental.crash_when_the_fault_occurs())

    async def request_until_answered(message: Any) -> Ride:
        """Retry as a patient client does, after everything has expired, with the same key unless the answer was final."""
        key = "once"
        for _ in range(3):
            ctx = await rental.client()
            try:
                ride: Ride = await ctx.request(message, key=key)
            except ServiceError as error:
                if isinstance(error, ScooterTaken):  # taken by the attempt that died, until its reservation expires
                    key = "again"
                if rental.fault.kind == "crash":
                    await crashing
                await rental.settle()
            else:
                return ride
        raise AssertionError("the request was refused three times")

    ride = await request_until_answered(StartRide(rental.scooter))
    assert ride.state == "active"
    if rental.fault.kind == "crash" and rental.fault.occurred.is_set():
        await crashing
    await rental.settle()
    assert (await request_until_answered(EndRide(ride.id))).state == "ended"
    await eventually(rental.fault.occurred.is_set, "the fault has occurred")
    await crashing
    await rental.settle()
    (ride_row,) = consistency.query(rental.topology.folder, "rides", "SELECT * FROM rides")
    assert (ride_row["id"], ride_row["state"]) == (ride.id, "ended")
    ctx = await rental.client()
    assert (await ctx.request(GetWallet())).balance_cents == 2000 - ride_row["cents"]
    assert (await ctx.request(GetScooter(rental.scooter))).state == "free"
