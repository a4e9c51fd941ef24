"""Requests over MQTT: the CPU time of each side, many in flight, and large messages. Run with `python -m tests.bench.scenarios mqtt-more`."""

import asyncio
import gc
import time
from functools import partial

from config.cli.bench.measured import Add, Math, Sum, math
from config.cli.bench.processes import over_mqtt
from config.cli.common import run_loop
from runtime import ANYONE, Context, Contract, Node, Request, Service, handles
from tests.bench.figures import report

meter = Contract("meter")
crowd = Contract("crowd")


@meter.message
class GetCpuTime(Request[Sum]):
    """Return the CPU time that this process has used, in nanoseconds."""


class Meter(Service):
    """Tells the benchmark how much CPU time the second process uses."""

    contract = meter

    @handles(allow=ANYONE)
    async def cpu_time(self, message: GetCpuTime, ctx: Context) -> Sum:
        return Sum(time.process_time_ns())


@crowd.message
class Echo(Request[Sum]):
    """Return the length of a text."""

    text: str


class Crowd(Service):
    """Has room for many messages, so that none is refused."""

    contract = crowd
    capacity = 10_000

    @handles(allow=ANYONE)
    async def echo(self, message: Echo, ctx: Context) -> Sum:
        return Sum(len(message.text))


async def cpu_per_request(node: Node, callers: int, count: int) -> tuple[float, float]:
    """Return the microseconds of CPU time per request, of the caller and of the service."""
    ctx, its = node.client("bench", (math,)), node.client("bench", (meter,))

    async def requests(number: int) -> None:
        for _ in range(number):
            await ctx.request(Add(number))

    await requests(500)
    gc.collect()
    theirs, ours = (await its.request(GetCpuTime())).s, time.process_time_ns()
    await asyncio.gather(*(requests(count // callers) for _ in range(callers)))
    ours = time.process_time_ns() - ours
    theirs = (await its.request(GetCpuTime())).s - theirs
    return ours / 1000 / count, theirs / 1000 / count


async def in_flight(node: Node, text: str, callers: int, count: int) -> float:
    """Return the rate of requests with a text, `callers` of which are in flight."""
    ctx = node.client("bench", (crowd,))
    left = count

    async def requests() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ctx.request(Echo(text), timeout=60)

    await asyncio.gather(*(requests() for _ in range(callers)))  # also warms up
    left = count
    gc.collect()
    start = time.perf_counter()
    await asyncio.gather(*(requests() for _ in range(callers)))
    return count / (time.perf_counter() - start)


def main() -> None:
    for callers, count in ((1, 5_000), (64, 32_000)):
        caller, service = run_loop(over_mqtt([Math, Meter], partial(cpu_per_request, callers=callers, count=count)))
        report(f"cpu_caller_c{callers}", caller, "µs per request")
        report(f"cpu_service_c{callers}", service, "µs per request")
    for callers in (256, 4096):
        rate = run_loop(over_mqtt([Crowd], partial(in_flight, text="", callers=callers, count=32_768)))
        report(f"request_c{callers}", rate, "per second")
    for name, size in (("message_100kb", 100_000), ("message_1mb", 1_000_000)):
        count = 100_000_000 // size
        rate = run_loop(over_mqtt([Crowd], partial(in_flight, text="x" * size, callers=4, count=count)))
        report(name, rate * size / 1e6, "MB per second")
