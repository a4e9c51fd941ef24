"""The scooter rental: search, notices, and rides. Run with `python -m tests.bench.scenarios rental`."""

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from runtime import Node
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import FakeAuth
from services.fleet.geo import band
from services.fleet.messages import FindScooters, fleet
from services.fleet.service import Fleet, FleetSettings
from tests.bench.figures import report
from tests.sse import follow
from tests.system_under_test import System, open_system, settings
from transports.memory import MemoryTransport

SCOOTERS = 100_000


def quantiles(seconds: list[float]) -> Iterator[tuple[str, float]]:
    """Yield the median and the 99th percentile, in milliseconds."""
    yield "p50", statistics.median(seconds) * 1000
    yield "p99", statistics.quantiles(seconds, n=100)[98] * 1000


async def find_near() -> None:
    """Measure searches among 100,000 free scooters, in one city and spread over the world."""
    patient = FleetSettings(silent_seconds=1e6)
    for region, spread in (("city", 0.15), ("world", 60.0)):
        with tempfile.TemporaryDirectory() as folder:
            async with Node([FakeAuth, lambda: Fleet(patient)], MemoryTransport(), databases=SqliteFolder(folder)) as node:
                service, rng = node.service(Fleet), random.Random(1)
                assert service is not None

                def random_position(spread: float = spread, rng: random.Random = rng) -> tuple[float, float]:
                    return 10 + rng.uniform(-spread, spread), 13 + rng.uniform(-spread, spread)

                async with service.db.transaction() as tx:
                    for number in range(SCOOTERS):
                        lat, lon = random_position()
                        await tx.execute(
                            "INSERT INTO scooters (id, state, band, lat, lon, battery, seen_at) VALUES ($1, 'free', $2, $3, $4, 50, '2999-01-01T00:00:00.000000Z')",
                            str(number), band(lat), lat, lon,
                        )  # fmt: skip
                ctx = node.client("bench", (fleet,), token=FakeAuth.token("rider", "rider"))
                for radius_m, limit in ((500, 20), (5000, 20), (100_000, 100)):
                    durations: list[float] = []
                    for _ in range(300):
                        request = FindScooters(*random_position(), radius_m, limit)
                        start = time.perf_counter()
                        await ctx.request(request)
                        durations.append(time.perf_counter() - start)
                    for name, value in quantiles(durations):
                        report(f"find_{region}_{radius_m}m_{limit}_{name}", value, "ms among 100,000 free scooters")


async def rider_with_scooter(system: System) -> tuple[dict[str, str], str]:
    rider, operator = await system.bearer(), await system.bearer("operator@example.com")
    added = await system.client.post("/scooters", json={"lat": 1, "lon": 1, "battery": 80}, headers=operator)
    await system.client.post("/wallet/top-ups", json={"amount_cents": 1_000_000}, headers=rider)
    return rider, added.json()["id"]


async def notices() -> None:
    """Measure the time from the response to a start or end of a ride until the notice reaches the rider's second device."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_system(settings(Path(folder))) as system:
            rider, scooter_id = await rider_with_scooter(system)
            delays: list[float] = []
            rides: list[float] = []
            async with follow(system.url, rider) as events:

                async def wait_for_notice(response: httpx.Response) -> Any:
                    assert response.is_success, response.text
                    responded, wanted = time.perf_counter(), len(events.received) + 1
                    while len(events.received) < wanted:
                        await asyncio.sleep(0)
                    delays.append(time.perf_counter() - responded)
                    return response.json()

                for _ in range(200):
                    start = time.perf_counter()
                    response = await system.client.post("/rides", json={"scooter_id": scooter_id}, headers=rider)
                    rides.append(time.perf_counter() - start)
                    ride = await wait_for_notice(response)
                    await wait_for_notice(await system.client.post(f"/rides/{ride['id']}/end", headers=rider))
                    state = ""
                    while state != "free":
                        state = (await system.client.get(f"/scooters/{scooter_id}", headers=rider)).json()["state"]
            for name, value in quantiles(delays):
                report(f"notice_{name}", value, "ms from the response to the rider's second device")
            for name, value in quantiles(rides):
                report(f"start_ride_{name}", value, "ms for POST /rides, client included")


def main() -> None:
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    asyncio.run(find_near())
    asyncio.run(notices())
