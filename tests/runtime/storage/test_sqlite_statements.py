"""Which statements run in the event loop, and for how long."""

import asyncio
import contextvars
from typing import Any

import pytest

from runtime.storage.sqlite import SqliteDatabase

SCHEMA = """
CREATE TABLE parents (id INTEGER PRIMARY KEY, code TEXT UNIQUE, kind BIGINT, note TEXT);
CREATE INDEX parents_by_kind ON parents (kind);
CREATE TABLE children (id INTEGER PRIMARY KEY, parent BIGINT NOT NULL REFERENCES parents (id) ON DELETE CASCADE);
CREATE TABLE plain (id INTEGER PRIMARY KEY, note TEXT);
CREATE TABLE audited (id INTEGER PRIMARY KEY);
CREATE TRIGGER audit AFTER INSERT ON audited BEGIN UPDATE parents SET note = 'seen' WHERE kind > 0; END;
CREATE TABLE counted (id INTEGER PRIMARY KEY);
CREATE TRIGGER count AFTER INSERT ON counted BEGIN UPDATE parents SET kind = kind + 1 WHERE id = new.id; END;
"""

OF_FEW_ROWS = [
    "INSERT INTO parents (code) VALUES ($1)",
    "INSERT INTO parents (code) VALUES ($1) ON CONFLICT (code) DO UPDATE SET note = 'again'",
    "INSERT INTO plain (note) VALUES ($1) RETURNING id",
    "UPDATE parents SET note = 'x' WHERE id = $1",
    "UPDATE parents SET note = 'x' WHERE code = $1 RETURNING note",
    "UPDATE parents SET note = 'x' WHERE id IN ($1, $1 + 1)",
    "DELETE FROM children WHERE id = $1",
    "SELECT * FROM parents WHERE id = $1",
    "SELECT (SELECT note FROM plain WHERE id = $1), note FROM parents WHERE code = $1",
    "INSERT INTO counted VALUES ($1)",
    "SELECT a.note, b.note FROM parents a LEFT JOIN plain b ON b.id = a.id WHERE a.code = $1",
    "SELECT a.note, b.note FROM plain a LEFT JOIN parents b ON b.code = a.note LEFT JOIN plain c ON c.id = b.id WHERE a.id = $1",
]

OF_MANY_ROWS = [
    "SELECT a.note FROM parents a LEFT JOIN plain b ON b.note = a.note WHERE a.id = $1",
    "SELECT a.note FROM parents a LEFT JOIN plain b ON b.id = a.id WHERE a.kind = $1",
    "SELECT * FROM parents WHERE kind = $1",
    "SELECT count(*) FROM parents WHERE $1 = $1",
    "SELECT * FROM parents WHERE id > $1 ORDER BY note",
    "UPDATE parents SET note = 'x' WHERE note = $1",
    "UPDATE parents SET note = 'x' WHERE kind = $1",
    "DELETE FROM parents WHERE $1 = $1",
    "DELETE FROM parents WHERE id = $1",
    "INSERT INTO audited VALUES ($1)",
    "INSERT INTO children SELECT id, id FROM parents WHERE $1 = 0",
    "WITH RECURSIVE e (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM e WHERE n < $1) SELECT max(n) FROM e",
    "WITH RECURSIVE e (n) AS MATERIALIZED (SELECT 1 UNION ALL SELECT n + 1 FROM e WHERE n < $1) SELECT 1 WHERE EXISTS (SELECT 1 FROM e) AND NOT EXISTS (SELECT 2 FROM e)",
]


@pytest.fixture
async def family(database: SqliteDatabase) -> SqliteDatabase:
    await database.script(SCHEMA)
    return database


async def run(database: SqliteDatabase, sql: str, *params: Any) -> None:
    async with database.transaction() as tx:
        await tx.fetch(sql, *params)


def quick(database: SqliteDatabase, sql: str) -> bool:
    return "[QUICK]" in repr(database.statements.find(sql))


@pytest.mark.parametrize("sql", OF_FEW_ROWS)
async def test_a_statement_of_few_rows_runs_in_the_event_loop_after_some_runs_in_the_thread(
    family: SqliteDatabase, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.storage.sqlite_statements.QUICK_SECONDS", 10)  # this machine may be busy
    for number in range(9):
        assert quick(family, sql) is (number == 8)
        await run(family, sql, number)


@pytest.mark.parametrize("sql", OF_MANY_ROWS)
async def test_a_statement_that_may_take_many_rows_always_runs_in_the_thread(
    family: SqliteDatabase, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.storage.sqlite_statements.QUICK_SECONDS", 10)
    for number in range(20):
        await run(family, sql, number)
        assert not quick(family, sql)


async def test_a_statement_that_gets_slow_runs_in_the_thread_again(family: SqliteDatabase) -> None:
    sql = "SELECT length(hex(zeroblob($1)))"
    async with asyncio.timeout(10):
        while not quick(family, sql):
            await run(family, sql, 1)
    async with family.transaction() as tx:
        await tx.execute("INSERT INTO parents (code) VALUES ('begun')")
        for _ in range(100):
            await tx.fetch(sql, 3_000_000)
            if not quick(family, sql):
                break
    assert not quick(family, sql)


async def test_a_change_of_the_schema_sends_all_statements_to_the_thread(family: SqliteDatabase) -> None:
    sql = OF_FEW_ROWS[0]
    async with asyncio.timeout(10):
        while not quick(family, sql):
            await run(family, sql, None)
    await family.execute("CREATE TRIGGER late AFTER INSERT ON parents BEGIN UPDATE parents SET note = 'late'; END")
    for _ in range(20):
        assert not quick(family, sql)
        await run(family, sql, None)


async def test_statements_in_the_event_loop_leave_it_to_others_now_and_then(family: SqliteDatabase) -> None:
    sql = OF_FEW_ROWS[0]
    async with asyncio.timeout(10):
        while not quick(family, sql):
            await run(family, sql, None)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count(), context=contextvars.Context())
    async with family.transaction() as tx:
        await tx.execute(sql, None)
        before = turns
        for _ in range(400):
            await tx.execute(sql, None)
        assert turns - before >= 10
    counting.cancel()
