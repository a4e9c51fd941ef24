"""Listening to a topic for a while: a listener that joins while another leaves misses nothing."""

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


class Listener(Service):
    contract = Contract("listener")

    async def on_start(self, ctx: Context) -> None:
        self.proxy = Proxy(ctx)


class SlowToUnsubscribe(MemoryTransport):
    """Takes 20 ms to unsubscribe, as across a network."""

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        await asyncio.sleep(0.02)
        await super().unsubscribe(topic, service)


async def test_a_listener_that_joins_while_another_leaves_misses_nothing() -> None:
    network, topic = MemoryNetwork(), Topic("signal", "bell", "Rung", "north")
    async with Node([Listener], SlowToUnsubscribe(network)) as node, Node([Bell], MemoryTransport(network)) as other:
        listener, ctx = node.service(Listener), other.client("bell", ())
        assert listener is not None
        received: list[str] = []
        async with listener.proxy.listening(topic, lambda envelope: received.append(f"first {envelope.signal_key}")):
            await ctx.publish(Rung("north"))
            await ctx.publish(Rung("south"))
            await eventually(lambda: received == ["first north"], "the first listener receives only the signal of its key")

        async def join_and_leave() -> None:
            async with listener.proxy.listening(topic, lambda _: None):
                pass

        leaving = asyncio.create_task(join_and_leave())
        await asyncio.sleep(0)
        async with listener.proxy.listening(topic, lambda envelope: received.append(f"second {envelope.signal_key}")):
            await leaving
            await ctx.publish(Rung("north"))
            await eventually(lambda: received[1:] == ["second north"], "the listener that joined meanwhile receives the signal")
        transport = node.environment.transport
        await eventually(lambda: not transport._subscribed.get(topic), "the node has unsubscribed")  # type: ignore[attr-defined]
