"""The wallet's ledger, as a REST client and the rides service see it."""

import asyncio
from typing import Any

import pytest

from runtime import Context, Event, Forbidden, Unauthenticated
from runtime.testing import eventually
from services.rides.messages import RideAborted, RideEnded, RideStarted
from services.rides.service import Rides
from services.wallet.messages import GetWallet, Hold, HoldPlaced, InsufficientFunds, ReleaseHold, wallet
from services.wallet.service import Wallet
from tests.system_under_test import System


async def entries(system: System, headers: dict[str, str]) -> list[dict[str, Any]]:
    """Return all entries, read page by page."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await system.client.get("/wallet/entries", params=params, headers=headers)).json()
        assert set(page) == {"items", "next"}
        found += page["items"]
        cursor = page["next"]
        if cursor is None:
            return found


async def balance(system: System, headers: dict[str, str]) -> tuple[int, int]:
    answer = (await system.client.get("/wallet", headers=headers)).json()
    assert set(answer) == {"balance_cents", "held_cents"}
    return answer["balance_cents"], answer["held_cents"]


async def test_a_new_wallet_is_empty(system: System) -> None:
    headers = await system.bearer()
    assert await balance(system, headers) == (0, 0)
    assert await entries(system, headers) == []


async def test_top_ups_add_up(system: System) -> None:
    headers = await system.bearer()
    for cents in range(1, 9):
        answer = await system.client.post("/wallet/top-ups", json={"amount_cents": cents}, headers=headers)
        assert answer.status_code == 201
        assert set(answer.json()) == {"id", "kind", "cents", "ride_id", "at"}
    assert await balance(system, headers) == (36, 0)
    found = await entries(system, headers)
    assert [entry["cents"] for entry in found] == list(range(8, 0, -1)), "the newest entry comes first"
    assert {entry["kind"] for entry in found} == {"top-up"}


async def test_a_repeated_top_up_moves_money_once(system: System) -> None:
    headers = {**await system.bearer(), "Idempotency-Key": "monday"}
    answers = await asyncio.gather(
        *(system.client.post("/wallet/top-ups", json={"amount_cents": 500}, headers=headers) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert await balance(system, headers) == (500, 0)
    reused = await system.client.post("/wallet/top-ups", json={"amount_cents": 501}, headers=headers)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency-key-reused")
    other = {**await system.bearer("operator@example.com"), "Idempotency-Key": "monday"}
    assert (await system.client.post("/wallet/top-ups", json={"amount_cents": 7}, headers=other)).status_code == 201


@pytest.mark.parametrize("amount", [0, -1, 1_000_001, 10**30, 1.5, "5", None, True, [], {}])
async def test_invalid_amounts_are_refused(system: System, amount: Any) -> None:
    headers = await system.bearer()
    answer = await system.client.post("/wallet/top-ups", json={"amount_cents": amount}, headers=headers)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/amount_cents"]
    assert await balance(system, headers) == (0, 0)


async def rides_context(system: System) -> Context:
    token = (await system.log_in())["access_token"]
    return system.node.client("rides", (wallet,), token=token)


async def publish_as_rides(system: System, *events: Event) -> None:
    """Publish events as the rides service, and wait until the wallet has applied them."""
    publisher, subscriber = system.service(Rides), system.service(Wallet)
    assert publisher is not None
    assert subscriber is not None
    async with publisher.db.transaction() as tx:
        for event in events:
            await tx.publish(event)
    head = (await publisher.db.fetch("SELECT seq FROM callboard_stream_head"))[0]["seq"]

    async def applied() -> bool:
        row = await subscriber.db.fetch_one("SELECT seq FROM callboard_cursors WHERE publisher = 'rides'")
        return row is not None and row["seq"] >= head

    await eventually(applied, "the wallet has applied all events of rides")


async def check_sums(system: System) -> None:
    """Check that every balance is the sum of its entries, and every held amount the sum of its holds."""
    service = system.service(Wallet)
    assert service is not None
    rows = await service.db.fetch(
        "SELECT balance_cents, (SELECT COALESCE(SUM(cents), 0) FROM entries e WHERE e.user_id = a.user_id) AS entries, "
        "held_cents, (SELECT COALESCE(SUM(cents), 0) FROM holds h WHERE h.user_id = a.user_id) AS holds FROM accounts a"
    )
    assert rows
    assert all(row["balance_cents"] == row["entries"] and row["held_cents"] == row["holds"] for row in rows), rows


async def test_money_is_held_released_and_settled(system: System) -> None:
    headers = await system.bearer()
    ctx = await rides_context(system)
    user_id = (await system.client.get("/users/me", headers=headers)).json()["id"]
    with pytest.raises(InsufficientFunds) as caught:
        await ctx.request(Hold(500))
    assert caught.value == InsufficientFunds(0)
    await system.client.post("/wallet/top-ups", json={"amount_cents": 1200}, headers=headers)
    one, two = await ctx.request(Hold(500)), await ctx.request(Hold(500))
    assert isinstance(one, HoldPlaced)
    assert await balance(system, headers) == (1200, 1000)
    with pytest.raises(InsufficientFunds) as caught:
        await ctx.request(Hold(500))
    assert caught.value.available_cents == 200
    await ctx.request(ReleaseHold(one.id))
    await ctx.request(ReleaseHold(one.id))
    assert await balance(system, headers) == (1200, 500)
    await publish_as_rides(system, RideStarted("ride-1", user_id, "scooter", "reservation", two.id))
    await ctx.request(ReleaseHold(two.id))
    assert await balance(system, headers) == (1200, 500), "a hold that a ride has confirmed is not released"
    await publish_as_rides(system, RideEnded("ride-1", user_id, "scooter", 300))
    (entry, _) = await entries(system, headers)
    assert (entry["cents"], entry["kind"], entry["ride_id"]) == (-300, "ride", "ride-1")
    assert await balance(system, headers) == (900, 0)
    await check_sums(system)


async def test_a_hold_without_a_user_is_unauthenticated(system: System) -> None:
    ctx = system.node.client("rides", (wallet,))
    with pytest.raises(Unauthenticated):
        await ctx.request(Hold(500))
    assert system.node.metrics.value("incidents_total", service="wallet") == 0


async def test_an_aborted_ride_costs_nothing(system: System) -> None:
    headers = await system.bearer()
    user_id = (await system.client.get("/users/me", headers=headers)).json()["id"]
    await system.client.post("/wallet/top-ups", json={"amount_cents": 600}, headers=headers)
    hold = await (await rides_context(system)).request(Hold(500))
    await publish_as_rides(system, RideStarted("ride-1", user_id, "scooter", "reservation", hold.id))
    await publish_as_rides(system, RideAborted("ride-1", user_id, "scooter", "scooter-lost"))
    assert await balance(system, headers) == (600, 0)
    await check_sums(system)


async def test_settling_charges_the_ride_even_without_a_hold(system: System) -> None:
    headers = await system.bearer()
    user_id = (await system.client.get("/users/me", headers=headers)).json()["id"]
    await publish_as_rides(
        system,
        RideStarted("ride-9", user_id, "scooter", "reservation", "no such hold"),
        RideEnded("ride-9", user_id, "scooter", 700),
    )
    assert await balance(system, headers) == (-700, 0), "such a charge may make the balance negative"
    await check_sums(system)


async def test_only_the_rides_service_may_place_a_hold(system: System) -> None:
    token = (await system.log_in())["access_token"]
    with pytest.raises(Forbidden):
        await system.node.client("fleet", (wallet,), token=token).request(Hold(500))
    for method, path in (("POST", "/wallet/holds"), ("POST", "/wallet/settle")):
        assert (await system.client.request(method, path, headers={"Authorization": f"Bearer {token}"})).status_code == 404


async def test_the_wallet_itself_refuses_a_forged_token(system: System) -> None:
    from runtime import Unauthenticated

    with pytest.raises(Unauthenticated):
        await system.node.client("rides", (wallet,), token="forged").request(Hold(500))
    with pytest.raises(Unauthenticated):
        await system.node.client("gateway2", (wallet,)).request(GetWallet())


async def test_the_ledger_adds_up_under_concurrent_top_ups_and_rides(system: System) -> None:
    headers = await system.bearer()
    ctx = await rides_context(system)
    user_id = (await system.client.get("/users/me", headers=headers)).json()["id"]

    async def top_up(number: int) -> None:
        await system.client.post("/wallet/top-ups", json={"amount_cents": number + 1}, headers=headers)

    async def ride(number: int) -> None:
        try:
            hold = await ctx.request(Hold(50))
        except InsufficientFunds:
            return
        if number % 3:
            started = RideStarted(f"r{number}", user_id, "scooter", "reservation", hold.id)
            await publish_as_rides(system, started, RideEnded(f"r{number}", user_id, "scooter", 70))
        else:
            await ctx.request(ReleaseHold(hold.id))

    await asyncio.gather(*(work(number) for number in range(40) for work in (top_up, ride)))
    await check_sums(system)
    total, held = await balance(system, headers)
    assert held == 0
    assert total == sum(entry["cents"] for entry in await entries(system, headers))
