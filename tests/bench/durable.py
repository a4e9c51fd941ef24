"""Durable events with a row on each side, and the catch-up of a subscriber that starts late. Run with `python -m tests.bench.scenarios durable`."""

import asyncio
import gc
import tempfile
import time
from collections.abc import Callable

from config.cli.common import run_loop
from runtime import ANYONE, Context, Contract, Database, Event, Node, Request, Service, Transaction, handles, subscribes
from runtime.storage.sqlite import SqliteFolder
from tests.bench.figures import report
from transports.memory import MemoryNetwork, MemoryTransport

orders = Contract("orders")

_TABLE = "CREATE TABLE IF NOT EXISTS numbers (number INTEGER)"
_INSERT = "INSERT INTO numbers VALUES ($1)"
_BATCH = 500


@orders.message
class Place(Request[None]):
    number: int


@orders.message
class Import(Request[None]):
    """Publish many events in one transaction."""

    count: int


@orders.message
class Placed(Event):
    number: int


class Orders(Service):
    contract = orders

    @handles(allow=ANYONE)
    async def place(self, message: Place, ctx: Context, tx: Transaction) -> None:
        await tx.execute(_INSERT, message.number)
        await tx.publish(Placed(message.number))

    @handles(allow=ANYONE)
    async def bulk(self, message: Import, ctx: Context, tx: Transaction) -> None:
        for number in range(message.count):
            await tx.publish(Placed(number))

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute(_TABLE)


class Ledger(Service):
    contract = Contract("ledger")
    applied = 0

    @subscribes
    async def on_placed(self, event: Placed, ctx: Context, tx: Transaction) -> None:
        await tx.execute(_INSERT, event.number)
        Ledger.applied += 1

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute(_TABLE)


async def _applied(count: int) -> None:
    async with asyncio.timeout(120):
        while Ledger.applied < count:
            await asyncio.sleep(0.001)


async def place(ctx: Context, callers: int, count: int) -> float:
    """Publish events, and wait until the subscriber has applied all. Return the seconds until the last was published."""

    async def requests() -> None:
        for number in range(count // callers):
            await ctx.request(Place(number), timeout=60)

    before, start = Ledger.applied, time.perf_counter()
    await asyncio.gather(*(requests() for _ in range(callers)))
    published = time.perf_counter() - start
    await _applied(before + count // callers * callers)
    return published


async def commit_to_commit(databases: Callable[[str], Database], callers: int, count: int) -> tuple[float, float]:
    """Return the rates of published and of applied events, both from the first request on."""
    async with Node([Orders, Ledger], MemoryTransport(), databases=databases) as node:
        ctx = node.client("bench", (orders,))
        await place(ctx, callers, count // 10)
        gc.collect()
        start = time.perf_counter()
        published = await place(ctx, callers, count)
        return count / published, count / (time.perf_counter() - start)


async def catch_up(durable: bool, count: int = 50_000) -> float:
    """Return the rate at which a subscriber applies events that were published before it started."""
    network = MemoryNetwork()
    Ledger.applied = 0
    with tempfile.TemporaryDirectory() as folder:
        async with Node([Orders], MemoryTransport(network), databases=SqliteFolder(folder, durable=durable)) as node:
            for _ in range(count // _BATCH):
                await node.client("bench", (orders,)).request(Import(_BATCH), timeout=60)
            gc.collect()
            start = time.perf_counter()
            late = Node([Ledger], MemoryTransport(network), name="late", databases=SqliteFolder(folder, durable=durable))
            async with late:
                await _applied(count)
                return count / (time.perf_counter() - start)


def main() -> None:
    for durable, kind in ((False, "normal"), (True, "full")):
        for callers, count in ((1, 1_000), (64, 6_400)):
            with tempfile.TemporaryDirectory() as folder:
                published, applied = run_loop(commit_to_commit(SqliteFolder(folder, durable=durable), callers, count))
            report(f"durable_published_{kind}_c{callers}", published, "per second")
            report(f"durable_{kind}_c{callers}", applied, "per second")
        report(f"catch_up_{kind}", run_loop(catch_up(durable)), "per second")
