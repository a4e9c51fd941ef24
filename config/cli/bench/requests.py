"""Requests to a small service: within one process, over MQTT, and over HTTP. Signals over MQTT."""

import asyncio
import gc
import time

from config.cli.bench.measured import SIGNALS, Add, GetRate, Math, Tick, math, subscriber
from runtime import Context, Node
from transports.memory import MemorySettings, MemoryTransport


async def local(zero_copy: bool) -> float:
    """Return the rate of sequential requests within one process."""
    async with Node([Math], MemoryTransport(settings=MemorySettings(zero_copy=zero_copy))) as node:
        ctx = node.client("bench", (math,))
        await _request(ctx, 20_000)
        gc.collect()
        return await _request(ctx, 300_000)


async def concurrently(node: Node, callers: int, count: int) -> float:
    """Return the rate of requests to the service of another node.

    Args:
        node: the callers' node.
        callers: how many requests are in progress at any time.
        count: how many are made in total.
    """
    ctx = node.client("bench", (math,))
    await _request(ctx, 500)
    gc.collect()
    start = time.perf_counter()
    await asyncio.gather(*(_request(ctx, count // callers) for _ in range(callers)))
    return count / (time.perf_counter() - start)


async def _request(ctx: Context, count: int) -> float:
    start = time.perf_counter()
    for number in range(count):
        await ctx.request(Add(number))
    return count / (time.perf_counter() - start)


async def signals(node: Node) -> float:
    """Return the rate at which the subscriber on another node receives signals."""
    ctx = node.client("publisher", (subscriber,))
    for number in range(SIGNALS):
        await ctx.publish(Tick(number))
    return (await ctx.request(GetRate(), timeout=60)).s
