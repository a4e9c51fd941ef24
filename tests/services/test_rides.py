"""Rides, as a rider and an operator experience them over HTTP."""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from runtime.testing import ConformanceError, eventually
from runtime.testing.expectations import WAIT
from services.fleet.service import Fleet
from services.rides.service import price
from tests.services import consistency
from tests.system_under_test import DEPLOYMENTS, PASSWORD, WITH_SIGNALS, System, open_deployment
from tests.topology import QuickClock, advance_in_steps

Headers = dict[str, str]


async def add_scooter(system: System, lat: float = 52.5, lon: float = 13.4) -> str:
    answer = await system.client.post(
        "/scooters", json={"lat": lat, "lon": lon, "battery": 80}, headers=await system.bearer("operator@example.com")
    )
    assert answer.status_code == 201, answer.text
    scooter_id: str = answer.json()["id"]
    return scooter_id


async def top_up(system: System, headers: Headers, cents: int) -> None:
    assert (await system.client.post("/wallet/top-ups", json={"amount_cents": cents}, headers=headers)).status_code == 201


async def start(system: System, headers: Headers, scooter_id: str, **more: str) -> httpx.Response:
    return await system.client.post("/rides", json={"scooter_id": scooter_id}, headers={**headers, **more})


async def wait_until_consistent(system: System, seconds: float = WAIT) -> None:
    """Wait until every service has applied all events and the databases are consistent."""
    found: list[str] = []

    async def is_consistent() -> bool:
        found[:] = await asyncio.to_thread(consistency.violations, system.folder)
        return not found

    try:
        await eventually(is_consistent, "the databases are consistent", seconds)
    except ConformanceError:
        assert found == []


async def open_timed(topology: str, folder: Path) -> AsyncGenerator[tuple[System, QuickClock], None]:
    clock = QuickClock()
    async with open_deployment(topology, folder, clock=clock) as system:
        yield system, clock


@pytest.fixture(params=WITH_SIGNALS)
async def timed_system(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[tuple[System, QuickClock], None]:
    """The whole system on each topology that carries signals, and the clock that sets its time of day."""
    async for opened in open_timed(request.param, tmp_path):
        yield opened


@pytest.fixture(params=DEPLOYMENTS)
async def timed_deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[tuple[System, QuickClock], None]:
    """The whole system on every topology, and its clock. Separate processes do not follow that clock."""
    async for opened in open_timed(request.param, tmp_path):
        yield opened


async def test_a_rider_rides_pays_and_is_notified(timed_deployment: tuple[System, QuickClock]) -> None:
    system, clock = timed_deployment
    await check_a_whole_ride(system, clock, lambda: wait_until_consistent(system))


async def check_a_whole_ride(system: System, clock: QuickClock, consistent: Callable[[], Awaitable[None]]) -> None:
    """Check that a rider can ride, pays for it, and gets notices about it.

    Args:
        system: the system under test.
        clock: the system's clock; only systems in this process follow it.
        consistent: waits until the system's databases are consistent.
    """
    rider = await system.bearer()
    scooter_id = await add_scooter(system)
    await top_up(system, rider, 1000)
    near = (await system.client.get("/scooters?lat=52.5001&lon=13.4001&radius_m=100&limit=5", headers=rider)).json()
    assert [item["id"] for item in near["items"]] == [scooter_id]
    started = await start(system, rider, scooter_id)
    assert started.status_code == 201
    ride = started.json()
    assert ride["id"][14] == "7", "ids are UUIDv7"
    assert {**ride, "id": "", "user_id": "", "started_at": ""} == {
        "id": "", "user_id": "", "scooter_id": scooter_id, "state": "active", "started_at": "", "ended_at": None, "cents": None,
    }  # fmt: skip
    assert (await system.client.get("/scooters?lat=52.5&lon=13.4", headers=rider)).json() == {"items": []}
    await consistent()
    assert (await system.client.get("/wallet", headers=rider)).json() == {"balance_cents": 1000, "held_cents": 500}
    assert (await system.client.get(f"/scooters/{scooter_id}", headers=rider)).json()["state"] == "riding"
    assert (await system.client.get(f"/rides/{ride['id']}", headers=rider)).json() == ride
    clock.advance(timedelta(minutes=2, seconds=30))
    ended = await system.client.post(f"/rides/{ride['id']}/end", headers=rider)
    took = datetime.fromisoformat(ended.json()["ended_at"]) - datetime.fromisoformat(ended.json()["started_at"])
    cents = price(took)
    assert not system.nodes or took >= timedelta(minutes=2, seconds=30)
    assert (ended.status_code, ended.json()["state"], ended.json()["cents"]) == (200, "ended", cents)
    again = await system.client.post(f"/rides/{ride['id']}/end", headers=rider)
    assert (again.status_code, again.json()) == (200, ended.json()), "a ride that has ended does not change"
    await consistent()
    assert (await system.client.get("/wallet", headers=rider)).json() == {"balance_cents": 1000 - cents, "held_cents": 0}
    entries = (await system.client.get("/wallet/entries", headers=rider)).json()["items"]
    assert [(entry["kind"], entry["cents"], entry["ride_id"]) for entry in entries] == [
        ("ride", -cents, ride["id"]),
        ("top-up", 1000, None),
    ]
    assert (await system.client.get("/rides", headers=rider)).json() == {"items": [ended.json()], "next": None}
    notices = (await system.client.get("/notices", headers=rider)).json()["items"]
    assert [(notice["number"], notice["kind"], notice["cents"]) for notice in notices] == [
        (2, "ride-ended", cents),
        (1, "ride-started", None),
    ]
    assert f"{cents / 100:.2f}" in notices[0]["text"]


@pytest.mark.parametrize(
    ("seconds", "cents"), [(0, 120), (1, 120), (60, 120), (60.001, 140), (119, 140), (120, 140), (121, 160), (3600, 1300)]
)
def test_the_price_depends_on_the_started_minutes(seconds: float, cents: int) -> None:
    assert price(timedelta(seconds=seconds)) == cents


async def test_refused_requests_name_the_reason_and_change_nothing(deployment: System) -> None:
    rider, operator = await deployment.bearer(), await deployment.bearer("operator@example.com")
    await deployment.client.post("/users", json={"email": "other@example.com", "password": PASSWORD, "name": "O"})
    other = await deployment.bearer("other@example.com")
    one, two = await add_scooter(deployment), await add_scooter(deployment)

    def refusal(answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["code"]

    unfunded = await start(deployment, rider, one)
    assert refusal(unfunded) == (402, "insufficient-funds")
    assert unfunded.json()["available_cents"] == 0
    await top_up(deployment, rider, 2000)
    await top_up(deployment, other, 2000)
    assert refusal(await start(deployment, rider, "no such scooter")) == (404, "unknown-scooter")
    ride_id = (await start(deployment, rider, one)).json()["id"]
    taken = await start(deployment, other, one)
    assert refusal(taken) == (409, "scooter-taken")
    assert taken.json()["scooter_id"] == one
    second = await start(deployment, rider, two)
    assert refusal(second) == (409, "already-riding")
    assert second.json()["ride_id"] == ride_id
    assert refusal(await deployment.client.get(f"/rides/{ride_id}", headers=other)) == (404, "unknown-ride")
    assert refusal(await deployment.client.post(f"/rides/{ride_id}/end", headers=other)) == (404, "unknown-ride")
    assert refusal(await deployment.client.get("/rides/none", headers=rider)) == (404, "unknown-ride")
    assert (await deployment.client.get("/rides", headers=other)).json()["items"] == []
    assert (await deployment.client.get(f"/rides/{ride_id}", headers=operator)).json()["state"] == "active"
    assert [ride["id"] for ride in (await deployment.client.get("/rides", headers=operator)).json()["items"]] == [ride_id]
    assert refusal(await start(deployment, operator, two)) == (403, "forbidden")
    assert refusal(await deployment.client.post("/scooters", json={"lat": 1, "lon": 1, "battery": 1}, headers=rider)) == (
        403,
        "forbidden",
    )
    assert refusal(await deployment.client.get("/scooters/none", headers=rider)) == (404, "unknown-scooter")
    for method, path in (
        ("GET", "/scooters?lat=1&lon=1"),
        ("POST", "/rides"),
        ("GET", "/rides"),
        ("GET", "/notices"),
        ("GET", "/live"),
    ):
        assert refusal(await deployment.client.request(method, path)) == (401, "unauthenticated")
    await wait_until_consistent(deployment)
    assert (await deployment.client.get("/wallet", headers=other)).json() == {"balance_cents": 2000, "held_cents": 0}, (
        "the held money is released"
    )


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/scooters?lon=1", "/lat"), ("/scooters?lat=91&lon=1", "/lat"), ("/scooters?lat=1&lon=181", "/lon"), ("/scooters?lat=nan&lon=1", "/lat"),
        ("/scooters?lat=1&lon=1&radius_m=0", "/radius_m"), ("/scooters?lat=1&lon=1&limit=101", "/limit"), ("/scooters?lat=1&lon=1&x=1", "/x"),
    ],
)  # fmt: skip
async def test_invalid_searches_for_scooters_are_refused(system: System, path: str, pointer: str) -> None:
    answer = await system.client.get(path, headers=await system.bearer())
    assert (answer.status_code, [error["pointer"] for error in answer.json()["errors"]]) == (422, [pointer])


async def test_a_start_repeated_with_its_idempotency_key_starts_one_ride(deployment: System) -> None:
    rider = await deployment.bearer()
    scooter_id = await add_scooter(deployment)
    await top_up(deployment, rider, 2000)
    key = {"Idempotency-Key": "tap tap".replace(" ", "-")}
    answers = await asyncio.gather(*(start(deployment, rider, scooter_id, **key) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    await wait_until_consistent(deployment)
    assert (await deployment.client.get("/wallet", headers=rider)).json()["held_cents"] == 500


async def test_concurrent_starts_without_a_key_start_one_ride(deployment: System) -> None:
    rider = await deployment.bearer()
    scooters = [await add_scooter(deployment) for _ in range(2)]
    await top_up(deployment, rider, 5000)
    answers = await asyncio.gather(*(start(deployment, rider, scooters[number % 2]) for number in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201, *[409] * 7]
    await wait_until_consistent(deployment)
    assert len((await deployment.client.get("/rides", headers=rider)).json()["items"]) == 1


async def test_a_ride_is_aborted_when_its_scooter_falls_silent(timed_system: tuple[System, QuickClock]) -> None:
    system, clock = timed_system
    rider = await system.bearer()
    scooter_id = await add_scooter(system)
    await top_up(system, rider, 1000)
    ride_id = (await start(system, rider, scooter_id)).json()["id"]
    await wait_until_consistent(system)
    await advance_in_steps(clock, system.service(Fleet), 61)

    async def state() -> str:
        found: str = (await system.client.get(f"/rides/{ride_id}", headers=rider)).json()["state"]
        return found

    async def aborted() -> bool:
        return await state() == "aborted"

    await eventually(aborted, "the ride is aborted")
    await wait_until_consistent(system)
    assert (await system.client.get(f"/scooters/{scooter_id}", headers=rider)).json()["state"] == "lost"
    refused = await start(system, rider, scooter_id)
    assert (refused.status_code, refused.json()["code"]) == (409, "scooter-lost")
    ended = await system.client.post(f"/rides/{ride_id}/end", headers=rider)
    assert (ended.status_code, ended.json()["state"], ended.json()["cents"]) == (200, "aborted", 0)
    assert (await system.client.get("/wallet", headers=rider)).json() == {"balance_cents": 1000, "held_cents": 0}
    notices = (await system.client.get("/notices", headers=rider)).json()["items"]
    assert [notice["kind"] for notice in notices] == ["ride-aborted", "ride-started"]


async def test_a_rider_with_a_low_balance_gets_a_notice(deployment: System) -> None:
    rider = await deployment.bearer()
    scooter_id = await add_scooter(deployment)
    await top_up(deployment, rider, 600)
    ride_id = (await start(deployment, rider, scooter_id)).json()["id"]
    await deployment.client.post(f"/rides/{ride_id}/end", headers=rider)

    async def low_balance_noticed() -> bool:
        items = (await deployment.client.get("/notices", headers=rider)).json()["items"]
        return any(item["kind"] == "balance-low" and item["cents"] == 480 for item in items)

    await eventually(low_balance_noticed, "the rider has a notice about the low balance")


async def test_rides_and_notices_are_listed_in_pages(timed_deployment: tuple[System, QuickClock]) -> None:
    deployment, clock = timed_deployment
    rider = await deployment.bearer()
    scooter_id = await add_scooter(deployment)
    await top_up(deployment, rider, 5000)
    ride_ids: list[str] = []
    for _ in range(5):
        started = await start(deployment, rider, scooter_id)
        assert started.status_code == 201, started.text
        ride_ids.append(started.json()["id"])
        ended = await deployment.client.post(f"/rides/{ride_ids[-1]}/end", headers=rider)
        assert ended.status_code == 200, ended.text
        await wait_until_consistent(deployment)
        clock.advance(timedelta(seconds=1))
    for path, name in (("/rides", "id"), ("/notices", "number")):
        found: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = (await deployment.client.get(path, params={"limit": "2", **cursor}, headers=rider)).json()
            found += [item[name] for item in page["items"]]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert found == (ride_ids[::-1] if path == "/rides" else list(range(10, 0, -1)))


RIDERS, SCOOTERS = 200, 20


async def test_two_hundred_riders_share_twenty_scooters_without_conflict(timed_deployment: tuple[System, QuickClock]) -> None:
    deployment, _ = timed_deployment  # its clock does not advance, so no scooter falls silent however long the test takes
    scooters = [await add_scooter(deployment, 52.5 + number / 1000) for number in range(SCOOTERS)]
    rng = random.Random(7)
    rode: list[str] = []

    async def rider(number: int, client: aiohttp.ClientSession) -> None:
        async def ask(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
            async with client.request(method, path, json=body, headers=headers) as answer:
                return answer.status, await answer.json(content_type=None)

        user = {"email": f"rider{number}@example.com", "password": PASSWORD}
        headers: dict[str, str] = {}
        assert (await ask("POST", "/users", {**user, "name": "R"}))[0] == 201
        _, tokens = await ask("POST", "/sessions", user)
        headers["Authorization"] = f"Bearer {tokens['access_token']}"
        assert (await ask("POST", "/wallet/top-ups", {"amount_cents": 700}))[0] == 201
        for _ in range(6):
            status, ride = await ask("POST", "/rides", {"scooter_id": rng.choice(scooters)})
            while status == 402:  # the hold of the attempt before is released once the wallet has time for it
                assert (await ask("GET", "/wallet"))[1]["balance_cents"] == 700
                status, ride = await ask("POST", "/rides", {"scooter_id": rng.choice(scooters)})
            if status == 201:
                for _ in range(rng.randint(0, 3)):
                    assert (await ask("GET", f"/rides/{ride['id']}"))[1]["state"] == "active"
                status, ended = await ask("POST", f"/rides/{ride['id']}/end")
                assert (status, ended["cents"]) == (200, 120)
                rode.append(ride["id"])
                return
            assert (status, ride["code"]) == (409, "scooter-taken")

    # not httpx, which takes a third of the CPU time of this test
    connector, timeout = aiohttp.TCPConnector(limit=RIDERS), aiohttp.ClientTimeout(180)
    async with aiohttp.ClientSession(deployment.url, connector=connector, timeout=timeout) as client:
        await asyncio.gather(*(rider(number, client) for number in range(RIDERS)))
    await wait_until_consistent(deployment, 60)
    rides = consistency.query(deployment.folder, "rides", "SELECT * FROM rides ORDER BY scooter_id, started_at")
    assert sorted(ride["id"] for ride in rides) == sorted(rode)
    assert len(rode) > SCOOTERS
    for one, next_one in itertools.pairwise(rides):
        if one["scooter_id"] == next_one["scooter_id"]:
            assert one["ended_at"] <= next_one["started_at"], "no scooter has two riders at once"
    money = [{"cents": RIDERS * 700 - len(rode) * 120, "held": 0}]
    sums = "SELECT SUM(balance_cents) AS cents, SUM(held_cents) AS held FROM accounts"

    async def is_paid() -> bool:
        return await asyncio.to_thread(consistency.query, deployment.folder, "wallet", sums) == money

    await eventually(
        is_paid,
        "every ride is paid for, and every other hold is released",
        60,
    )


async def test_a_rider_turned_operator_can_still_end_their_ride(system: System) -> None:
    rider, admin = await system.bearer(), await system.bearer("admin@example.com")
    scooter_id = await add_scooter(system)
    await top_up(system, rider, 1000)
    ride = (await start(system, rider, scooter_id)).json()
    await system.client.patch(f"/users/{ride['user_id']}", json={"role": "operator"}, headers=admin)
    again = await system.bearer()
    ended = await system.client.post(f"/rides/{ride['id']}/end", headers=again)
    assert (ended.status_code, ended.json()["state"]) == (200, "ended")
    assert (await system.client.get("/rides", headers=admin)).json()["items"] == []
