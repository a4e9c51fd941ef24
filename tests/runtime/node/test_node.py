"""Starting and stopping a node, and what a node refuses to host."""

import asyncio

import pytest

from runtime import ANYONE, Context, Node, NoInstance, NotDelivered, Service, handles
from runtime.node.node import check_together
from runtime.testing import eventually
from tests.runtime.definitions import Buy, Item, Look, assert_refused, other, shop
from tests.runtime.node.services import LOG, Base, Lift, Poke, Upper, base, upper
from tests.topology import Topology
from transports.memory import MemoryNetwork, MemoryTransport


async def test_a_service_starts_before_its_callers_and_stops_after_them() -> None:
    async with Node([Upper, Base], MemoryTransport()):
        assert LOG == ["base started", "upper started at 1"]
    assert LOG == ["base started", "upper started at 1", "upper stopped at 2", "base stopped"]


async def test_stopping_finishes_the_requests_that_are_running(topology: Topology) -> None:
    await topology.start(Base, Upper)
    ctx = await topology.client(upper)
    running = [asyncio.create_task(ctx.request(Lift())) for _ in range(20)]
    base_service = topology.service(Base)
    await eventually(lambda: base_service.pokes >= 21, "all requests are running")
    node = topology.node_of("upper")
    await node.stop()
    assert sorted(await asyncio.gather(*running)) == [21] * 20


async def test_a_stopping_node_refuses_new_requests(topology: Topology) -> None:
    await topology.start(Base)
    ctx = await topology.client(base)
    running = asyncio.create_task(ctx.request(Poke(0.1)))
    base_service = topology.service(Base)
    await eventually(lambda: base_service.pokes == 1, "the request is running")
    stopping = asyncio.create_task(topology.node_of("base").stop())
    await asyncio.sleep(0.01)
    with pytest.raises(NotDelivered):
        await ctx.request(Poke())
    await stopping
    assert await running == 1
    with pytest.raises(NoInstance):
        await ctx.request(Poke())


async def test_other_nodes_notice_that_a_node_has_crashed() -> None:
    network = MemoryNetwork()
    async with Node([], MemoryTransport(network)) as watcher:
        node = Node([Base], MemoryTransport(network))
        await node.__aenter__()
        await watcher.registry.wait_for("base")
        transport = node.environment.transport
        assert isinstance(transport, MemoryTransport)
        transport.crash()
        await node.crash()
        await eventually(lambda: not watcher.registry.members("base"), "the instance is gone from the registry")
        assert watcher.metrics.value("instances_lost_total", service="base") == 1


# What a node refuses to host


class Shop(Service):
    contract = shop

    @handles(allow=ANYONE, http="POST /items/{id}")
    async def buy(self, message: Buy, ctx: Context) -> Item:
        return Item(message.id)


class Rival(Service):
    contract = other

    @handles(allow=ANYONE, http="POST /items/{id}")
    async def look(self, message: Look, ctx: Context) -> int:
        return 1


def test_two_services_on_a_node_must_not_share_a_route() -> None:
    assert_refused(lambda: check_together([Shop.definition, Rival.definition]), "POST /items/{id}", "taken by shop")


def test_a_node_refuses_two_services_with_one_contract() -> None:
    assert_refused(lambda: check_together([Shop.definition, Shop.definition]), "two services have the contract 'shop'")


async def test_a_service_that_keeps_state_needs_a_database() -> None:
    assert_refused(lambda: Node([Shop], MemoryTransport()), "Shop keeps state", "databases=")
