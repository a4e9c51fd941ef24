"""The services that the benchmarks measure, written as users write theirs."""

import asyncio
import time

from runtime import ANYONE, Context, Contract, Request, Service, Signal, Struct, handles, roles, subscribes

SIGNALS = 100_000
"""How many signals the subscriber waits for."""

math = Contract("math")
publisher = Contract("publisher")
subscriber = Contract("subscriber")


class Sum(Struct):
    """The reply: a number."""

    s: int


@math.message
class Add(Request[Sum]):
    """Add one to a number."""

    a: int


class Math(Service):
    """The service that is measured without a gateway."""

    contract = math

    @handles(allow=ANYONE)
    async def add(self, message: Add, ctx: Context) -> Sum:
        return Sum(message.a + 1)


class GuardedMath(Service):
    """The service that is measured behind the gateway. Only riders may call it."""

    contract = math

    @handles(http="GET /add/{a}", allow=roles("rider"))
    async def add(self, message: Add, ctx: Context) -> Sum:
        return Sum(message.a + 1)


@publisher.message
class Tick(Signal):
    """A numbered signal."""

    number: int


@subscriber.message
class GetRate(Request[Sum]):
    """Wait for the last signal and return how many were received per second."""


class Publisher(Service):
    """Publishes signals."""

    contract = publisher


class Subscriber(Service):
    """Receives signals and measures their rate."""

    contract = subscriber

    def __init__(self) -> None:
        self.first = 0.0
        self.last = 0.0
        self.count = 0
        self.complete = asyncio.Event()

    @subscribes
    async def on_tick(self, signal: Tick, ctx: Context) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.count += 1
        if self.count == SIGNALS:
            self.complete.set()

    @handles(allow=ANYONE)
    async def get_rate(self, message: GetRate, ctx: Context) -> Sum:
        await self.complete.wait()
        return Sum(round(SIGNALS / (self.last - self.first)))
