"""How a node passes signals to their handlers."""

import asyncio

from runtime import Context, Contract, Service, Signal, subscribes
from runtime.testing import eventually
from tests.topology import Topology

tower = Contract("tower")


@tower.message
class Bell(Signal):
    number: int


class Tower(Service):
    contract = tower


class Listener(Service):
    contract = Contract("listener")
    concurrency = 1
    capacity = 5

    def __init__(self) -> None:
        self.received: list[int] = []
        self.gate = asyncio.Event()

    @subscribes
    async def on_bell(self, signal: Bell, ctx: Context) -> None:
        assert ctx.identity is None
        if signal.number == 0:
            raise ValueError("a bad bell")
        await self.gate.wait()
        self.received.append(signal.number)


async def test_a_signal_whose_handler_fails_is_counted_and_not_retried(topology: Topology) -> None:
    await topology.start(Tower, Listener)
    listener = topology.service(Listener)
    listener.gate.set()
    ctx = topology.node_of("tower").client("tower", ())
    for number in (0, 1):
        await ctx.publish(Bell(number))
    await eventually(lambda: listener.received == [1], "the next signal is received")
    assert topology.node_of("listener").metrics.value("signals_failed_total", service="listener") == 1


async def test_signals_that_do_not_fit_into_the_mailbox_are_dropped_and_counted(topology: Topology) -> None:
    await topology.start(Tower, Listener)
    listener = topology.service(Listener)
    ctx = topology.node_of("tower").client("tower", ())
    for number in range(1, 21):
        await ctx.publish(Bell(number))
    metrics = topology.node_of("listener").metrics
    await eventually(
        lambda: metrics.value("signals_dropped_total", service="listener") == 14, "the signals that do not fit are dropped"
    )
    listener.gate.set()
    await eventually(lambda: listener.received == [1, 2, 3, 4, 5, 6], "the signals that fit are received")
