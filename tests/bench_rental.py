"""`make bench`, the rental's part: finding scooters, hearing of a ride's end, and riding. One JSON object a line."""

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
from services.fleet.messages import FindScooters, fleet
from services.fleet.places import band
from services.fleet.service import Fleet
from tests.bench import say
from tests.sse import follow
from tests.system_under_test import System, open_system, settings
from transports.memory import MemoryTransport

SCOOTERS = 100_000


def quantiles(seconds: list[float]) -> Iterator[tuple[str, float]]:
    yield "p50", statistics.median(seconds) * 1000
    yield "p99", statistics.quantiles(seconds, n=100)[98] * 1000


async def find_near() -> None:
    """Among 100,000 free scooters in one city, and all over the world."""
    for what, spread in (("city", 0.15), ("world", 60.0)):
        with tempfile.TemporaryDirectory() as folder:
            async with Node([FakeAuth, Fleet], MemoryTransport(), databases=SqliteFolder(folder)) as node:
                service, rng = node.service(Fleet), random.Random(1)
                assert service is not None

                def place(spread: float = spread, rng: random.Random = rng) -> tuple[float, float]:
                    return 10 + rng.uniform(-spread, spread), 13 + rng.uniform(-spread, spread)

                async with service.db.transaction() as tx:
                    for number in range(SCOOTERS):
                        lat, lon = place()
                        await tx.execute(
                            "INSERT INTO scooters (id, state, band, lat, lon, battery, seen_at) VALUES ($1, 'free', $2, $3, $4, 50, '9')",
                            str(number), band(lat), lat, lon,
                        )  # fmt: skip
                await service.db.execute("UPDATE scooters SET seen_at = '2999-01-01T00:00:00Z'")
                ctx = node.client("bench", (fleet,), token=FakeAuth.token("rider", "rider"))
                for radius_m, limit in ((500, 20), (5000, 20), (100_000, 100)):
                    taken: list[float] = []
                    for _ in range(300):
                        asked = FindScooters(*place(), radius_m, limit)
                        start = time.perf_counter()
                        await ctx.request(asked)
                        taken.append(time.perf_counter() - start)
                    for name, value in quantiles(taken):
                        say(f"find_{what}_{radius_m}m_{limit}_{name}", value, "ms among 100,000 free scooters")


async def rider_with_scooter(system: System) -> tuple[dict[str, str], str]:
    rider, operator = await system.bearer(), await system.bearer("operator@example.com")
    added = await system.client.post("/scooters", json={"lat": 1, "lon": 1, "battery": 80}, headers=operator)
    await system.client.post("/wallet/top-ups", json={"amount_cents": 1_000_000}, headers=rider)
    return rider, added.json()["id"]


async def hear() -> None:
    """From the answer to a ride's start or end, to the rider's second device."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_system(settings(Path(folder))) as system:
            rider, scooter_id = await rider_with_scooter(system)
            late: list[float] = []
            rides: list[float] = []
            async with follow(system.url, rider) as events:

                async def heard(answer: httpx.Response) -> Any:
                    assert answer.is_success, answer.text
                    answered, wanted = time.perf_counter(), len(events.came) + 1
                    while len(events.came) < wanted:
                        await asyncio.sleep(0)
                    late.append(time.perf_counter() - answered)
                    return answer.json()

                for _ in range(200):
                    start = time.perf_counter()
                    answer = await system.client.post("/rides", json={"scooter_id": scooter_id}, headers=rider)
                    rides.append(time.perf_counter() - start)
                    ride = await heard(answer)
                    await heard(await system.client.post(f"/rides/{ride['id']}/end", headers=rider))
                    state = ""
                    while state != "free":
                        state = (await system.client.get(f"/scooters/{scooter_id}", headers=rider)).json()["state"]
            for name, value in quantiles(late):
                say(f"notice_{name}", value, "ms from the answer to the rider's second device")
            for name, value in quantiles(rides):
                say(f"start_ride_{name}", value, "ms for POST /rides, client included")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    asyncio.run(find_near())
    asyncio.run(hear())
