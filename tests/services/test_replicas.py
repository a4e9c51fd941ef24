"""Several replicas of each service on one PostgreSQL, some of which are killed."""

import asyncio
import random
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from config import compose
from services.fleet.service import FleetSettings
from services.wallet.service import WalletSettings
from tests.services.test_rides import add_scooter, wait_until_consistent
from tests.system_under_test import PASSWORD, on_postgres, open_system, settings
from transports.memory import MemoryTransport

RIDERS, SCOOTERS = 30, 40


async def test_replicas_of_every_service_are_killed_under_load(tmp_path: Path) -> None:
    chosen = msgspec.structs.replace(settings(tmp_path, login_rate=0), database=on_postgres(tmp_path))
    for name, own in (("wallet", WalletSettings(hold_seconds=8)), ("fleet", FleetSettings(reservation_seconds=8))):
        chosen = compose.with_own_settings(chosen, name, own)
    async with open_system(chosen, separate_nodes=True, replicas=2) as system:
        scooters = [await add_scooter(system, 52.5 + number / 1000) for number in range(SCOOTERS)]
        failed: list[Any] = []
        rode: list[str] = []

        async def ask(client: aiohttp.ClientSession, method: str, path: str, **more: Any) -> tuple[int, Any]:
            async with client.request(method, path, **more) as answer:
                found = answer.status, await answer.json(content_type=None)
            if answer.status >= 500:
                failed.append((method, path, found))
            return found

        async def log_in(number: int, client: aiohttp.ClientSession) -> dict[str, str]:
            user = {"email": f"rider{number}@example.com", "password": PASSWORD}
            assert (await ask(client, "POST", "/users", json={**user, "name": "R"}))[0] == 201
            status, tokens = await ask(client, "POST", "/sessions", json=user)
            assert status == 201
            return {"Authorization": f"Bearer {tokens['access_token']}"}

        async def rider(number: int, client: aiohttp.ClientSession, headers: dict[str, str]) -> None:
            rng = random.Random(number)

            def keyed(key: str) -> dict[str, str]:
                return {**headers, "Idempotency-Key": f"{key}-{number}"}

            await ask(client, "POST", "/wallet/top-ups", json={"amount_cents": 5000}, headers=keyed("top-up"))
            for turn in range(6):
                scooter = {"scooter_id": rng.choice(scooters)}
                status, ride = await ask(client, "POST", "/rides", json=scooter, headers=keyed(f"start-{turn}"))
                if status == 201:
                    status, ended = await ask(client, "POST", f"/rides/{ride['id']}/end", headers=keyed(f"end-{turn}"))
                    assert (status, ended["state"]) == (200, "ended"), ended
                    rode.append(ride["id"])

        async def kill() -> None:
            for node in system.nodes[1:-1:2]:
                await asyncio.sleep(0.3)
                transport = node.environment.transport
                assert isinstance(transport, MemoryTransport)
                transport.crash()
                await node.crash()

        connector, timeout = aiohttp.TCPConnector(limit=RIDERS), aiohttp.ClientTimeout(60)
        async with aiohttp.ClientSession(system.url, connector=connector, timeout=timeout) as client:
            tokens = await asyncio.gather(*(log_in(number, client) for number in range(RIDERS)))
            riding = (rider(number, client, headers) for number, headers in enumerate(tokens))
            await asyncio.gather(kill(), *riding)
        assert failed == []
        assert len(rode) > RIDERS
        await wait_until_consistent(system, 60)
