"""Deadlines across nodes: they are the caller's, where it has one."""

import asyncio

import pytest

from runtime import ANYONE, Context, Contract, DeadlineExceeded, Node, NodeSettings, Request, Service, handles
from transports.memory import MemoryNetwork, MemoryTransport

slow = Contract("slow")
relay = Contract("relay")


@slow.message
class Take(Request[None]):
    """Takes so many seconds."""

    seconds: float


@relay.message
class Pass(Request[None]):
    """Asks the slow one."""

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


async def test_a_request_without_a_timeout_has_its_callers_deadline() -> None:
    """Also where that is longer than what a request has whose caller has none."""
    network = MemoryNetwork()
    own = NodeSettings(request_timeout=0.2)
    async with (
        Node([Slow], MemoryTransport(network), settings=own),
        Node([Relay], MemoryTransport(network), settings=own),
        Node([], MemoryTransport(network), settings=NodeSettings(request_timeout=5)) as asker,
    ):
        await asker.registry.wait_for("relay")
        ctx = asker.client("asker", (relay,))
        await ctx.request(Pass(0.5))
        with pytest.raises(DeadlineExceeded):
            await ctx.request(Pass(5), timeout=0.3)
