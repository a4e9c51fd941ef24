"""One run: stories under faults, repair, and the account."""

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.chaos.account import SETTLES, Account, account
from tests.chaos.faults import Fault, inject
from tests.chaos.machine import machine
from tests.chaos.stories import PASSWORD, ride

_SCOOTERS = 60


class Outcome(NamedTuple):
    """What one run has shown.

    Attributes:
        settled: the seconds from the repair to the account.
    """

    account: Account
    stories: int
    rides: int
    faults: list[str]
    settled: float


async def run(
    folder: Path, seed: int, *, engine: str, kind: str, replicas: int = 3, seconds: float = 40, stories: int = 250, bug: str = "",
    kinds: tuple[Fault, ...] = (), at_once: int = 12, settles: float = SETTLES,
) -> Outcome:  # fmt: skip
    """Run stories while there are faults, repair everything, and compare the answers with the databases."""
    async with machine(folder, engine, kind, replicas, bug) as built:
        async with asyncio.timeout(60):
            scooters = await _add_scooters(built.url)
        faults = asyncio.create_task(inject(built, seed, seconds, kinds))
        telling = asyncio.create_task(ride(built.url, scooters, seed, stories, seconds, at_once))
        names = await faults
        await built.repair()
        await built.until_ready()
        loop = asyncio.get_running_loop()
        told = await telling
        repaired = loop.time()
        found = await account(built.folder, told, settles)
        return Outcome(found, len(told), sum(story.ride is not None for story in told), names, loop.time() - repaired)


async def _add_scooters(url: str) -> list[str]:
    async with aiohttp.ClientSession(url) as client:

        async def post(path: str, **more: Any) -> dict[str, Any]:
            while True:
                async with client.post(path, **more) as answer:
                    if answer.status == 201:
                        found: dict[str, Any] = await answer.json()
                        return found
                await asyncio.sleep(0.2)

        token = (await post("/sessions", json={"email": "operator@example.com", "password": PASSWORD}))["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        places = [{"lat": 52.5 + number / 1000, "lon": 13.4, "battery": 90.0} for number in range(_SCOOTERS)]
        return [(await post("/scooters", json=place, headers=headers))["id"] for place in places]
