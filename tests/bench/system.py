"""Start-up time, and memory beside it. Run with `python -m tests.bench.scenarios system`."""

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runtime import ANYONE, Context, Contract, Node, Request, Service, handles
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.bench.figures import report
from tests.bench.memory import rss
from tests.system.process import Callboard
from transports.memory import MemoryTransport

worker = Contract("worker")


@worker.message
class Keyed(Request[None]):
    key: int


class Worker(Service):
    contract = worker
    capacity = 1_000_000

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    @handles(allow=ANYONE, key="key")
    async def keyed(self, message: Keyed, ctx: Context) -> None:
        await self.gate.wait()


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
