"""Turns at SQLite's only writing connection."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from runtime.storage import ConstraintError, DatabaseError
from runtime.storage.sqlite import SqliteDatabase
from runtime.storage.sqlite_connection import SqliteConnection


@pytest.fixture
async def numbers(tmp_path: Path) -> AsyncGenerator[SqliteDatabase, None]:
    database = SqliteDatabase(tmp_path / "numbers.sqlite", durable=False)
    assert "[CLOSED]" in repr(database)
    await database.open()
    await database.execute("CREATE TABLE numbers (n BIGINT)")
    try:
        yield database
    finally:
        await database.close()


def apart(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run a coroutine in a separate task, with an empty context, because this task's context may be in a transaction."""
    return asyncio.create_task(work, context=contextvars.Context())


async def waiting(database: SqliteDatabase, count: int) -> None:
    """Wait until so many transactions wait for their turn."""
    async with asyncio.timeout(10):
        while f"waiting={count}" not in repr(database.turns):
            await asyncio.sleep(0)


async def stored(database: SqliteDatabase) -> list[int]:
    return [row["n"] for row in await database.fetch("SELECT n FROM numbers ORDER BY n")]


async def test_the_state_is_shown_while_a_transaction_has_the_turn(numbers: SqliteDatabase) -> None:
    assert "[OPEN]" in repr(numbers)
    assert repr(numbers.turns) == "<Writer [IDLE] waiting=0 group=None>"
    async with numbers.transaction() as tx:
        assert "[IDLE]" in repr(numbers.turns), "a transaction begins with its first statement"
        await tx.execute("INSERT INTO numbers VALUES (1)")
        assert repr(numbers.turns) == "<Writer [BUSY] waiting=0 group=0>"
        other = apart(numbers.execute("INSERT INTO numbers VALUES (2)"))
        await waiting(numbers, 1)
    await other
    assert repr(numbers.turns) == "<Writer [IDLE] waiting=0 group=None>"
    assert await stored(numbers) == [1, 2]


ENDLESS = "WITH RECURSIVE e(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM e) "


@pytest.mark.parametrize("how", ["between statements", "in a query", "in a statement", "in its commit's way"])
async def test_a_transaction_that_hangs_loses_its_turn_at_its_deadline(
    numbers: SqliteDatabase, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    numbers.transaction_timeout = 0.15
    over = asyncio.Event()

    async def hang() -> None:
        async with numbers.transaction() as tx:
            await tx.execute("INSERT INTO numbers VALUES (1)")
            match how:
                case "between statements":
                    await over.wait()
                case "in a query":
                    await tx.fetch(f"{ENDLESS} SELECT max(n) FROM e")
                case "in a statement":
                    await tx.execute(f"INSERT INTO numbers {ENDLESS} SELECT max(n) FROM e")
                case _:
                    with pytest.raises(DatabaseError, match="took longer than its deadline"):
                        while True:
                            await tx.execute("INSERT INTO numbers VALUES (1)")
                            await asyncio.sleep(0.01)

    holder = apart(hang())
    await asyncio.sleep(0)
    others = [apart(numbers.execute("INSERT INTO numbers VALUES ($1)", n)) for n in (2, 3)]
    async with asyncio.timeout(10):
        await asyncio.gather(*others)
        over.set()
        with pytest.raises(
            DatabaseError, match=r"hang \(test_writer.py:\d+\) took longer than its deadline, and was rolled back"
        ):
            await holder
    assert await stored(numbers) == [2, 3]
    assert "hang (test_writer.py:" in caplog.text
    assert "has held the write transaction for 0." in caplog.text
    assert "until its deadline: it is rolled back, and 2 others that waited proceed" in caplog.text
    assert "[IDLE]" in repr(numbers.turns)


async def test_a_cancelled_transaction_whose_statement_hangs_loses_its_turn_at_its_deadline(numbers: SqliteDatabase) -> None:
    numbers.transaction_timeout = 0.15

    async def hang() -> None:
        async with numbers.transaction() as tx:
            await tx.fetch(f"{ENDLESS} SELECT max(n) FROM e")

    holder = apart(hang())
    await asyncio.sleep(0.02)
    holder.cancel()
    async with asyncio.timeout(10):
        await apart(numbers.execute("INSERT INTO numbers VALUES (2)"))
        await asyncio.wait((holder,))
    assert await stored(numbers) == [2]


async def test_a_transaction_that_has_ended_waits_for_one_that_hangs_at_most(numbers: SqliteDatabase) -> None:
    numbers.transaction_timeout = 0.2
    order: list[str] = []

    async def hang(name: str) -> None:
        with pytest.raises(DatabaseError):
            async with numbers.transaction() as tx:
                await tx.execute("INSERT INTO numbers VALUES (7)")
                while True:
                    await tx.fetch("SELECT 1")
                    await asyncio.sleep(0.01)
        order.append(name)

    async with numbers.transaction() as tx:
        await tx.execute("INSERT INTO numbers VALUES (1)")
        first = apart(hang("first"))
        await waiting(numbers, 1)
        numbers.transaction_timeout = 0.4
        second = apart(hang("second"))
        await waiting(numbers, 2)
    order.append("committed")
    assert await stored(numbers) == [1]
    await asyncio.gather(first, second)
    assert order in (["committed", "first", "second"], ["first", "committed", "second"])


async def test_who_keeps_others_waiting_is_logged(
    numbers: SqliteDatabase, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.storage.turn.LONG_SECONDS", 0.1)
    async with asyncio.timeout(10):
        async with numbers.transaction() as tx:
            await tx.execute("INSERT INTO numbers VALUES (1)")
            other = apart(numbers.execute("INSERT INTO numbers VALUES (2)"))
            while "others wait" not in caplog.text:
                await asyncio.sleep(0.01)
        await other
    [line] = [record.getMessage() for record in caplog.records if "has held" in record.getMessage()][:1]
    assert line.startswith("test_who_keeps_others_waiting_is_logged (test_writer.py:")
    assert "has held the write transaction for 0." in line
    assert "and 1 others wait for it (its deadline is in " in line


@pytest.mark.parametrize("waiting_before", [False, True], ids=["last of its group", "with others waiting"])
async def test_a_transaction_whose_last_statement_fails_is_rolled_back_alone(
    numbers: SqliteDatabase, waiting_before: bool
) -> None:
    await numbers.execute("CREATE TABLE unique_numbers (n BIGINT UNIQUE)")
    await numbers.execute("INSERT INTO unique_numbers VALUES (7)")

    async def write(n: int, last: int | None) -> None:
        async with numbers.transaction() as tx:
            await tx.execute("INSERT INTO numbers VALUES ($1)", n)
            if last is not None:
                tx.final.append(("INSERT INTO unique_numbers VALUES ($1)", (last,)))

    works = [write(1, None), write(2, 7), *([write(3, 8)] if waiting_before else [])]
    outcomes = await asyncio.gather(*map(apart, works), return_exceptions=True)
    assert isinstance(outcomes.pop(1), ConstraintError)
    assert outcomes == [None] * len(outcomes)
    assert await stored(numbers) == [1, 3][: len(outcomes)]


async def test_transactions_that_only_end_share_a_commit(numbers: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    hops = 0

    async def write(n: int) -> None:
        async with numbers.transaction() as tx:
            tx.final.append(("INSERT INTO numbers VALUES ($1)", (n,)))

    for n in range(10):
        await write(n)
    run = SqliteConnection.run

    def counted(connection: SqliteConnection, function: Any) -> Any:
        nonlocal hops
        hops += 1
        return run(connection, function)

    monkeypatch.setattr(SqliteConnection, "run", counted)
    numbers.statements.find("INSERT INTO numbers VALUES ($1)").quick = True
    await asyncio.gather(*(apart(write(n)) for n in range(10, 50)))
    assert hops < 10
    monkeypatch.undo()
    assert await stored(numbers) == list(range(50))


async def test_a_commit_that_fails_fails_all_that_share_it(numbers: SqliteDatabase) -> None:
    await numbers.execute("CREATE TABLE owned (n BIGINT REFERENCES owners (n) DEFERRABLE INITIALLY DEFERRED)")
    await numbers.execute("CREATE TABLE owners (n BIGINT PRIMARY KEY)")
    works = [numbers.execute("INSERT INTO numbers VALUES (1)"), numbers.execute("INSERT INTO owned VALUES (1)")]
    outcomes = await asyncio.gather(*map(apart, works), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["the commit failed: FOREIGN KEY constraint failed"] * 2
    assert outcomes[0] is not outcomes[1]
    with pytest.raises(ConstraintError):
        await numbers.execute("INSERT INTO owned VALUES (1)")
    await numbers.execute("INSERT INTO numbers VALUES (2)")
    assert await stored(numbers) == [2]
