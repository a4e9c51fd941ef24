"""Commands that take long say what they do."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.config.cli.terminal import Terminal
from tests.config.cli.test_operations import write


async def test_a_migration_that_waits_says_what_it_does(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    await asyncio.to_thread(write, data, "wallet", "SELECT 1")
    with closing(sqlite3.connect(data / "wallet.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with Terminal(tmp_path, "migrate", "wallet") as running:
            await running.until(lambda: "migrating wallet" in running.text, "the spinner")
            other.execute("ROLLBACK")
            await running.until(lambda: "new migrations were applied" in running.text, "the result")
            assert await running.ends() == 0
