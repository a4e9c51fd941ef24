"""Turns at SQLite's only writing connection."""

import asyncio
import contextvars
from pathlib import Path

from runtime.storage.sqlite import SqliteDatabase


async def test_the_state_is_shown_while_a_transaction_has_the_turn(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "x.sqlite", durable=False)
    assert "[CLOSED]" in repr(database)
    await database.open()
    try:
        assert "[OPEN]" in repr(database)
        await database.execute("CREATE TABLE numbers (n BIGINT)")
        assert repr(database.turns) == "<Writer [IDLE] waiting=0 group=None>"
        async with database.transaction() as tx:
            assert "[IDLE]" in repr(database.turns), "a transaction begins with its first statement"
            await tx.execute("INSERT INTO numbers VALUES (1)")
            assert repr(database.turns) == "<Writer [BUSY] waiting=0 group=0>"
            # With an empty context, because this task's context is in a transaction
            insert = database.execute("INSERT INTO numbers VALUES (2)")
            other = asyncio.create_task(insert, context=contextvars.Context())
            while "waiting=1" not in repr(database.turns):
                await asyncio.sleep(0)
        await other
        assert repr(database.turns) == "<Writer [IDLE] waiting=0 group=None>"
        assert len(await database.fetch("SELECT n FROM numbers")) == 2
    finally:
        await database.close()
