"""`make bench`: measurements that `callboard bench` does not make. Prints one JSON object per line."""

import asyncio
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runtime import ANYONE, Context, Contract, Event, Node, Request, Service, Transaction, handles, subscribes
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.system.process import Callboard
from transports.memory import MemoryTransport

worker = Contract("worker")


@worker.message
class Keyed(Request[None]):
    key: int


@worker.message
class Publish(Request[None]):
    number: int


@worker.message
class Published(Event):
    number: int


class Worker(Service):
    contract = worker
    capacity = 1_000_000

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    @handles(allow=ANYONE, key="key")
    async def keyed(self, message: Keyed, ctx: Context) -> None:
        await self.gate.wait()

    @handles(allow=ANYONE)
    async def publish(self, message: Publish, ctx: Context, tx: Transaction) -> None:
        await tx.publish(Published(message.number))


class Subscriber(Service):
    contract = Contract("subscriber")
    applied = 0

    @subscribes
    async def on_published(self, event: Published, ctx: Context, tx: Transaction) -> None:
        await tx.execute("INSERT INTO applied VALUES ($1)", event.number)
        Subscriber.applied += 1

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS applied (number INTEGER)")


def report(name: str, value: float, unit: str) -> None:
    """Print a measurement."""
    print(json.dumps({"name": name, "value": round(value, 1), "unit": unit}), flush=True)


def rss(pid: int | str = "self") -> float:
    """Return the resident memory of a process, in MiB, or 0 where the system does not provide it."""
    statm = Path(f"/proc/{pid}/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20 if statm.exists() else 0.0


def import_time() -> None:
    def milliseconds(statement: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
        return (time.perf_counter() - start) * 1000

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    milliseconds("import runtime")
    bare = statistics.median(milliseconds("pass") for _ in range(9))
    report(
        "import_runtime",
        statistics.median(milliseconds("import runtime") for _ in range(9)) - bare,
        "ms more than starting the interpreter",
    )


async def keyed_mailboxes(count: int = 100_000) -> None:
    """Measure the memory of messages that wait with a key each: the mailbox alone, then with the callers' tasks."""
    service = Worker()
    async with Node([lambda: service], MemoryTransport(), databases=SqliteFolder(tempfile.mkdtemp())) as node:
        mailbox = node.inbound.instances["worker"].mailbox
        waiters = [asyncio.ensure_future(_wait(service.gate)) for _ in range(count)]
        await asyncio.sleep(0)
        for task in waiters:
            task.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        del waiters
        gc.collect()
        before = rss()
        for key in range(count):
            mailbox._keys["key", key] = None  # pyright: ignore[reportPrivateUsage]
        report("keyed_mailboxes_alone", rss() - before, f"MiB for {count} occupied keys")
        mailbox._keys.clear()  # pyright: ignore[reportPrivateUsage]
        gc.collect()
        before = rss()
        ctx = node.client("bench", (worker,))
        tasks = [asyncio.ensure_future(ctx.request(Keyed(key), timeout=600)) for key in range(count)]
        await eventually(lambda: mailbox.running + mailbox.waiting == count, "all requests are in the mailbox")
        report(
            "keyed_mailboxes_with_callers",
            rss() - before,
            f"MiB for {count} pending requests, each with its key, task and context",
        )
        service.gate.set()
        await asyncio.gather(*tasks)


async def _wait(gate: asyncio.Event) -> None:
    await gate.wait()


async def durable_events(durable: bool, callers: int, count: int = 3000) -> None:
    Subscriber.applied = 0
    with tempfile.TemporaryDirectory() as folder:
        async with Node([Worker, Subscriber], MemoryTransport(), databases=SqliteFolder(folder, durable=durable)) as node:
            ctx = node.client("bench", (worker,))

            async def publish(first: int) -> None:
                for number in range(first, count, callers):
                    await ctx.request(Publish(number), timeout=600)

            start = time.perf_counter()
            await asyncio.gather(*(publish(first) for first in range(callers)))
            published = count / (time.perf_counter() - start)
            async with asyncio.timeout(120):
                while Subscriber.applied < count:
                    await asyncio.sleep(0.001)
            applied = count / (time.perf_counter() - start)
    kind = "FULL" if durable else "NORMAL"
    report(f"events_published_{kind}_c{callers}", published, "committed transactions with an event per second")
    report(
        f"events_commit_to_commit_{kind}_c{callers}",
        applied,
        "events per second, from the publisher's commit to the subscriber's",
    )


async def idle_system() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        async with Callboard(Path(folder), "dev", "--no-reload") as running:
            await running.ready()
            report("dev_ready", time.perf_counter() - start, "s until the gateway is ready")
            await asyncio.sleep(2)
            report("idle_system", rss(running.process.pid), "MiB resident")


def main() -> None:
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    import_time()
    asyncio.run(idle_system())
    asyncio.run(keyed_mailboxes())
    for durable in (True, False):
        for callers in (1, 64):
            asyncio.run(durable_events(durable, callers))


if __name__ == "__main__":
    main()
