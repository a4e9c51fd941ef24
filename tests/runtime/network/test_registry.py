"""Which instance receives a request: by reported load, by failures, and by key."""

import asyncio
from collections import Counter

import pytest

from runtime import InternalError, Node, Overloaded
from runtime.clock import Clock, Random
from runtime.network import Address, Manifest, Member, Registry
from runtime.testing import eventually
from tests.runtime.workers import Hang, KeyedWhoReplies, WhoReplies, Worker, start_workers, worker
from transports.memory import MemoryNetwork, MemoryTransport


async def test_the_instance_with_less_load_receives_the_request() -> None:
    """The load counts even if it comes from other callers: an instance reports it with each reply."""
    async with start_workers("busy", "free") as running:
        other = running.nodes["free"].client("other", (worker,))
        busy = running.nodes["busy"].client("other", (worker,))
        assert other is not None
        hanging = [asyncio.create_task(busy.request(Hang())) for _ in range(40)]
        await eventually(lambda: running.workers["busy"].hanging == 40, "one worker is busy with requests from the same node")
        await running.replies(20)  # afterwards each has reported its load
        assert (await running.replies(50))["free"] >= 45
        running.workers["busy"].gate.set()
        await asyncio.gather(*hanging)


def test_a_reported_load_counts_less_as_it_ages() -> None:
    member = Member(Manifest("worker", "one", "1"))
    member.in_flight = 2
    member.report(10, now=100.0)
    assert member.load(100.0) == 10
    assert member.load(101.0) == pytest.approx(2 + 4)
    assert member.load(200.0) == pytest.approx(2)


async def test_an_instance_that_keeps_failing_is_ejected_and_tried_again() -> None:
    async with start_workers("broken", "fine") as running:
        running.workers["broken"].broken = True
        counted = await running.replies(200)
        assert 5 <= counted["internal"] <= 10, "after a few failures it receives no more requests"
        assert running.caller.metrics.value("instances_ejected_total", service="worker") >= 1
        running.workers["broken"].broken = False
        member = next(member for member in running.caller.registry.members("worker") if member.ejected_until > 0)
        member.ejected_until = running.caller.environment.clock.monotonic()  # its ejection is over

        async def replies_again() -> bool:
            return (await running.replies(10))["broken"] > 0

        await eventually(replies_again, "the recovered instance receives requests again")
        assert member.ejected_until == 0


async def test_if_every_instance_fails_all_still_receive_requests() -> None:
    async with start_workers("one", "two") as running:
        for each in running.workers.values():
            each.broken = True
        assert (await running.replies(50))["internal"] == 50
        for each in running.workers.values():
            each.broken = False
        assert (await running.replies(20)).total() == 20
        with pytest.raises(InternalError):
            running.workers["one"].broken = running.workers["two"].broken = True
            await running.ctx.request(WhoReplies())


async def test_a_request_that_meets_a_full_mailbox_goes_to_another_instance() -> None:
    async with start_workers("full", "free") as running:
        full = running.nodes["full"].client("other", (worker,))
        hanging = [asyncio.create_task(full.request(Hang())) for _ in range(64)]
        await eventually(lambda: running.workers["full"].hanging == 64, "one worker is full")
        for member in running.caller.registry.members("worker"):
            member.report(0, now=0.0)  # as if no load had been reported yet
        assert await running.replies(20) == Counter(free=20)
        free = running.nodes["free"].client("other", (worker,))
        hanging += [asyncio.create_task(free.request(Hang())) for _ in range(64)]
        await eventually(lambda: running.workers["free"].hanging == 64, "both workers are full")
        with pytest.raises(Overloaded):
            await running.ctx.request(WhoReplies())
        for each in running.workers.values():
            each.gate.set()
        await asyncio.gather(*hanging)


async def test_requests_with_a_key_prefer_the_same_instance_from_every_node() -> None:
    async with start_workers("one", "two", "three") as running:
        customers = [f"customer {number}" for number in range(60)]
        first = {customer: await running.ctx.request(KeyedWhoReplies(customer)) for customer in customers}
        assert set(first.values()) == {"one", "two", "three"}
        for _ in range(3):
            assert {customer: await running.ctx.request(KeyedWhoReplies(customer)) for customer in customers} == first
        async with Node([], MemoryTransport(running.caller.environment.transport.network)) as another:  # type: ignore[attr-defined]
            ctx = another.client("another", (worker,))
            assert {customer: await ctx.request(KeyedWhoReplies(customer)) for customer in customers} == first, (
                "every node chooses the same instances"
            )
        stopped = running.nodes.pop("two")
        await stopped.stop()
        await eventually(
            lambda: len(running.caller.registry.members("worker")) == 2, "the stopped worker is gone from the registry"
        )
        afterwards = {customer: await running.ctx.request(KeyedWhoReplies(customer)) for customer in customers}
        assert all(afterwards[customer] == name for customer, name in first.items() if name != "two"), (
            "only the customers of the stopped worker move"
        )


async def test_suspected_instances_receive_requests_if_there_is_no_other() -> None:
    async with start_workers("one", "two") as running:
        registry = running.caller.registry
        addresses = [member.address for member in registry.members("worker")]
        registry.suspect(addresses[0])
        assert await running.replies(20) == Counter({addresses[1].node.partition("-")[0]: 20})
        registry.suspect(addresses[1])
        assert (await running.replies(20)).total() == 20


async def test_a_request_waits_for_a_service_that_was_lost_a_moment_ago() -> None:
    network = MemoryNetwork()
    async with Node([], MemoryTransport(network)) as caller:
        transport = MemoryTransport(network)
        dead = Node([lambda: Worker("first")], transport)
        await dead.__aenter__()
        ctx = caller.client("caller", (worker,))
        assert await ctx.request(WhoReplies()) == "first"
        transport.crash()
        await dead.crash()
        await eventually(lambda: not caller.registry.members("worker"), "the worker is lost")
        waiting = asyncio.create_task(ctx.request(WhoReplies()))
        await asyncio.sleep(0)
        assert not waiting.done()
        async with Node([lambda: Worker("second")], MemoryTransport(network)):
            assert await waiting == "second"


def test_instances_with_equal_load_are_picked_equally_often() -> None:
    clock = Clock()
    registry = Registry(clock, Random(clock, 7), lambda service: None)
    loop = asyncio.new_event_loop()

    async def fill() -> None:
        for name in ("one", "two", "three"):
            registry.join(Manifest("worker", name, name))

    loop.run_until_complete(fill())
    loop.close()
    picked = Counter(member.address.node for _ in range(3000) if (member := registry.pick("worker", 0.0)) is not None)
    assert all(800 < picked[name] < 1200 for name in ("one", "two", "three"))
    others = frozenset({Address("worker", "one"), Address("worker", "two")})
    third = registry.pick("worker", 0.0, others)
    assert third is not None
    assert third.address.node == "three"


def test_an_instance_is_ejected_for_at_most_half_a_minute_however_often_it_fails() -> None:
    random = Random(Clock(), 7)
    member = Member(Manifest("worker", "one", "1"))
    now = 0.0
    for _ in range(3000):
        member.failed(now, now, random)
        now = max(now, member.ejected_until)
        assert member.ejected_until - now <= 30
    before = member.ejected_until
    assert not member.failed(now - 1000, now, random), "requests that were running when it was ejected do not count again"
    assert member.ejected_until == before
