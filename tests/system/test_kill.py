"""kill -9 at any moment, and a start afterwards: nothing that was answered with 2xx is lost, and the ledger sums."""

import asyncio
import random
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.process import Callboard

RIDERS = 8


async def load(running: Callboard, seed: int, answered: dict[str, list[str]]) -> None:
    """Riders register, log in and top up until the system goes away; notes every 2xx."""
    chance = random.Random(seed)

    async def rider(number: int) -> None:
        async with httpx.AsyncClient(base_url=running.url, timeout=20) as client:
            email = f"rider{seed}-{number}@example.com"
            try:
                registered = await client.post("/users", json={"email": email, "password": "long enough", "name": "R"})
                if registered.status_code != 201:
                    return
                answered["users"].append(registered.json()["id"])
                tokens = (await client.post("/sessions", json={"email": email, "password": "long enough"})).json()
                headers = {"Authorization": f"Bearer {tokens['access_token']}"}
                while True:
                    made = await client.post("/wallet/top-ups", json={"amount_cents": chance.randint(1, 99)}, headers=headers)
                    if made.status_code == 201:
                        answered["entries"].append(made.json()["id"])
            except (httpx.HTTPError, KeyError, ValueError):
                return  # it was killed

    await asyncio.gather(*(rider(number) for number in range(RIDERS)))


def column(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute(sql)]


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_answered_is_lost(tmp_path: Path, seed: int) -> None:
    answered: dict[str, list[str]] = {"users": [], "entries": []}
    for round_number in range(2):
        async with Callboard(tmp_path, "dev", "--no-reload") as running:
            await running.ready()
            loading = asyncio.create_task(load(running, seed * 10 + round_number, answered))
            before = len(answered["entries"])
            wanted = before + random.Random(seed).randint(5, 60)
            await running.until(lambda wanted=wanted: len(answered["entries"]) >= wanted, "some top-ups are answered")  # type: ignore[misc]
            await running.ends(signal.SIGKILL)
            await loading
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        wallet = tmp_path / "data" / "wallet.sqlite"
        assert set(answered["users"]) <= set(column(tmp_path / "data" / "auth.sqlite", "SELECT id FROM users"))
        assert set(answered["entries"]) <= set(column(wallet, "SELECT id FROM entries"))
        differences = column(
            wallet,
            "SELECT balance_cents - (SELECT COALESCE(SUM(cents), 0) FROM entries e WHERE e.user_id = a.user_id) FROM accounts a",
        )
        assert set(differences) == {0}
        # every registered user's event is applied, also those that were committed at the last moment
        async with asyncio.timeout(30):
            while set(column(wallet, "SELECT user_id FROM accounts")) < set(
                column(tmp_path / "data" / "auth.sqlite", "SELECT id FROM users")
            ):
                await asyncio.sleep(0.05)
        assert await running.ends(signal.SIGINT) == 0
