"""Listening for a while: whoever comes while somebody goes is heard all the same."""

import asyncio

from runtime import Context, Contract, Node, Service, Signal
from runtime.network import Topic
from runtime.node.proxy import Proxy
from runtime.testing import eventually
from transports.memory import MemoryNetwork, MemoryTransport

bell = Contract("bell")


@bell.message(key="tower")
class Rung(Signal):
    tower: str


class Bell(Service):
    contract = bell


class Ear(Service):
    contract = Contract("ear")

    async def on_start(self, ctx: Context) -> None:
        self.proxy = Proxy(ctx)


class SlowToLeave(MemoryTransport):
    """Leaving a topic takes a while, as across a network."""

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        await asyncio.sleep(0.02)
        await super().unsubscribe(topic, service)


async def test_who_comes_while_somebody_goes_is_heard() -> None:
    network, topic = MemoryNetwork(), Topic("signal", "bell", "Rung", "north")
    async with Node([Ear], SlowToLeave(network)) as node, Node([Bell], MemoryTransport(network)) as other:
        ear, ctx = node.service(Ear), other.client("bell", ())
        assert ear is not None
        heard: list[str] = []
        async with ear.proxy.listening(topic, lambda envelope: heard.append(f"first {envelope.signal_key}")):
            await ctx.publish(Rung("north"))
            await ctx.publish(Rung("south"))
            await eventually(lambda: heard == ["first north"], "it is heard")

        async def come_and_go() -> None:
            async with ear.proxy.listening(topic, lambda _: None):
                pass

        going = asyncio.create_task(come_and_go())
        await asyncio.sleep(0)
        async with ear.proxy.listening(topic, lambda envelope: heard.append(f"second {envelope.signal_key}")):
            await going
            await ctx.publish(Rung("north"))
            await eventually(lambda: heard[1:] == ["second north"], "who came meanwhile hears it")
        await eventually(lambda: not node.environment.transport._subscribed.get(topic), "nobody listens any more")  # type: ignore[attr-defined]
