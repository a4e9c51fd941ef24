"""Requests between services, as both sides see them, in every topology."""

import asyncio
from collections.abc import Callable

import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    DeadlineExceeded,
    Forbidden,
    InternalError,
    Node,
    NodeSettings,
    NoInstance,
    Request,
    Service,
    UsageError,
    handles,
)
from runtime.network import Address, Envelope
from runtime.testing import eventually
from tests.runtime.execution.shop import (
    Bank,
    Buy,
    CallUndeclared,
    CourierOnly,
    Crash,
    GetCaller,
    Pack,
    Parcel,
    Shop,
    Sleep,
    bank,
    shop,
)
from tests.topology import Topology
from transports.memory import MemoryNetwork, MemoryTransport


async def test_the_caller_receives_what_the_handler_returned(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(shop)
    assert await ctx.request(Pack(Parcel("a", ("x", "ü")))) == Parcel("outer", ("packed",), Parcel("a", ("x", "ü")))


async def test_a_request_to_a_service_without_instances_raises_no_instance(topology: Topology) -> None:
    await topology.start(Bank)
    ctx = await topology.client(shop)
    with pytest.raises(NoInstance) as caught:
        await ctx.request(Crash())
    assert caught.value.retryable
    assert not caught.value.maybe_delivered


async def test_a_service_may_call_only_the_contracts_that_it_declares(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(bank)
    with pytest.raises(UsageError, match=r"shop is not in its calls"):
        await ctx.request(Crash())
    inside = await topology.client(shop)
    with pytest.raises(InternalError):
        await inside.request(CallUndeclared())


async def test_the_callee_knows_the_calling_service(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    assert await (await topology.client(shop, name="courier")).request(GetCaller()) == "courier"
    with pytest.raises(Forbidden):
        await (await topology.client(shop, name="stranger")).request(CourierOnly())
    await (await topology.client(shop, name="courier")).request(CourierOnly())


async def test_a_late_reply_is_dropped_and_counted(tmp_path: object) -> None:
    topology = Topology("separate-nodes-serialized", tmp_path)  # type: ignore[arg-type]
    await topology.start(Bank, Shop)
    try:
        node = topology.node_of("bank")
        target = topology.node_of("shop")
        late = Envelope("reply", "unknown-request", "shop.Pack", b"{}")
        await node.environment.transport.unicast(Address("shop", target.id), late, "bank")
        await eventually(lambda: target.metrics.value("late_replies_total") == 1, "the late reply is counted")
    finally:
        await topology.close()


# Deadlines and cancellation


async def test_the_budget_shrinks_with_every_hop(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(shop)
    assert 0 < await ctx.request(Buy(), timeout=3) <= 3
    assert 0 < await ctx.request(Buy(timeout=1), timeout=3) <= 1
    assert 0 < await ctx.request(Buy(timeout=60), timeout=3) <= 3


async def test_a_request_without_a_timeout_uses_the_nodes_default(topology: Topology) -> None:
    await topology.start(Bank, Shop, request_timeout=0.2)
    ctx = await topology.client(shop, request_timeout=0.2)
    with pytest.raises(DeadlineExceeded) as caught:
        await ctx.request(Sleep(60))
    assert caught.value.maybe_delivered


async def test_a_deadline_cancels_the_work_of_every_hop(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(DeadlineExceeded):
        await ctx.request(Buy("hang"), timeout=0.1)
    bank_service = topology.service(Bank)
    await eventually(lambda: bank_service.history == ["started", "cancelled"], "the bank's handler is cancelled")


async def test_a_handler_may_catch_the_deadline_of_its_own_request(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(DeadlineExceeded) as caught:
        await ctx.request(Buy("hang", timeout=0.05), timeout=5)
    assert caught.value.service == "bank"
    await ctx.request(Buy(), timeout=5)


async def test_a_caller_that_stops_waiting_cancels_the_work_of_every_hop(topology: Topology) -> None:
    await topology.start(Bank, Shop, request_timeout=120)  # long enough that no deadline cancels it instead
    ctx = await topology.client(shop, request_timeout=120)
    bank_service = topology.service(Bank)
    task = asyncio.create_task(ctx.request(Buy("hang")))
    await eventually(lambda: bank_service.history == ["started"], "the bank's handler has started")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: bank_service.history == ["started", "cancelled"], "the bank's handler is cancelled")
    for name in ("bank", "shop"):
        await eventually(is_idle(topology, name), f"{name} runs no handlers")


def is_idle(topology: Topology, name: str) -> Callable[[], bool]:
    return lambda: topology.node_of(name).inbound.instances[name].mailbox.running == 0


async def test_deadlines_can_be_turned_off_for_a_debugger(topology: Topology) -> None:
    await topology.start(Bank, Shop, deadlines=False)
    ctx = await topology.client(shop, deadlines=False)
    assert await ctx.request(Sleep(0.1), timeout=0.01) == "slept"


slow = Contract("slow")
relay = Contract("relay")


@slow.message
class Take(Request[None]):
    """Takes `seconds` to reply."""

    seconds: float


@relay.message
class Pass(Request[None]):
    """Calls the slow service."""

    seconds: float


class Slow(Service):
    contract = slow

    @handles(allow=ANYONE)
    async def take(self, message: Take, ctx: Context) -> None:
        await asyncio.sleep(message.seconds)


class Relay(Service):
    contract = relay
    calls = (slow,)

    @handles(allow=ANYONE)
    async def forward(self, message: Pass, ctx: Context) -> None:
        await ctx.request(Take(message.seconds))


async def test_a_nested_request_without_a_timeout_uses_its_callers_deadline() -> None:
    """The caller's deadline applies even where it is longer than the node's default timeout."""
    network = MemoryNetwork()
    settings = NodeSettings(request_timeout=0.2)
    async with (
        Node([Slow], MemoryTransport(network), settings=settings),
        Node([Relay], MemoryTransport(network), settings=settings),
        Node([], MemoryTransport(network), settings=NodeSettings(request_timeout=5)) as caller,
    ):
        await caller.registry.wait_for("relay")
        ctx = caller.client("caller", (relay,))
        await ctx.request(Pass(0.5))
        with pytest.raises(DeadlineExceeded):
            await ctx.request(Pass(5), timeout=0.3)
