"""After a kill -9 at any moment and a restart, no change answered with 2xx is lost and all databases are consistent.

`make test` kills the process ten times, `make kill` fifty times (`--kills`).
"""

import asyncio
import random
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.testing.expectations import WAIT
from tests.services import consistency
from tests.system.process import Callboard

RIDERS = 6
PASSWORD = "long enough"
SHORT = {
    "CALLBOARD_WALLET__HOLD_SECONDS": "1.5",
    "CALLBOARD_FLEET__RESERVATION_SECONDS": "1.5",
    "CALLBOARD_FLEET__SILENT_SECONDS": "3600",
    "CALLBOARD_DEVICES__COUNT": "12",
    "CALLBOARD_AUTH__ACCESS_SECONDS": "900",
}


class Answered:
    """What clients got answers to, and the requests that are still unanswered."""

    def __init__(self) -> None:
        self.users: list[str] = []
        self.entries: dict[str, int] = {}
        self.rides: dict[str, int | None] = {}
        """The price of each started ride by its id, in cents; None until the end of the ride was answered."""
        self.unanswered: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        """Requests to start a ride, by Idempotency-Key: the header fields, which include that key, and the body."""
        self.tokens: list[dict[str, str]] = []

    @property
    def count(self) -> int:
        return len(self.entries) + len(self.rides)


async def load(running: Callboard, rng: random.Random, answered: Answered) -> None:
    """Let riders register, top up, and ride until the system is killed."""

    async def rider() -> None:
        async with httpx.AsyncClient(base_url=running.url, timeout=20, verify=False) as client:
            email = f"{rng.getrandbits(60)}@example.com"
            registered = await client.post("/users", json={"email": email, "password": PASSWORD, "name": "R"})
            assert registered.status_code == 201, registered.text
            answered.users.append(registered.json()["id"])
            tokens = (await client.post("/sessions", json={"email": email, "password": PASSWORD})).json()
            headers = {"Authorization": f"Bearer {tokens['access_token']}"}
            answered.tokens.append(headers)
            topped_up = await client.post("/wallet/top-ups", json={"amount_cents": rng.randint(1000, 9000)}, headers=headers)
            assert topped_up.status_code == 201, topped_up.text
            answered.entries[topped_up.json()["id"]] = topped_up.json()["cents"]
            while True:
                scooters = (await client.get("/scooters?lat=52.52&lon=13.405&radius_m=5000", headers=headers)).json()["items"]
                if not scooters:
                    continue
                key = f"{rng.getrandbits(60)}"
                ride_request = {**headers, "Idempotency-Key": key}, {"scooter_id": rng.choice(scooters)["id"]}
                answered.unanswered[key] = ride_request
                started = await client.post("/rides", headers=ride_request[0], json=ride_request[1])
                del answered.unanswered[key]
                if started.status_code == 402:
                    return
                assert started.status_code == 201 or started.json()["code"] == "scooter-taken", started.text
                if started.status_code == 201:
                    ride_id = started.json()["id"]
                    answered.rides[ride_id] = None
                    ended = await client.post(f"/rides/{ride_id}/end", headers=headers)
                    assert ended.status_code == 200, ended.text
                    answered.rides[ride_id] = ended.json()["cents"]

    async def ride_until_killed() -> None:
        try:
            await rider()
        except (httpx.HTTPError, ValueError):
            return

    await asyncio.gather(*(ride_until_killed() for _ in range(RIDERS)))


async def retry_and_end_rides(running: Callboard, answered: Answered) -> None:
    """Retry every unanswered request as its client would, and end all active rides."""
    async with httpx.AsyncClient(base_url=running.url, timeout=20, verify=False) as client:
        for headers, body in answered.unanswered.values():
            again = [await client.post("/rides", headers=headers, json=body) for _ in range(2)]
            assert {answer.status_code for answer in again} <= {201, 402, 409}, [answer.text for answer in again]
            assert again[0].status_code == again[1].status_code, "a repeated request gets the same answer"
        for headers in answered.tokens:
            for ride in (await client.get("/rides", headers=headers)).json()["items"]:
                if ride["state"] == "active":
                    ended = await client.post(f"/rides/{ride['id']}/end", headers=headers)
                    assert ended.status_code == 200, ended.text
                    answered.rides[ride["id"]] = ended.json()["cents"]
    answered.tokens.clear()
    answered.unanswered.clear()


def check(data: Path, answered: Answered) -> None:
    """Check that the databases hold every answered change, with the answered values."""
    users = {row["id"] for row in consistency.query(data, "auth", "SELECT id FROM users")}
    assert set(answered.users) <= users
    entries = {
        row["id"]: row["cents"]
        for row in consistency.query(data, "wallet", "SELECT id, cents FROM entries WHERE kind = 'top-up'")
    }
    assert answered.entries.items() <= entries.items()
    rides = {row["id"]: row for row in consistency.query(data, "rides", "SELECT * FROM rides")}
    for ride_id, cents in answered.rides.items():
        assert ride_id in rides, "a started ride is lost"
        assert cents is None or (rides[ride_id]["state"], rides[ride_id]["cents"]) == ("ended", cents)
    assert {row["user_id"] for row in consistency.query(data, "wallet", "SELECT user_id FROM accounts")} == users


async def test_no_answered_change_is_lost_when_the_process_is_killed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kills: int = request.config.getoption("--kills")
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng, answered, data = random.Random(seed), Answered(), tmp_path / "data"
    for number in range(kills + 1):
        async with Callboard(tmp_path, "dev", "--no-reload", **SHORT) as running:
            await running.ready()
            if number:
                await retry_and_end_rides(running, answered)
                await wait_until_consistent(data)
                check(data, answered)
                print(f"kill {number} of {kills}: {answered.count} answered changes are intact")
            if number == kills:
                assert await running.ends(signal.SIGINT) == 0, running.output
                return
            await kill_under_load(running, rng, answered)


async def kill_under_load(running: Callboard, rng: random.Random, answered: Answered) -> None:
    """Kill the process after a random number of answers, while riders use it."""
    loading = asyncio.create_task(load(running, rng, answered))
    wanted = answered.count + rng.randint(1, 60)
    await running.until(lambda: answered.count >= wanted or loading.done(), "enough requests are answered")
    await asyncio.sleep(rng.random() / 50)  # so that the kill falls within a request
    await running.ends(signal.SIGKILL)
    await loading


async def wait_until_consistent(data: Path) -> None:
    """Wait until all events are applied and unconfirmed holds and reservations have expired."""
    violations: list[Any] = []
    try:
        async with asyncio.timeout(WAIT * 3):
            while violations := consistency.violations(data):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(violations) from None
