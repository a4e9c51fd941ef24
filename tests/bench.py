"""`make bench`: what there is to measure besides `callboard bench`. One JSON object a line."""

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

request_handler = Contract("request_handler")


@request_handler.message
class Keyed(Request[None]):
    key: int


@request_handler.message
class Tell(Request[None]):
    number: int


@request_handler.message
class Told(Event):
    number: int


class RequestHandler(Service):
    contract = request_handler
    capacity = 1_000_000

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    @handles(allow=ANYONE, key="key")
    async def keyed(self, message: Keyed, ctx: Context) -> None:
        await self.gate.wait()

    @handles(allow=ANYONE)
    async def tell(self, message: Tell, ctx: Context, tx: Transaction) -> None:
        await tx.publish(Told(message.number))


class Ear(Service):
    contract = Contract("ear")
    heard = 0

    @subscribes
    async def on_told(self, event: Told, ctx: Context, tx: Transaction) -> None:
        await tx.execute("INSERT INTO heard VALUES ($1)", event.number)
        Ear.heard += 1

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS heard (number INTEGER)")


def say(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 1), "unit": unit}), flush=True)


def rss(pid: int | str = "self") -> float:
    """A process's resident memory, in MiB; 0 where the system does not tell."""
    statm = Path(f"/proc/{pid}/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20 if statm.exists() else 0.0


def import_time() -> None:
    def one(statement: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
        return (time.perf_counter() - start) * 1000

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    one("import runtime")
    bare = statistics.median(one("pass") for _ in range(9))
    say(
        "import_runtime",
        statistics.median(one("import runtime") for _ in range(9)) - bare,
        "ms beyond the interpreter's own start",
    )


async def keyed_mailboxes(count: int = 100_000) -> None:
    """Messages that wait with a key each: what the mailbox keeps for them, without the tasks of those who ask."""
    service = RequestHandler()
    async with Node([lambda: service], MemoryTransport(), databases=SqliteFolder(tempfile.mkdtemp())) as node:
        mailbox = node.inbound.instances["request_handler"].mailbox
        waiters = [asyncio.ensure_future(_held(service.gate)) for _ in range(count)]
        await asyncio.sleep(0)
        for task in waiters:
            task.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        del waiters
        gc.collect()
        before = rss()
        for key in range(count):
            mailbox._keys["key", key] = None  # pyright: ignore[reportPrivateUsage]
        say("keyed_mailboxes_alone", rss() - before, f"MiB for {count} keys held")
        mailbox._keys.clear()  # pyright: ignore[reportPrivateUsage]
        gc.collect()
        before = rss()
        ctx = node.client("bench", (request_handler,))
        tasks = [asyncio.ensure_future(ctx.request(Keyed(key), timeout=600)) for key in range(count)]
        await eventually(lambda: mailbox.running + mailbox.waiting == count, "all of them wait")
        say(
            "keyed_mailboxes_with_callers",
            rss() - before,
            f"MiB for {count} requests under way, each with its key, task and context",
        )
        service.gate.set()
        await asyncio.gather(*tasks)


async def _held(gate: asyncio.Event) -> None:
    await gate.wait()


async def durable_events(durable: bool, callers: int, count: int = 3000) -> None:
    Ear.heard = 0
    with tempfile.TemporaryDirectory() as folder:
        async with Node([RequestHandler, Ear], MemoryTransport(), databases=SqliteFolder(folder, durable=durable)) as node:
            ctx = node.client("bench", (request_handler,))

            async def tell(first: int) -> None:
                for number in range(first, count, callers):
                    await ctx.request(Tell(number), timeout=600)

            start = time.perf_counter()
            await asyncio.gather(*(tell(first) for first in range(callers)))
            published = count / (time.perf_counter() - start)
            async with asyncio.timeout(120):
                while Ear.heard < count:
                    await asyncio.sleep(0.001)
            applied = count / (time.perf_counter() - start)
    kind = "FULL" if durable else "NORMAL"
    say(f"events_published_{kind}_c{callers}", published, "transactions with an event, committed, per second")
    say(
        f"events_commit_to_commit_{kind}_c{callers}",
        applied,
        "events per second, from the publisher's commit to the subscriber's",
    )


async def idle_system() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        async with Callboard(Path(folder), "dev", "--no-reload") as running:
            await running.ready()
            say("dev_ready", time.perf_counter() - start, "s until the gateway answers")
            await asyncio.sleep(2)
            say("idle_system", rss(running.process.pid), "MiB resident")


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
