"""Replicas of every service on PostgreSQL, as processes: one after the other is killed or stopped while clients go on."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runtime.testing import eventually
from tests.postgres import shared_postgres
from tests.services import consistency
from tests.services.test_rides import add_scooter
from tests.system.test_up import pids
from tests.system_under_test import System, callboard_up

SERVICES = ("auth", "wallet", "fleet", "rides", "notices")
RATE = 90
"""Requests per second."""


class Load:
    """Clients that make requests which may be repeated: queries, and keyed requests.

    Attributes:
        made: how many requests were made.
        failed: those that were answered with a server's error, or not at all.
    """

    def __init__(self, system: System, headers: dict[str, str], scooters: list[str]) -> None:
        self._url = system.url
        self._headers = headers
        self._scooters = scooters
        self._stop = asyncio.Event()
        self.made = 0
        self.failed: list[Any] = []
        self.top_ups = 0

    async def run(self) -> None:
        timeout, connector = aiohttp.ClientTimeout(30), aiohttp.TCPConnector(limit=100)
        async with aiohttp.ClientSession(self._url, timeout=timeout, connector=connector) as client, asyncio.TaskGroup() as tasks:
            loop = asyncio.get_running_loop()
            began = loop.time()
            while not self._stop.is_set():
                self.made += 1
                tasks.create_task(self._request(client, self.made))
                await asyncio.sleep(max(began + self.made / RATE - loop.time(), 0))

    def stop(self) -> None:
        self._stop.set()

    async def _request(self, client: aiohttp.ClientSession, number: int) -> None:
        match number % 5:
            case 0:
                await self._ask(client, "POST", "/wallet/top-ups", number, json={"amount_cents": 1})
                self.top_ups += 1
            case 1:
                await self._ride(client, number)
            case 2:
                await self._ask(client, "GET", "/scooters?lat=52.5&lon=13.4", number)
            case 3:
                await self._ask(client, "GET", "/notices", number)
            case _:
                await self._ask(client, "GET", "/users/me", number)

    async def _ride(self, client: aiohttp.ClientSession, number: int) -> None:
        scooter = self._scooters[number // 5 % len(self._scooters)]
        status, ride = await self._ask(client, "POST", "/rides", number, json={"scooter_id": scooter})
        if status == 201:
            await self._ask(client, "POST", f"/rides/{ride['id']}/end", -number)

    async def _ask(self, client: aiohttp.ClientSession, method: str, path: str, number: int, **more: Any) -> tuple[int, Any]:
        headers = {**self._headers, "Idempotency-Key": f"key-{number}"} if method == "POST" else self._headers
        try:
            async with client.request(method, path, headers=headers, **more) as answer:
                found = answer.status, await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError) as error:
            found = 599, repr(error)
        if found[0] >= 500:
            self.failed.append((method, path, *found))
        return found


@pytest.mark.long
async def test_no_request_fails_while_replicas_are_killed_and_stopped(tmp_path: Path) -> None:
    url = shared_postgres().new_database()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "postgres.url").write_text(url)
    replicas = ",".join(f"{name}=2" for name in (*SERVICES, "gateway"))
    async with callboard_up(tmp_path, "--replicas", replicas, CALLBOARD_DATABASE__URL=url) as system:
        assert system.process is not None
        rider, operator = await system.bearer(), await system.bearer("operator@example.com")
        await system.client.post("/wallet/top-ups", json={"amount_cents": 900_000}, headers=rider)
        scooters = [await add_scooter(system, 52.5 + number / 1000) for number in range(40)]
        load = Load(system, rider, scooters)
        running = asyncio.create_task(load.run())
        await eventually(lambda: load.made > RATE, "the load has begun")
        for number in (signal.SIGKILL, signal.SIGTERM):
            for name in SERVICES:
                await stop_one(system, operator, name, number)
        await stop_one(system, operator, "gateway", signal.SIGTERM)
        load.stop()
        await running
        assert load.failed == [], f"{len(load.failed)} of {load.made}"
        balance = await system.client.get("/wallet/entries?limit=1", headers=rider)
        assert balance.status_code == 200
        await eventually(lambda: not consistency.violations(system.folder), "the databases are consistent", 60)
        top_ups = consistency.query(
            system.folder, "wallet", "SELECT count(*) AS n FROM entries WHERE kind = 'top-up' AND cents = 1"
        )
        assert int(next(iter(top_ups[0].values()))) == load.top_ups, "each was applied once"


async def stop_one(system: System, operator: dict[str, str], name: str, number: signal.Signals) -> None:
    """End one of two processes of a service, and wait until another one has taken its place."""
    assert system.process is not None
    before = pids(system)[name]
    os.kill(before[0], number)

    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.5)
            now = pids(system).get(name, [])
            rows = (await system.client.get("/console/services", headers=operator)).json().get("items", [])
            if len(now) == 2 and before[0] not in now and sum(row["service"] == name for row in rows) == 2:
                return
