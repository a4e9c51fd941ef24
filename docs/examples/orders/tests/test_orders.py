"""Orders, with a fake in the place of the wallet."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from config.testing import Client, Project
from runtime import DeadlineExceeded
from runtime.testing import FakeService, MovableClock, eventually, fake

from orders.messages import GetOrder, OrderExpired, OrderPlaced, PlaceOrder
from tests import next_wallet
from wallet.messages import Held, Hold, Paid, TooLittle, wallet


def hold(message: Hold) -> Held:
    if message.cents > 1000:
        raise TooLittle
    return Held("h1")


Wallet = fake(wallet, {Hold: hold})
pytestmark = pytest.mark.callboard(fakes=[Wallet])

Published = Callable[[type[Any]], list[Any]]


async def test_a_customer_places_an_order(client: Client, project: Project, published: Published) -> None:
    ada = client.as_user("ada", roles="customer")
    placed = await ada.post("/orders", json={"item": "tea", "cents": 300})
    assert placed.status_code == 201
    assert (await ada.get(f"/orders/{placed.json()['id']}")).json()["state"] == "placed"
    assert published(OrderPlaced) == [OrderPlaced(placed.json()["id"], "tea")]
    assert project.service(Wallet).received == [Hold("ada", 300)]


async def test_nobody_sees_the_orders_of_others(client: Client) -> None:
    order = (
        await client.as_user("ada", roles="customer").post("/orders", json={"item": "tea", "cents": 300})
    ).json()
    assert (await client.as_user("bob", roles="customer").get(f"/orders/{order['id']}")).status_code == 404
    assert (
        await client.as_user("eve", roles=("customer", "support")).get(f"/orders/{order['id']}")
    ).status_code == 200
    assert (await client.get(f"/orders/{order['id']}")).status_code == 401


async def test_an_order_without_money_is_refused(project: Project, published: Published) -> None:
    with pytest.raises(TooLittle):
        await project.request(PlaceOrder("gold", 10_000), user="ada", roles="customer")
    assert not published(OrderPlaced)


async def test_an_order_expires_after_an_hour(
    project: Project, clock: MovableClock, published: Published
) -> None:
    order = await project.request(PlaceOrder("tea", 300), user="ada", roles="customer")
    await clock.advance(3500)
    assert not published(OrderExpired)
    await clock.advance(200)
    await eventually(lambda: published(OrderExpired) == [OrderExpired(order.id)], "the order has expired")


async def test_an_order_that_is_paid_does_not_expire(
    project: Project, clock: MovableClock, published: Published
) -> None:
    order = await project.request(PlaceOrder("tea", 300), user="ada", roles="customer")
    await project.service(Wallet).publish(Paid(order.id))

    async def is_paid() -> bool:
        return (await project.request(GetOrder(order.id), user="ada", roles="customer")).state == "paid"

    await eventually(is_paid, "the event was applied")
    await clock.advance(7200)
    assert not published(OrderExpired)


async def never(message: Hold) -> Held:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.callboard(fakes=[fake(wallet, {Hold: never})])
async def test_an_order_does_not_wait_longer_than_ten_seconds(project: Project, clock: MovableClock) -> None:
    ordering = asyncio.create_task(project.request(PlaceOrder("tea", 300), user="ada", roles="customer"))
    await clock.advance(9)
    assert not ordering.done()
    await clock.advance(2)
    with pytest.raises(DeadlineExceeded):
        await ordering


@pytest.mark.callboard(
    fakes=[
        fake(next_wallet.wallet, {next_wallet.Hold: lambda message: next_wallet.Held("h1", message.currency)})
    ]
)
async def test_orders_work_with_the_next_version_of_the_wallet(project: Project) -> None:
    order = await project.request(PlaceOrder("tea", 300), user="ada", roles="customer")
    await project.service(FakeService).publish(next_wallet.Paid(order.id, 300))

    async def is_paid() -> bool:
        return (await project.request(GetOrder(order.id), user="ada", roles="customer")).state == "paid"

    await eventually(is_paid, "the event of the next version was applied")


@pytest.mark.callboard(transport="mqtt", fakes=[])
async def test_the_whole_system_works_on_a_broker(client: Client, published: Published) -> None:
    placed = await client.as_user("ada", roles="customer").post("/orders", json={"item": "tea", "cents": 300})
    assert placed.status_code == 201
    await eventually(lambda: published(OrderPlaced) and published(Paid), "both services have published")
