"""Deletes of what is old, in steps."""

import asyncio
import contextvars

from runtime.storage.pruning import STEP, next_step
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import CrashingDatabase, CrashPoints


async def test_a_delete_lets_others_write_after_each_step(database: SqliteDatabase) -> None:
    points = CrashPoints()
    rows = 2 * STEP + 1
    await database.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) INSERT INTO notes SELECT i, i FROM n",
        rows + 1,
    )
    deleting = asyncio.create_task(CrashingDatabase(database, points).delete_in_steps("notes", "id", "id <= $1", rows))
    while not points.reached:
        await asyncio.sleep(0)
    writing = contextvars.Context().run(
        asyncio.create_task, database.execute("UPDATE notes SET text = 'x' WHERE id = $1", rows + 1)
    )
    await writing
    assert not deleting.done(), "the write has waited for a step, not for the whole"
    assert await deleting == rows
    assert len(points.reached) >= 2 * 3
    assert await database.fetch("SELECT id, text FROM notes") == [{"id": rows + 1, "text": "x"}]


async def test_rows_are_deleted_by_a_key_of_several_columns(database: SqliteDatabase) -> None:
    await database.execute("CREATE TABLE seen (a TEXT, b TEXT, at INT, PRIMARY KEY (a, b))")
    await database.execute("INSERT INTO seen VALUES ('x', 'y', 1), ('x', 'z', 2)")
    assert await database.delete_in_steps("seen", "a, b", "at < $1", 2) == 1
    assert await database.fetch("SELECT b FROM seen") == [{"b": "z"}]


def test_steps_that_take_long_get_shorter() -> None:
    assert next_step(STEP, 0.0) == STEP
    assert next_step(1_000, 0.05) == 1_000
    assert next_step(1_000, 0.1) == 500
    assert next_step(100, 60.0) == 50
    assert next_step(500, 0.01) == STEP
