"""The simulated scooters: they move, use battery, and obey lock and unlock."""

from pathlib import Path

from runtime import Clock, Random
from runtime.testing import FakeAuth, eventually
from services.devices.scooter import Scooter
from services.devices.service import Devices, DeviceSettings
from services.fleet.messages import FindScooters, GetScooter, fleet
from services.fleet.service import Fleet
from services.rides.messages import EndRide, StartRide, rides
from services.rides.service import Rides
from services.wallet.messages import TopUp, wallet
from services.wallet.service import Wallet
from tests.services import consistency
from tests.topology import QuickClock, Topology


def test_a_parked_scooter_stays_put_and_a_riding_one_moves_and_uses_battery() -> None:
    random = Random(Clock(), 1)
    scooter = Scooter("s", 52.5, 13.4, 80.0, locked=True)
    reports = [report for _ in range(120) if (report := scooter.step(1.0, random)) is not None]
    assert 8 <= len(reports) <= 20
    assert {(report.lat, report.lon, report.battery, report.locked) for report in reports} == {(52.5, 13.4, 80.0, True)}
    scooter.obey(locked=False)
    riding = [report for _ in range(120) if (report := scooter.step(1.0, random)) is not None]
    assert len(riding) >= 60
    assert riding[-1].battery < 78.5
    assert (riding[-1].lat, riding[-1].lon) != (52.5, 13.4)
    assert not riding[-1].locked


def test_a_scooter_with_an_empty_battery_stops_until_it_is_parked() -> None:
    random = Random(Clock(), 1)
    scooter = Scooter("s", 90.0, 180.0, 0.01, locked=False)
    for _ in range(10):
        scooter.step(1.0, random)
    stopped_at = scooter.lat, scooter.lon
    scooter.step(1.0, random)
    assert (scooter.battery, (scooter.lat, scooter.lon)) == (0.0, stopped_at)
    scooter.obey(locked=True)
    scooter.step(1.0, random)
    assert scooter.battery == 100.0


async def test_scooters_are_enrolled_once_and_obey_lock_and_unlock(topology: Topology) -> None:
    topology.clock = QuickClock()
    await topology.start(FakeAuth, Wallet, Fleet, Rides, lambda: Devices(DeviceSettings(count=20)))
    ctx = await topology.client(rides, wallet, fleet, token=FakeAuth.token("rider", "rider"))

    async def all_enrolled() -> bool:
        return len((await ctx.request(FindScooters(52.52, 13.405, 3000, 100))).items) == 20

    await eventually(all_enrolled, "twenty scooters are enrolled")
    await ctx.request(TopUp(2000))
    scooter = (await ctx.request(FindScooters(52.52, 13.405, 3000))).items[0]
    ride = await ctx.request(StartRide(scooter.id))
    device = topology.service(Devices).scooters[scooter.id]
    await eventually(lambda: not device.locked, "the scooter is unlocked")

    async def has_moved() -> bool:
        seen = await ctx.request(GetScooter(scooter.id))
        return (seen.lat, seen.lon) != (scooter.lat, scooter.lon) and seen.battery < scooter.battery

    await eventually(has_moved, "the fleet sees the scooter move and use battery")
    await ctx.request(EndRide(ride.id))
    await eventually(lambda: device.locked, "the scooter is locked again")


async def test_the_same_scooters_are_simulated_after_a_restart(one_node: Topology, tmp_path: Path) -> None:
    one_node.clock = QuickClock()
    await one_node.start(FakeAuth, Fleet, Rides, Wallet, lambda: Devices(DeviceSettings(count=10)))
    await eventually(lambda: len(one_node.service(Devices).scooters) >= 4, "at least four scooters are enrolled")
    await one_node.crash_and_restart("devices")
    await eventually(lambda: len(one_node.service(Devices).scooters) == 10, "all ten scooters are simulated again")
    assert len(consistency.query(tmp_path, "fleet", "SELECT id FROM scooters")) == 10, "no scooter was added twice"
