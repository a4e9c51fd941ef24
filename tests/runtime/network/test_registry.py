"""Which instance is asked: by what they report, how they do, and by key. Nodes in memory; what is measured is who was asked."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    InstanceLost,
    InternalError,
    Node,
    NoInstance,
    Overloaded,
    Request,
    Service,
    ServiceError,
    Unreachable,
    handles,
)
from runtime.clock import Clock, Random
from runtime.network import Address, Envelope, Manifest, Member, PeerUnreachable, Registry
from runtime.testing import eventually
from transports.memory import MemoryNetwork, MemoryTransport

request_handler = Contract("desk")


@request_handler.message
class Ask(Request[str]):
    """Who answers?"""

    number: int = 0


@request_handler.message
class Order(Request[str]):
    """The same, one at a time for each customer."""

    customer: str


@request_handler.message
class Hang(Request[None]):
    """Takes its time."""


@request_handler.message
class Linger(Request[str]):
    """Who answers, in the end?"""


class RequestHandler(Service):
    """Answers with its name, unless it is broken."""

    contract = request_handler
    concurrency = 64
    capacity = 0

    def __init__(self, place: str) -> None:
        self.place = place
        self.broken = False
        self.gate = asyncio.Event()
        self.hanging = 0

    @handles(allow=ANYONE, idempotent=True, http="GET /request_handler/{number}")
    async def ask(self, message: Ask, ctx: Context) -> str:
        if self.broken:
            raise RuntimeError("broken")
        return self.place

    @handles(allow=ANYONE, key="customer", http="POST /orders")
    async def order(self, message: Order, ctx: Context) -> str:
        return self.place

    @handles(allow=ANYONE, idempotent=True)
    async def linger(self, message: Linger, ctx: Context) -> str:
        self.hanging += 1
        await self.gate.wait()
        return self.place

    @handles(allow=ANYONE)
    async def hang(self, message: Hang, ctx: Context) -> None:
        self.hanging += 1
        await self.gate.wait()


class Office:
    """Some desks on nodes of their own, and a node that asks."""

    def __init__(self, desks: dict[str, RequestHandler], nodes: dict[str, Node], asker: Node) -> None:
        self.desks = desks
        self.nodes = nodes
        self.asker = asker
        self.ctx = asker.client("asker", (request_handler,))

    async def answers(self, count: int) -> Counter[str]:
        found: Counter[str] = Counter()
        for number in range(count):
            try:
                found[await self.ctx.request(Ask(number))] += 1
            except ServiceError as error:
                found[error.code] += 1
        return found


@asynccontextmanager
async def office(*names: str) -> AsyncGenerator[Office, None]:
    network = MemoryNetwork()
    desks = {name: RequestHandler(name) for name in names}
    nodes = {name: Node([partial(desks.__getitem__, name)], MemoryTransport(network), name=name) for name in names}
    async with Node([], MemoryTransport(network), name="asker") as asker:
        for node in nodes.values():
            await node.__aenter__()
        try:
            await eventually(lambda: len(asker.registry.members("desk")) == len(names), "all are there")
            yield Office(desks, nodes, asker)
        finally:
            for one in desks.values():
                one.gate.set()
            for node in nodes.values():
                await node.stop()


async def test_the_one_with_less_to_do_is_asked() -> None:
    """Also where others, not we, keep one busy: it says so with each of its answers."""
    async with office("busy", "free") as found:
        other = found.nodes["free"].client("other", (request_handler,))
        busy = found.nodes["busy"].client("other", (request_handler,))
        assert other is not None
        hanging = [asyncio.create_task(busy.request(Hang())) for _ in range(40)]
        await eventually(lambda: found.desks["busy"].hanging == 40, "one is busy, for its own node")
        await found.answers(20)  # each has been heard of
        assert (await found.answers(50))["free"] >= 45
        found.desks["busy"].gate.set()
        await asyncio.gather(*hanging)


def test_what_was_reported_counts_less_with_time() -> None:
    member = Member(Manifest("desk", "one", "1"))
    member.in_flight = 2
    member.report(10, now=100.0)
    assert member.load(100.0) == 10
    assert member.load(101.0) == pytest.approx(2 + 4)
    assert member.load(200.0) == pytest.approx(2)


async def test_one_that_keeps_failing_is_set_aside_and_tried_again() -> None:
    async with office("broken", "fine") as found:
        found.desks["broken"].broken = True
        answered = await found.answers(200)
        assert 5 <= answered["internal"] <= 10, "it is asked no more after a few failures"
        assert found.asker.metrics.value("instances_ejected_total", service="desk") >= 1
        found.desks["broken"].broken = False
        member = next(one for one in found.asker.registry.members("desk") if one.ejected_until > 0)
        member.ejected_until = found.asker.environment.clock.monotonic()  # its time has come

        async def asked_again() -> bool:
            return (await found.answers(10))["broken"] > 0

        await eventually(asked_again, "it is tried again, and is fine")
        assert member.ejected_until == 0


async def test_when_all_fail_all_are_asked() -> None:
    async with office("one", "two") as found:
        for one in found.desks.values():
            one.broken = True
        assert (await found.answers(50))["internal"] == 50
        for one in found.desks.values():
            one.broken = False
        assert (await found.answers(20)).total() == 20
        with pytest.raises(InternalError):
            found.desks["one"].broken = found.desks["two"].broken = True
            await found.ctx.request(Ask())


async def test_a_full_mailbox_sends_the_request_elsewhere() -> None:
    async with office("full", "free") as found:
        full = found.nodes["full"].client("other", (request_handler,))
        hanging = [asyncio.create_task(full.request(Hang())) for _ in range(64)]
        await eventually(lambda: found.desks["full"].hanging == 64, "it is full")
        for member in found.asker.registry.members("desk"):
            member.report(0, now=0.0)  # nothing is known of that yet
        assert await found.answers(20) == Counter(free=20)
        free = found.nodes["free"].client("other", (request_handler,))
        hanging += [asyncio.create_task(free.request(Hang())) for _ in range(64)]
        await eventually(lambda: found.desks["free"].hanging == 64, "both are full")
        with pytest.raises(Overloaded):
            await found.ctx.request(Ask())
        for one in found.desks.values():
            one.gate.set()
        await asyncio.gather(*hanging)


async def test_a_key_prefers_one_instance_from_wherever_it_is_asked() -> None:
    async with office("one", "two", "three") as found:
        customers = [f"customer {number}" for number in range(60)]
        first = {customer: await found.ctx.request(Order(customer)) for customer in customers}
        assert set(first.values()) == {"one", "two", "three"}
        for _ in range(3):
            assert {customer: await found.ctx.request(Order(customer)) for customer in customers} == first
        async with Node([], MemoryTransport(found.asker.environment.transport.network)) as another:  # type: ignore[attr-defined]
            ctx = another.client("another", (request_handler,))
            assert {customer: await ctx.request(Order(customer)) for customer in customers} == first, "every node agrees"
        gone = found.nodes.pop("two")
        await gone.stop()
        await eventually(lambda: len(found.asker.registry.members("desk")) == 2, "it is gone")
        then = {customer: await found.ctx.request(Order(customer)) for customer in customers}
        assert all(then[customer] == place for customer, place in first.items() if place != "two"), "only its customers move"


async def test_suspected_instances_are_asked_when_there_is_no_other() -> None:
    async with office("one", "two") as found:
        registry = found.asker.registry
        addresses = [member.address for member in registry.members("desk")]
        registry.suspect(addresses[0])
        assert await found.answers(20) == Counter({addresses[1].node.partition("-")[0]: 20})
        registry.suspect(addresses[1])
        assert (await found.answers(20)).total() == 20


async def test_a_service_that_was_lost_a_moment_ago_is_waited_for() -> None:
    network = MemoryNetwork()
    async with Node([], MemoryTransport(network)) as asker:
        transport = MemoryTransport(network)
        dead = Node([lambda: RequestHandler("first")], transport)
        await dead.__aenter__()
        ctx = asker.client("asker", (request_handler,))
        assert await ctx.request(Ask()) == "first"
        transport.crash()
        await dead.crash()
        await eventually(lambda: not asker.registry.members("desk"), "it is lost")
        waiting = asyncio.create_task(ctx.request(Ask()))
        await asyncio.sleep(0)
        assert not waiting.done()
        async with Node([lambda: RequestHandler("second")], MemoryTransport(network)):
            assert await waiting == "second"


class Crowd(RequestHandler):
    """One that many may linger at."""

    concurrency = 600


@asynccontextmanager
async def lost_under_load(asker: Node, network: MemoryNetwork, count: int) -> AsyncGenerator[None, None]:
    """A request_handler that is lost while it is busy with so many requests."""
    transport, busy = MemoryTransport(network), Crowd("lost")
    node = Node([lambda: busy], transport)
    await node.__aenter__()
    yield
    await eventually(lambda: busy.hanging == count, "all are under way")
    transport.crash()
    await node.crash()
    await eventually(lambda: not asker.registry.members("desk"), "it is lost")


@asynccontextmanager
async def heir(network: MemoryNetwork) -> AsyncGenerator[None, None]:
    """A request_handler that answers at once."""
    one = Crowd("heir")
    one.gate.set()
    async with Node([lambda: one], MemoryTransport(network)):
        yield


async def test_all_that_a_lost_instance_had_is_asked_again_however_often_one_is_lost() -> None:
    network, count = MemoryNetwork(), Crowd.concurrency
    async with Node([], MemoryTransport(network)) as asker:
        ctx = asker.client("asker", (request_handler,))
        for _ in range(3):
            async with lost_under_load(asker, network, count):
                waiting = [asyncio.create_task(ctx.request(Linger())) for _ in range(count)]
            async with heir(network):
                assert await asyncio.gather(*waiting) == ["heir"] * count


async def test_what_loses_instance_after_instance_is_not_asked_for_ever() -> None:
    network, count = MemoryNetwork(), Crowd.concurrency
    async with Node([], MemoryTransport(network)) as asker:
        ctx = asker.client("asker", (request_handler,))
        async with lost_under_load(asker, network, count):
            waiting = [asyncio.create_task(ctx.request(Linger())) for _ in range(count)]
        for _ in range(2):
            async with lost_under_load(asker, network, count):
                pass
        async with heir(network):
            answers = await asyncio.gather(*waiting, return_exceptions=True)
        errors = [answer for answer in answers if answer != "heir"]
        assert errors
        assert all(isinstance(error, InstanceLost) for error in errors)


async def test_that_the_first_instance_may_have_run_it_is_not_forgotten() -> None:
    network = MemoryNetwork()
    async with Node([], MemoryTransport(network)) as asker:
        async with lost_under_load(asker, network, 1):
            waiting = asyncio.create_task(asker.client("asker", (request_handler,)).request(Linger(), timeout=1))
        with pytest.raises(NoInstance) as caught:
            await waiting
        assert caught.value.maybe_delivered


async def test_who_cannot_be_reached_is_tried_again_until_the_deadline() -> None:
    class Shy(MemoryTransport):
        refused = 1500

        def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
            if envelope.kind == "request" and self.refused > 0:
                self.refused -= 1
                raise PeerUnreachable("not yet")
            return super().unicast_now(to, envelope, sender)

    network = MemoryNetwork()
    async with heir(network), Node([], Shy(network)) as asker:
        ctx = asker.client("asker", (request_handler,))
        assert await asyncio.gather(*(ctx.request(Linger()) for _ in range(600))) == ["heir"] * 600
        transport = asker.environment.transport
        assert isinstance(transport, Shy)
        transport.refused = 10**9
        with pytest.raises(Unreachable):
            await ctx.request(Linger(), timeout=0.2)


def test_picking_is_fair_among_equals() -> None:
    clock = Clock()
    registry = Registry(clock, Random(clock, 7), lambda service: None)
    loop = asyncio.new_event_loop()

    async def fill() -> None:
        for name in ("one", "two", "three"):
            registry.join(Manifest("desk", name, name))

    loop.run_until_complete(fill())
    loop.close()
    picked = Counter(member.address.node for _ in range(3000) if (member := registry.pick("desk", 0.0)) is not None)
    assert all(800 < picked[name] < 1200 for name in ("one", "two", "three"))
    others = frozenset({Address("desk", "one"), Address("desk", "two")})
    third = registry.pick("desk", 0.0, others)
    assert third is not None
    assert third.address.node == "three"


def test_however_often_one_fails_it_is_tried_again_within_half_a_minute() -> None:
    random = Random(Clock(), 7)
    member = Member(Manifest("desk", "one", "1"))
    now = 0.0
    for _ in range(3000):
        member.failed(now, now, random)
        now = max(now, member.ejected_until)
        assert member.ejected_until - now <= 30
    before = member.ejected_until
    assert not member.failed(now - 1000, now, random), "what was under way when it was set aside does not count again"
    assert member.ejected_until == before
