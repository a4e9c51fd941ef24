"""The SQLite database: shared commits, turns at the writer, cancellation anywhere, a full disk, migrations."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from runtime import ConstraintError, DatabaseError, StatementError, UsageError
from runtime.storage import Guard, Superseded
from runtime.storage.migrations import MigrationError, migrate
from runtime.storage.sqlite import SqliteDatabase
from runtime.tasks import finish


@pytest.fixture
async def database(tmp_path: Path) -> AsyncGenerator[SqliteDatabase, None]:
    made = SqliteDatabase(tmp_path / "x.sqlite", durable=False)
    await made.open()
    await made.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)")
    try:
        yield made
    finally:
        await made.close()


async def texts(database: SqliteDatabase) -> list[str]:
    return [row["text"] for row in await database.fetch("SELECT text FROM notes ORDER BY id")]


async def write(database: SqliteDatabase, text: str, *, fail: bool = False, pause: float = 0) -> None:
    async with database.transaction() as tx:
        await tx.execute("INSERT INTO notes (text) VALUES ($1)", text)
        await asyncio.sleep(pause)
        if fail:
            raise LookupError(text)


async def still_works(database: SqliteDatabase) -> None:
    async with asyncio.timeout(5):
        await write(database, f"works {random.random()}")


async def test_parameters_rows_and_counts(database: SqliteDatabase) -> None:
    assert await database.execute("INSERT INTO notes (id, text) VALUES ($2, $1)", "b", 2) == 1
    assert await database.fetch("SELECT $1 AS one, text FROM notes WHERE id = $2 AND $1 = 7", 7, 2) == [{"one": 7, "text": "b"}]
    assert await database.fetch_one("SELECT * FROM notes WHERE id = 5") is None


async def test_many_at_once_all_commit_or_fail_for_themselves(database: SqliteDatabase) -> None:
    async def one(number: int) -> None:
        try:
            await write(database, f"n{number}", fail=number % 3 == 0)
        except LookupError:
            pass

    await asyncio.gather(*(one(number) for number in range(300)))
    assert sorted(await texts(database)) == sorted(f"n{number}" for number in range(300) if number % 3)


async def test_cancelled_anywhere_nothing_is_half_done(database: SqliteDatabase) -> None:
    chance = random.Random(7)
    told: set[str] = set()

    async def one(number: int) -> None:
        async with asyncio.timeout(chance.random() * 0.004):
            await write(database, f"n{number}", fail=number % 5 == 0)
        told.add(f"n{number}")

    for start in range(0, 2000, 100):
        outcomes = await asyncio.gather(*(one(number) for number in range(start, start + 100)), return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, TimeoutError | LookupError) for outcome in outcomes), outcomes
    found = set(await texts(database))
    assert told <= found, "what was reported is there"
    assert not any(int(text[1:]) % 5 == 0 for text in found), "what failed is not"
    await still_works(database)


async def test_who_comes_while_others_end_never_joins_what_is_ending(database: SqliteDatabase) -> None:
    chance = random.Random(11)
    told: set[str] = set()

    async def one(number: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            async with database.transaction() as tx:
                await tx.execute("INSERT INTO notes (text) VALUES ($1)", f"n{number}")
                if number % 2:
                    raise LookupError
                await tx.execute("INSERT INTO notes (text) VALUES ($1)", f"n{number} again")
        except LookupError:
            return
        told.update((f"n{number}", f"n{number} again"))

    async with asyncio.timeout(60):
        await asyncio.gather(*(one(number, chance.random() * 0.6) for number in range(2000)))
    assert set(await texts(database)) == told, "what was reported is there, and nothing of what failed"
    await still_works(database)


async def test_a_transaction_whose_guard_fails_passes_its_turn_on(database: SqliteDatabase) -> None:
    for _ in range(3):
        with pytest.raises(Superseded):
            async with database.transaction(Guard("UPDATE notes SET text = 'x' WHERE id = 99", ())):
                pass
    with pytest.raises(Superseded):
        async with database.transaction(Guard("UPDATE notes SET text = 'x' WHERE id = 99", ())) as tx:
            await tx.execute("INSERT INTO notes (text) VALUES ('never')")
    await still_works(database)
    assert "never" not in await texts(database)


async def test_a_cancelled_first_statement_gives_the_transaction_up(database: SqliteDatabase) -> None:
    with pytest.raises(DatabaseError, match="first statement was cancelled"):
        async with database.transaction(Guard("UPDATE notes SET text = 'x' WHERE id = 99", ())) as tx:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await tx.execute("INSERT INTO notes (text) VALUES ('a')")
            await tx.execute("INSERT INTO notes (text) VALUES ('b')")
    assert await texts(database) == []
    await still_works(database)


async def test_a_statement_that_outlives_its_transaction_passes_its_turn_on(database: SqliteDatabase) -> None:
    async def fail() -> None:
        raise LookupError

    holder = asyncio.create_task(write(database, "holder", pause=0.05))
    await asyncio.sleep(0.01)
    stray: list[asyncio.Future[Any]] = []
    with pytest.raises(LookupError):
        async with database.transaction() as tx:
            stray.append(asyncio.ensure_future(tx.execute("INSERT INTO notes (text) VALUES ('stray')")))
            await asyncio.sleep(0)
            await fail()
    await holder
    with pytest.raises(UsageError, match="has ended"):
        await stray[0]
    assert await texts(database) == ["holder"]
    await still_works(database)


async def test_who_waits_for_a_turn_and_goes_leaves_it_to_the_next(database: SqliteDatabase) -> None:
    for round_number in range(50):
        first = asyncio.create_task(write(database, f"{random.random()}"))
        second = asyncio.create_task(write(database, f"{random.random()}"))
        for _ in range(random.Random(round_number).randrange(6)):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await still_works(database)


async def test_a_commit_is_finished_whatever_is_cancelled(database: SqliteDatabase) -> None:
    for number in range(60):
        task = asyncio.create_task(write(database, f"n{number}"))
        for _ in range(number % 12):
            await asyncio.sleep(0.0002)
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if outcome is None:
            assert f"n{number}" in await texts(database)
    await still_works(database)


async def test_finish_keeps_a_cancellation_that_comes_with_the_result() -> None:
    lost = 0
    for turns in range(12):

        async def work() -> None:
            await asyncio.sleep(0)

        async def waiter() -> None:
            await finish(work())
            await asyncio.sleep(60)

        task = asyncio.create_task(waiter())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            async with asyncio.timeout(1):
                await task
        except asyncio.CancelledError:
            continue
        except TimeoutError:
            lost += 1
    assert lost == 0


async def test_a_constraint_undoes_its_statement_alone(database: SqliteDatabase) -> None:
    async with database.transaction() as tx:
        await tx.execute("INSERT INTO notes (text) VALUES ('a')")
        with pytest.raises(ConstraintError):
            await tx.execute("INSERT INTO notes (text) VALUES ('a')")
        with pytest.raises(StatementError):
            await tx.execute("INSRT INTO notes")
        await tx.execute("INSERT INTO notes (text) VALUES ('b')")
    assert await texts(database) == ["a", "b"]


async def test_a_statement_that_ends_the_transaction_is_never_followed_by_autocommit(database: SqliteDatabase) -> None:
    await database.execute("CREATE TABLE unique_or_all (k INTEGER UNIQUE ON CONFLICT ROLLBACK)")
    with pytest.raises(DatabaseError):
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO unique_or_all VALUES (1)")
            with pytest.raises(DatabaseError, match="rolled the transaction back"):
                await tx.execute("INSERT INTO unique_or_all VALUES (1)")
            with pytest.raises(DatabaseError):
                await tx.execute("INSERT INTO notes (text) VALUES ('after')")
    assert await texts(database) == []
    assert await database.fetch("SELECT * FROM unique_or_all") == []
    await still_works(database)


async def test_a_full_disk_fails_the_transaction_and_nothing_else(database: SqliteDatabase) -> None:
    await write(database, "before")
    pages = (await database.fetch("PRAGMA page_count"))[0]["page_count"]
    await database.writer.run(lambda raw: raw.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall())
    big = "x" * 200_000
    for number in range(3):
        with pytest.raises(DatabaseError, match="full"):
            async with database.transaction() as tx:
                await tx.execute("INSERT INTO notes (text) VALUES ($1)", f"small {number}")
                await tx.execute("INSERT INTO notes (text) VALUES ($1)", f"{number}{big}")
    outcomes = await asyncio.gather(
        *(write(database, f"{n}{big}" if n % 2 else f"s{n}") for n in range(10)), return_exceptions=True
    )
    assert all(outcome is None or isinstance(outcome, DatabaseError) for outcome in outcomes)
    kept = {f"s{n}" for n in range(10) if outcomes[n] is None}
    assert set(await texts(database)) == {"before"} | kept
    await database.writer.run(lambda raw: raw.execute("PRAGMA max_page_count = 1000000").fetchall())
    await still_works(database)


async def test_a_database_that_another_process_holds_is_waited_for_and_then_unavailable(database: SqliteDatabase) -> None:
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await database.writer.run(lambda raw: raw.execute("PRAGMA busy_timeout = 50").fetchall())
    with pytest.raises(DatabaseError, match="locked"):
        await write(database, "no")
    other.execute("ROLLBACK")
    other.close()
    await still_works(database)


@pytest.mark.parametrize(
    ("sql", "params"), [("SELEC", ()), ("SELECT * FROM nowhere", ()), ("SELECT $1", ((1,),)), ("SELECT $1", (2**70,))]
)
async def test_a_wrong_statement_is_its_own_fault(database: SqliteDatabase, sql: str, params: tuple[Any, ...]) -> None:
    with pytest.raises(StatementError):
        await database.fetch(sql, *params)


async def test_fetch_does_not_write_and_says_what_does(database: SqliteDatabase) -> None:
    with pytest.raises(StatementError, match=r"self\.db\.execute"):
        await database.fetch("INSERT INTO notes (text) VALUES ('x')")


async def test_a_closed_database_says_so(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "y.sqlite")
    with pytest.raises(DatabaseError, match="closed"):
        await database.fetch("SELECT 1")
    await database.open()
    await database.close()
    await database.close()
    with pytest.raises(DatabaseError, match="closed"):
        await database.execute("SELECT 1")


# Migrations


async def test_migrations_are_applied_once_and_in_order(database: SqliteDatabase, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_first.sql").write_text("CREATE TABLE a (x INT); INSERT INTO a VALUES (1);")
    assert await migrate(database, folder, "g") == 1
    (folder / "0002_second.sql").write_text("ALTER TABLE a ADD COLUMN y INT DEFAULT 5;")
    assert await migrate(database, folder, "g") == 1
    assert await migrate(database, folder, "g") == 0
    assert await database.fetch("SELECT * FROM a") == [{"x": 1, "y": 5}]


async def test_a_migration_is_wholly_applied_or_not_at_all(database: SqliteDatabase, tmp_path: Path) -> None:
    (tmp_path / "0001_bad.sql").write_text("CREATE TABLE a (x INT); CREATE TABLE a (x INT);")
    with pytest.raises(MigrationError, match=r"0001_bad\.sql: .*already exists"):
        await migrate(database, tmp_path, "g")
    with pytest.raises(StatementError):
        await database.fetch("SELECT * FROM a")
    await still_works(database)


async def test_two_processes_that_migrate_together(database: SqliteDatabase, tmp_path: Path) -> None:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE a (x INT);")
    other = SqliteDatabase(database.path, durable=False)
    await other.open()
    try:
        counts = await asyncio.gather(migrate(database, tmp_path, "g"), migrate(other, tmp_path, "g"))
        assert sum(counts) in (1, 2)
        assert await other.fetch("SELECT count(*) AS n FROM callboard_migrations WHERE grp = 'g'") == [{"n": 1}]
    finally:
        await other.close()


async def test_a_migration_that_was_changed_or_is_missing(database: SqliteDatabase, tmp_path: Path) -> None:
    path = tmp_path / "0001_first.sql"
    path.write_text("CREATE TABLE a (x INT);")
    await migrate(database, tmp_path, "g")
    path.write_text("CREATE TABLE a (x TEXT);")
    with pytest.raises(MigrationError, match="was changed after it was applied"):
        await migrate(database, tmp_path, "g")
    path.unlink()
    with pytest.raises(MigrationError, match="written by a newer version"):
        await migrate(database, tmp_path, "g")
