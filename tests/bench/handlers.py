"""Handlers within one process: one that asks another service, and one that waits once. Run with `python -m tests.bench.scenarios handlers`."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

from config.cli.bench.measured import Add, Math, Sum, math
from config.cli.common import run_loop
from runtime import ANYONE, Context, Contract, Node, Request, Service, handles
from tests.bench.figures import report
from transports.memory import MemorySettings, MemoryTransport

front = Contract("front")


@front.message
class AskMany(Request[Sum]):
    """Ask the math service a number of times."""

    times: int


@front.message
class WaitOnce(Request[Sum]):
    a: int


class Front(Service):
    contract = front
    calls = (math,)

    @handles(allow=ANYONE)
    async def ask_many(self, message: AskMany, ctx: Context) -> Sum:
        total = 0
        for number in range(message.times):
            total += (await ctx.request(Add(number))).s
        return Sum(total)

    @handles(allow=ANYONE)
    async def wait_once(self, message: WaitOnce, ctx: Context) -> Sum:
        await asyncio.sleep(0)
        return Sum(message.a + 1)


async def ask(ctx: Context, count: int) -> None:
    """Let a handler make `count` requests."""
    for _ in range(count // 500):
        await ctx.request(AskMany(500))


async def wait(ctx: Context, count: int) -> None:
    """Make `count` requests whose handler waits for one turn of the event loop."""
    for number in range(count):
        await ctx.request(WaitOnce(number))


async def measure(work: Callable[[Context, int], Awaitable[None]], count: int, zero_copy: bool) -> float:
    """Return how many requests per second `work` makes."""
    async with Node([Math, Front], MemoryTransport(settings=MemorySettings(zero_copy=zero_copy))) as node:
        ctx = node.client("bench", (front,))
        await work(ctx, count // 10)
        gc.collect()
        start = time.perf_counter()
        await work(ctx, count)
        return count / (time.perf_counter() - start)


def main() -> None:
    for zero_copy, suffix in ((True, ""), (False, "_serialized")):
        report(f"handler_asks{suffix}_c1", run_loop(measure(ask, 200_000, zero_copy)), "per second")
        report(f"handler_waits{suffix}_c1", run_loop(measure(wait, 50_000, zero_copy)), "per second")
