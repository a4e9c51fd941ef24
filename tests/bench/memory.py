"""The memory of a node that hosts the six services of the rental. It imports nothing else that would take memory.

Run with `python -m tests.bench.scenarios memory`.
"""

import asyncio
import gc
import resource
import tempfile
from pathlib import Path

from config import compose
from config.cli.common import run_loop
from config.settings import DatabaseSettings
from tests.bench.figures import report
from tests.project import rental

SERVICES = ("auth", "wallet", "fleet", "rides", "notices", "devices")


def rss(pid: int | str = "self") -> float:
    """Return the resident memory of a process, in MiB, or 0 where the system does not provide it."""
    statm = Path(f"/proc/{pid}/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20 if statm.exists() else 0.0


async def six_services() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with compose.node(rental(database=DatabaseSettings(folder=folder)), SERVICES):
            await asyncio.sleep(1)
            gc.collect()
            report("memory_six_services", rss(), "MiB resident")


def main() -> None:
    run_loop(six_services())
