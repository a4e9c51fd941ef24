"""Ratios of our CPU time to Python's own ceilings, measured within one run.

Ours and its ceilings alternate in many short rounds, and each round gives a ratio. Only CPU time counts, because others may use
the machine at the same time. A ratio is the ceiling's CPU time over ours: 0.5 means that ours costs twice as much.
"""

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from config import compose
from config.cli.bench.gateway import open_gateway
from config.cli.bench.measured import Add, GuardedMath, Math, Publisher, math
from config.cli.bench.processes import broker, http_peers
from config.settings import Settings
from runtime import Context, Node
from runtime.storage.sqlite import SqliteFolder
from tests.bench import ceilings
from tests.bench.ceilings import Work
from tests.bench.durable import Ledger, Orders, orders, place
from tests.bench.handlers import Front, ask, front, wait
from tests.bench.samples import Spread, spread
from tests.bench.wide import Display, Trips, complete, trips
from transports.memory import MemorySettings, MemoryTransport

Sides = dict[str, tuple[Work, int]]
"""What a round measures, by name: the work, and how many times a round does it."""


class Group:
    """What is measured together.

    Args:
        opened: provides the sides.
        pairs: ours and its ceiling, by name.
    """

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Sides]], *pairs: tuple[str, str]) -> None:
        self.opened = opened
        self.pairs = pairs
        self.names = [f"{ours} : {ceiling}" for ours, ceiling in pairs]


def requests(ctx: Context, callers: int) -> Work:
    """Return the work of making requests to the math service, as many at a time as there are callers."""

    async def sequentially(count: int) -> None:
        for number in range(count):
            await ctx.request(Add(number))

    async def work(count: int) -> None:
        if callers == 1:
            await sequentially(count)
        else:
            await asyncio.gather(*(sequentially(count // callers) for _ in range(callers)))

    return work


@asynccontextmanager
async def _local() -> AsyncGenerator[Sides, None]:
    async with Node([Math, Front], MemoryTransport(settings=MemorySettings(zero_copy=True))) as node:
        ctx = node.client("bench", (math, front))
        yield {
            "local_c1": (requests(ctx, 1), 2_000),
            "handler_asks_c1": (lambda count: ask(ctx, count), 2_000),
            "handler_waits_c1": (lambda count: wait(ctx, count), 500),
            "direct_await": (ceilings.direct_await, 5_000),
            "direct_wait": (ceilings.direct_wait, 1_000),
            "task_per_call": (ceilings.task_per_call, 500),
            "mailbox_round_trip": (ceilings.mailbox_round_trip, 500),
        }


@asynccontextmanager
async def _serialized() -> AsyncGenerator[Sides, None]:
    async with Node([Math, Trips, Display], MemoryTransport()) as node:
        ctx = node.client("bench", (math, trips))
        yield {
            "local_serialized_c1": (requests(ctx, 1), 1_000),
            "wide_local_serialized_c1": (lambda count: complete(ctx, 1, count), 100),
            "json_both_ways": (ceilings.json_both_ways, 2_000),
            "wide_json_both_ways": (ceilings.wide_json_both_ways, 300),
        }


@asynccontextmanager
async def _mqtt() -> AsyncGenerator[Sides, None]:
    async with broker() as transport:
        url, namespace = transport.mqtt.url, transport.mqtt.namespace
        settings = Settings(transport=transport)
        async with (
            Node([Math], compose.transport(settings)),
            Node([Publisher], compose.transport(settings)) as caller,
            ceilings.mqtt_pair(url, f"{namespace}-1", 1) as one,
            ceilings.mqtt_pair(url, f"{namespace}-64", 64) as many,
        ):
            await caller.registry.wait_for("math")
            ctx = caller.client("bench", (math,))
            yield {
                "request_c1": (requests(ctx, 1), 64),
                "request_c64": (requests(ctx, 64), 192),
                "bare_mqtt_c1": (one, 64),
                "bare_mqtt_c64": (many, 192),
            }


@asynccontextmanager
async def _http() -> AsyncGenerator[Sides, None]:
    theirs, ours = http_peers(("math",))
    async with (
        Node([Math], compose.transport(Settings(transport=theirs))),
        Node([Publisher], compose.transport(Settings(transport=ours))) as caller,
        ceilings.granian() as url,
        ceilings.http_client(url, "none", 16) as bare,
        open_gateway(MemoryTransport(), GuardedMath) as (gateway, token),
        ceilings.http_client(gateway, token, 16) as through_gateway,
    ):
        await caller.registry.wait_for("math")
        yield {
            "peers_c16": (requests(caller.client("bench", (math,)), 16), 96),
            "gateway_c16": (through_gateway, 128),
            "bare_http_c16": (bare, 256),
        }


@asynccontextmanager
async def _durable() -> AsyncGenerator[Sides, None]:
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder, ceilings.sqlite_loop(Path(folder)) as bare:
        databases = SqliteFolder(Path(folder) / "ours", durable=False)
        async with Node([Orders, Ledger], MemoryTransport(), databases=databases) as node:
            ctx = node.client("bench", (orders,))

            async def events(count: int) -> None:
                await place(ctx, 64, count)

            yield {"durable_normal_c64": (events, 192), "bare_sqlite": (bare, 100)}


GROUPS = (
    Group(
        _local,
        ("local_c1", "direct_await"),
        ("local_c1", "task_per_call"),
        ("local_c1", "mailbox_round_trip"),
        ("handler_asks_c1", "direct_await"),
        ("handler_waits_c1", "direct_wait"),
    ),
    Group(_serialized, ("local_serialized_c1", "json_both_ways"), ("wide_local_serialized_c1", "wide_json_both_ways")),
    Group(_mqtt, ("request_c1", "bare_mqtt_c1"), ("request_c64", "bare_mqtt_c64")),
    Group(_http, ("peers_c16", "bare_http_c16"), ("gateway_c16", "bare_http_c16")),
    Group(_durable, ("durable_normal_c64", "bare_sqlite")),
)


ROUNDS = 15
"""Their median is within 5 % of another run's, even on a busy machine."""


async def measure(groups: Iterable[Group], rounds: int = ROUNDS) -> dict[str, Spread]:
    """Return the spread of each ratio over the rounds, by its name."""
    found: dict[str, Spread] = {}
    for group in groups:
        samples: dict[str, list[float]] = {name: [] for name in group.names}
        async with group.opened() as sides:
            for work, count in sides.values():
                await work(count)  # warms up
            gc.freeze()  # what exists by now is not collected again in each round
            for _ in range(rounds):
                gc.collect()
                cpu = {name: await _cpu_time(work, count) for name, (work, count) in sides.items()}
                for name, (ours, ceiling) in zip(group.names, group.pairs, strict=True):
                    samples[name].append(cpu[ceiling] / cpu[ours])
        gc.unfreeze()
        found |= {name: spread(values) for name, values in samples.items()}
    return found


async def _cpu_time(work: Work, count: int) -> float:
    """Return the CPU time of this process for one of `count` operations, in nanoseconds."""
    start = time.process_time_ns()
    await work(count)
    return (time.process_time_ns() - start) / count
