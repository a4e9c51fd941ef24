"""The SQLite database: shared commits, access to the writer, cancellation at any point, a full disk."""

import asyncio
import itertools
import os
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime import ConstraintError, DatabaseError, StatementError, UsageError
from runtime.storage import Guard, Superseded
from runtime.storage.sqlite import SqliteDatabase, SqliteFolder
from runtime.testing import eventually


async def texts(database: SqliteDatabase) -> list[str]:
    return [row["text"] for row in await database.fetch("SELECT text FROM notes ORDER BY id")]


async def write(database: SqliteDatabase, text: str, *, fail: bool = False, pause: float = 0) -> None:
    async with database.transaction() as tx:
        await tx.execute("INSERT INTO notes (text) VALUES ($1)", text)
        await asyncio.sleep(pause)
        if fail:
            raise LookupError(text)


@contextmanager
def locked(database: SqliteDatabase) -> Iterator[sqlite3.Connection]:
    """Hold the write lock with another connection, like another process."""
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


async def assert_still_works(database: SqliteDatabase) -> None:
    async with asyncio.timeout(5):
        await write(database, f"works {random.random()}")


@pytest.fixture
def database(database_in_both_places: SqliteDatabase) -> SqliteDatabase:
    return database_in_both_places


async def test_statements_take_parameters_and_return_rows_and_counts(database: SqliteDatabase) -> None:
    assert await database.execute("INSERT INTO notes (id, text) VALUES ($2, $1)", "b", 2) == 1
    assert await database.fetch("SELECT $1 AS one, text FROM notes WHERE id = $2 AND $1 = 7", 7, 2) == [{"one": 7, "text": "b"}]
    assert await database.fetch_one("SELECT * FROM notes WHERE id = 5") is None


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ("INSERT INTO words (word) VALUES ('c'), ('d')", 2),
        ("INSERT INTO words (word) SELECT word || '!' FROM words", 3),
        ("INSERT OR IGNORE INTO words (word) VALUES ('a'), ('z')", 1),
        ("REPLACE INTO words (word, length) VALUES ('a', 2)", 1),
        (
            "INSERT INTO words (word, length) VALUES ('a', 5), ('y', 5) ON CONFLICT (word) DO UPDATE SET length = excluded.length",
            2,
        ),
        ("INSERT INTO words (word) VALUES ('a') ON CONFLICT DO NOTHING", 0),
        ("UPDATE words SET length = 7", 3),
        ("UPDATE words SET length = 7 WHERE word = 'a'", 1),
        ("UPDATE words SET length = 7 WHERE word = 'none'", 0),
        ("UPDATE words SET length = 7 FROM (SELECT 'b' AS chosen) WHERE word = chosen", 1),
        ("DELETE FROM words WHERE word IN ('a', 'b')", 2),
        ("DELETE FROM words", 3),
        ("DELETE FROM words WHERE word = 'none'", 0),
    ],
)
async def test_execute_returns_the_number_of_changed_rows_of_every_statement(
    database: SqliteDatabase, statement: str, changed: int
) -> None:
    await database.script(
        "CREATE TABLE words (word TEXT PRIMARY KEY, length INTEGER); INSERT INTO words VALUES ('a', 1), ('b', 1), ('c!', 2); "
        "CREATE TABLE log (word TEXT); CREATE TRIGGER logged AFTER UPDATE ON words BEGIN INSERT INTO log VALUES (1), (2); END"
    )
    given = "WITH given(word) AS (VALUES ('a'), ('b')) "
    counts: dict[str, int] = {}
    for before, after in itertools.product(("", given, f"-- a comment\n/* another */ {given.lower()}"), ("", " RETURNING word")):
        with pytest.raises(LookupError):
            async with database.transaction() as tx:
                await tx.execute("INSERT INTO log VALUES (1), (2), (3), (4), (5)")  # which must not count again
                counts[before + after] = await tx.execute(before + statement + after)
                raise LookupError  # undoes it
    assert counts == dict.fromkeys(counts, changed)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1", "WITH a(b) AS (VALUES (1)) SELECT b FROM a", "VALUES (1), (2)", "CREATE TABLE new AS SELECT * FROM items",
        "CREATE INDEX i ON items (name)", "ALTER TABLE items ADD COLUMN more", "DROP TABLE items", "PRAGMA user_version", "EXPLAIN DELETE FROM items",
    ],
)  # fmt: skip
async def test_execute_returns_zero_for_what_changes_no_row(database: SqliteDatabase, statement: str) -> None:
    await database.script("CREATE TABLE items (name TEXT)")
    async with database.transaction() as tx:
        await tx.execute("INSERT INTO items VALUES ('a'), ('b')")
        assert await tx.execute(statement) == 0


async def test_each_of_many_concurrent_transactions_commits_or_fails_alone(database: SqliteDatabase) -> None:
    async def attempt(number: int) -> None:
        try:
            await write(database, f"n{number}", fail=number % 3 == 0)
        except LookupError:
            pass

    await asyncio.gather(*(attempt(number) for number in range(300)))
    assert sorted(await texts(database)) == sorted(f"n{number}" for number in range(300) if number % 3)


async def test_a_cancellation_at_any_point_leaves_no_partial_transaction(database: SqliteDatabase) -> None:
    rng = random.Random(7)
    reported: set[str] = set()

    async def attempt(number: int) -> None:
        async with asyncio.timeout(rng.random() * 0.004):
            await write(database, f"n{number}", fail=number % 5 == 0)
        reported.add(f"n{number}")

    for start in range(0, 2000, 100):
        outcomes = await asyncio.gather(*(attempt(number) for number in range(start, start + 100)), return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, TimeoutError | LookupError) for outcome in outcomes), outcomes
    found = set(await texts(database))
    assert reported <= found, "every transaction that reported success is stored"
    assert not any(int(text[1:]) % 5 == 0 for text in found), "no transaction that failed is stored"
    await assert_still_works(database)


async def test_a_new_transaction_never_joins_one_that_is_ending(database: SqliteDatabase) -> None:
    rng = random.Random(11)
    reported: set[str] = set()

    async def attempt(number: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            async with database.transaction() as tx:
                await tx.execute("INSERT INTO notes (text) VALUES ($1)", f"n{number}")
                if number % 2:
                    raise LookupError
                await tx.execute("INSERT INTO notes (text) VALUES ($1)", f"n{number} again")
        except LookupError:
            return
        reported.update((f"n{number}", f"n{number} again"))

    async with asyncio.timeout(60):
        await asyncio.gather(*(attempt(number, rng.random() * 0.3) for number in range(1000)))
    assert set(await texts(database)) == reported, (
        "every transaction that reported success is stored, and no part of one that failed"
    )
    await assert_still_works(database)


async def test_a_transaction_whose_guard_fails_hands_over_the_writer(database: SqliteDatabase) -> None:
    for _ in range(3):
        with pytest.raises(Superseded):
            async with database.transaction(Guard("UPDATE notes SET text = 'x' WHERE id = 99", ())):
                pass
    with pytest.raises(Superseded):
        async with database.transaction(Guard("UPDATE notes SET text = 'x' WHERE id = 99", ())) as tx:
            await tx.execute("INSERT INTO notes (text) VALUES ('never')")
    await assert_still_works(database)
    assert "never" not in await texts(database)


async def test_a_cancelled_first_statement_abandons_the_transaction(database: SqliteDatabase) -> None:
    with locked(database), pytest.raises(DatabaseError, match="first statement was cancelled"):
        async with database.transaction(Guard("UPDATE notes SET text = 'x' WHERE id = 99", ())) as tx:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await tx.execute("INSERT INTO notes (text) VALUES ('a')")
            await tx.execute("INSERT INTO notes (text) VALUES ('b')")
    assert await texts(database) == []
    await assert_still_works(database)


async def test_a_statement_that_outlives_its_transaction_hands_over_the_writer(database: SqliteDatabase) -> None:
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
    await assert_still_works(database)


async def test_a_cancelled_wait_for_the_writer_leaves_it_to_the_next_transaction(database: SqliteDatabase) -> None:
    for round_number in range(50):
        first = asyncio.create_task(write(database, f"{random.random()}"))
        second = asyncio.create_task(write(database, f"{random.random()}"))
        for _ in range(random.Random(round_number).randrange(6)):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await assert_still_works(database)


async def test_a_commit_is_completed_even_if_its_caller_is_cancelled(database: SqliteDatabase) -> None:
    for number in range(60):
        task = asyncio.create_task(write(database, f"n{number}"))
        for _ in range(number % 12):
            await asyncio.sleep(0.0002)
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if outcome is None:
            assert f"n{number}" in await texts(database)
    await assert_still_works(database)


async def test_a_broken_constraint_undoes_only_its_statement(database: SqliteDatabase) -> None:
    async with database.transaction() as tx:
        await tx.execute("INSERT INTO notes (text) VALUES ('a')")
        with pytest.raises(ConstraintError):
            await tx.execute("INSERT INTO notes (text) VALUES ('a')")
        with pytest.raises(StatementError):
            await tx.execute("INSRT INTO notes")
        await tx.execute("INSERT INTO notes (text) VALUES ('b')")
    assert await texts(database) == ["a", "b"]


async def test_no_statement_autocommits_after_one_that_ended_the_transaction(database: SqliteDatabase) -> None:
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
    await assert_still_works(database)


async def test_a_full_disk_fails_only_the_transaction_that_needs_space(database: SqliteDatabase) -> None:
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
    await assert_still_works(database)


async def test_a_database_locked_by_another_process_fails_after_the_busy_timeout(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.storage.sqlite_connection.WAIT_FOR_LOCKS", "PRAGMA busy_timeout = 50")
    with locked(database), pytest.raises(DatabaseError, match="locked"):
        await write(database, "no")
    await assert_still_works(database)


async def test_a_transaction_waits_for_the_lock_of_another_process_and_the_event_loop_does_not(database: SqliteDatabase) -> None:
    with locked(database) as other:
        waiting = asyncio.create_task(write(database, "after it"))
        await eventually(lambda: not database.writer.idle, "the transaction waits in the thread")
        other.execute("ROLLBACK")
        await waiting
    assert await texts(database) == ["after it"]
    assert database.writer.raw.execute("PRAGMA busy_timeout").fetchone() == (0,), (
        "so the next BEGIN in the event loop does not wait"
    )


@pytest.mark.parametrize(("sql", "params"), [("SELEC", ()), ("SELECT * FROM nowhere", ()), ("SELECT $2", (1,))])
async def test_an_invalid_statement_raises_a_statement_error(database: SqliteDatabase, sql: str, params: tuple[Any, ...]) -> None:
    with pytest.raises(StatementError):
        await database.fetch(sql, *params)


async def test_fetch_refuses_to_write_and_names_the_method_that_does(database: SqliteDatabase) -> None:
    with pytest.raises(StatementError, match=r"self\.db\.execute"):
        await database.fetch("INSERT INTO notes (text) VALUES ('x')")


async def test_a_closed_database_raises_an_error_that_says_so(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "y.sqlite")
    with pytest.raises(DatabaseError, match="closed"):
        await database.fetch("SELECT 1")
    await database.open()
    await database.close()
    await database.close()
    with pytest.raises(DatabaseError, match="closed"):
        await database.execute("SELECT 1")


@pytest.mark.parametrize("old_mode", [None, 0o666])
async def test_only_the_owner_can_read_the_files(tmp_path: Path, old_mode: int | None) -> None:
    folder = SqliteFolder(tmp_path / "data")
    database = folder("notes")
    if old_mode is not None:
        database.path.touch()
        database.path.chmod(old_mode)
    umask = os.umask(0)
    try:
        await database.open()
        await database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
        files = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "data").iterdir()}
        await database.close()
    finally:
        os.umask(umask)
    assert files == dict.fromkeys(("notes.sqlite", "notes.sqlite-wal", "notes.sqlite-shm"), "0o600")
    assert oct((tmp_path / "data").stat().st_mode & 0o777) == "0o700"


def test_a_program_that_fails_before_it_closes_its_database_ends(tmp_path: Path) -> None:
    program = f"""
import asyncio
from runtime.storage.sqlite import SqliteDatabase

async def main():
    database = SqliteDatabase({str(tmp_path / "a.sqlite")!r})
    await database.open()
    await database.execute("CREATE TABLE a (b)")
    raise SystemExit("this program has failed")

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (1, "this program has failed")


async def test_a_backup_is_made_and_put_back_as_the_documentation_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    back_up, put_back = (
        command.replace("/data/", f"{tmp_path}/") for command in re.findall(r'`python -c "(import sqlite3; .*?backup.*?)"`', page)
    )
    database = SqliteDatabase(tmp_path / "rides.sqlite")
    await database.open()
    await database.script("CREATE TABLE notes (text TEXT)")
    await database.execute("INSERT INTO notes (text) VALUES ('before')")
    await asyncio.to_thread(exec, back_up)
    await database.execute("INSERT INTO notes (text) VALUES ('after')")
    left = {suffix: (tmp_path / f"rides.sqlite{suffix}").read_bytes() for suffix in ("", "-wal", "-shm")}
    await database.close()
    for suffix, content in left.items():  # as a killed process leaves them
        (tmp_path / f"rides.sqlite{suffix}").write_bytes(content)
    await asyncio.to_thread(exec, put_back)
    await database.open()
    try:
        assert await database.fetch("SELECT text FROM notes") == [{"text": "before"}]
        assert await database.fetch_one("PRAGMA integrity_check") == {"integrity_check": "ok"}
    finally:
        await database.close()


async def test_transactions_that_wait_run_one_by_one_in_the_order_in_which_they_asked(database: SqliteDatabase) -> None:
    running = 0

    async def attempt(number: int) -> None:
        nonlocal running
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO notes (text) VALUES ($1)", f"n{number}")
            running += 1
            assert running == 1
            for _ in range(number % 7 // 5):  # two of seven suspend while they have the turn
                await asyncio.sleep(0)
            await tx.execute("UPDATE notes SET text = $1 WHERE text = $2", f"m{number}", f"n{number}")
            running -= 1

    tasks = [asyncio.create_task(attempt(number)) for number in range(150)]
    await asyncio.sleep(0)
    for task in tasks[20::10]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [number for number, outcome in enumerate(outcomes) if outcome is not None] == list(range(20, 150, 10))
    assert await texts(database) == [f"m{number}" for number, outcome in enumerate(outcomes) if outcome is None]


async def test_the_space_of_deleted_rows_is_released_in_steps(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "grows.sqlite", durable=False)
    await database.open()
    try:
        await database.script("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
        await database.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000) INSERT INTO notes SELECT i, $1 FROM n",
            "x" * 1000,
        )
        await database.script("SELECT 1")
        full = (await database.fetch("SELECT page_count AS n FROM pragma_page_count"))[0]["n"]
        await database.execute("DELETE FROM notes")
        writing = asyncio.create_task(database.shrink())
        await database.execute("INSERT INTO notes VALUES (1, 'between two steps')")
        await writing
        [row] = await database.fetch("SELECT page_count AS n FROM pragma_page_count")
        assert row["n"] < full / 4
        assert [dict(one) for one in await database.fetch("SELECT * FROM notes")] == [{"id": 1, "text": "between two steps"}]
    finally:
        await database.close()


async def test_a_file_of_an_earlier_version_is_not_shrunk(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.sqlite")) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
    database = SqliteDatabase(tmp_path / "old.sqlite", durable=False)
    await database.open()
    try:
        await database.shrink()
    finally:
        await database.close()
