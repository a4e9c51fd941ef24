"""Another service, with larger messages: four fields, one of them a list of structs, and a signal for every request.

It shows whether what holds for a message with one field holds for others, too. Run with `python -m tests.bench.scenarios wide`.
"""

import asyncio
import gc
import time
from datetime import UTC, datetime
from functools import partial

from config.cli.bench.processes import over_mqtt
from config.cli.common import run_loop
from runtime import ANYONE, Context, Contract, Node, Request, Service, Signal, Struct, handles, subscribes
from tests.bench.figures import report
from transports.memory import MemorySettings, MemoryTransport

trips = Contract("trips")


class Leg(Struct):
    scooter_id: str
    meters: int
    cents: int


class Quote(Struct):
    trip_id: str
    meters: int
    cents: int
    legs: tuple[Leg, ...]


@trips.message
class GetQuote(Request[Quote]):
    rider_id: str
    start: datetime
    discount: float
    legs: tuple[Leg, ...]


@trips.message
class Quoted(Signal):
    rider_id: str
    cents: int


class Trips(Service):
    contract = trips

    @handles(allow=ANYONE)
    async def quote(self, message: GetQuote, ctx: Context) -> Quote:
        cents = round(sum(leg.cents for leg in message.legs) * (1 - message.discount))
        await ctx.publish(Quoted(message.rider_id, cents))
        return Quote("trip-1", sum(leg.meters for leg in message.legs), cents, message.legs)


class Display(Service):
    """Subscribes to the signal of the measured service."""

    contract = Contract("display")
    received = 0

    @subscribes
    async def on_quoted(self, signal: Quoted, ctx: Context) -> None:
        Display.received += 1


REQUEST = GetQuote(
    "rider-1", datetime(2026, 11, 29, 12, tzinfo=UTC), 0.1, tuple(Leg(f"scooter-{n}", 900 + n, 300 + n) for n in range(4))
)


async def _quotes(ctx: Context, count: int) -> None:
    for _ in range(count):
        await ctx.request(REQUEST)


async def measure(node: Node, callers: int, count: int) -> float:
    """Return the rate of requests. The time ends when the subscriber has received the signal of each."""
    ctx = node.client("bench", (trips,))
    await complete(ctx, callers, count // 10)
    gc.collect()
    start = time.perf_counter()
    await complete(ctx, callers, count)
    return count / (time.perf_counter() - start)


async def complete(ctx: Context, callers: int, count: int) -> None:
    """Make requests, and wait until the subscriber has received the signal of each."""
    each, before = count // callers, Display.received
    await asyncio.gather(*(_quotes(ctx, each) for _ in range(callers)))
    async with asyncio.timeout(30):
        while Display.received < before + each * callers:
            await asyncio.sleep(0.001)


async def local(zero_copy: bool) -> float:
    async with Node([Trips, Display], MemoryTransport(settings=MemorySettings(zero_copy=zero_copy))) as node:
        return await measure(node, 1, 50_000)


def main() -> None:
    report("wide_local_c1", run_loop(local(True)), "per second")
    report("wide_local_serialized_c1", run_loop(local(False)), "per second")
    for callers, count in ((1, 3_000), (64, 32_000)):
        rate = run_loop(over_mqtt([Trips], partial(measure, callers=callers, count=count), Display))
        report(f"wide_request_c{callers}", rate, "per second")
