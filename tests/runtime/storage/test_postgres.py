"""PostgreSQL behind the database port: what the server really does, and how that reaches a handler."""

import asyncio
import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.packages import ROOT
from config.provision import provision
from runtime import ConstraintError, DatabaseError, Row, StatementError, Struct, UsageError
from runtime.sockets import any_free_port
from runtime.storage.database import Guard, Holder, MissingTable, Superseded
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.postgres import PostgresDatabase
from runtime.storage.values import UnstorableValue
from runtime.testing import eventually
from tests.postgres import Postgres, as_user, shared_postgres
from tests.project import RENTAL
from tests.transports.proxy import Proxy

TABLE = "CREATE TABLE notes (id BIGINT PRIMARY KEY, text TEXT UNIQUE)"


@pytest.fixture(scope="module")
def url() -> str:
    return shared_postgres().new_database()


@asynccontextmanager
async def opened(url: str, schema: str, *, pooled: bool = False) -> AsyncGenerator[PostgresDatabase, None]:
    database = PostgresDatabase(url, schema, pooled=pooled)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture(params=[False, True], ids=["direct", "pooled"])
async def database(url: str, request: pytest.FixtureRequest) -> AsyncGenerator[PostgresDatabase, None]:
    name = f"s{time.monotonic_ns()}"
    async with opened(url, name, pooled=request.param) as made:
        await made.script(TABLE)
        yield made
        await made.script(f"DROP SCHEMA {name} CASCADE")


async def test_only_the_statement_that_fails_is_undone(database: PostgresDatabase) -> None:
    async with database.transaction() as tx:
        assert await tx.execute("INSERT INTO notes VALUES ($1, $2)", 1, "a") == 1
        assert await tx.fetch("SELECT count(*) AS count FROM notes") == [{"count": 1}]
        with pytest.raises(ConstraintError, match="duplicate key"):
            await tx.execute("INSERT INTO notes VALUES ($1, $2)", 2, "a")
        with pytest.raises(MissingTable, match="create it in a file"):
            await tx.execute("INSERT INTO nothing VALUES ($1)", 2)
        with pytest.raises(StatementError, match="syntax error"):
            await tx.fetch("SELEC 1")
        with pytest.raises(StatementError, match="division by zero"):
            await tx.fetch("SELECT 1 / $1::int", 0)
        assert await tx.execute("UPDATE notes SET text = $2 WHERE id = $1", 1, "b") == 1
    assert await database.fetch("SELECT * FROM notes") == [{"id": 1, "text": "b"}]


async def test_statements_that_have_another_result_the_second_time_end_the_transaction(database: PostgresDatabase) -> None:
    with pytest.raises(DatabaseError, match="had another result than before"):
        async with database.transaction() as tx:
            await tx.fetch("SELECT random() AS value")
            with pytest.raises(StatementError):
                await tx.execute("SELEC 1")
            await tx.execute("INSERT INTO notes VALUES (1, 'a')")
    assert await database.fetch("SELECT * FROM notes") == []


async def test_a_guard_that_changes_no_row_ends_the_transaction(database: PostgresDatabase) -> None:
    guard = Guard("UPDATE notes SET text = 'x' WHERE id = $1", (1,))
    with pytest.raises(Superseded):
        async with database.transaction(guard) as tx:
            await tx.execute("INSERT INTO notes VALUES (2, 'b')")
    await database.execute("INSERT INTO notes VALUES (1, 'a')")
    async with database.transaction(guard) as tx:
        with pytest.raises(ConstraintError):
            await tx.execute("INSERT INTO notes VALUES (1, 'b')")
        await tx.execute("INSERT INTO notes VALUES (2, 'b')")
    assert len(await database.fetch("SELECT * FROM notes")) == 2


async def test_reading_and_then_writing_loses_nothing_between_processes(url: str, database: PostgresDatabase) -> None:
    await database.execute("INSERT INTO notes VALUES (1, '0')")
    schema = str(database).partition("schema ")[2].rstrip(")")

    async def count(other: PostgresDatabase) -> None:
        for _ in range(10):
            async with other.transaction() as tx:
                row = await tx.fetch_one("SELECT text FROM notes WHERE id = 1")
                assert row is not None
                await tx.execute("UPDATE notes SET text = $1 WHERE id = 1", str(int(row["text"]) + 1))

    async with opened(url, schema) as one, opened(url, schema) as other:
        await asyncio.gather(*(count(one) for _ in range(3)), *(count(other) for _ in range(3)))
    assert await database.fetch("SELECT text FROM notes") == [{"text": "60"}]


async def test_processes_that_start_together_migrate_once(url: str, tmp_path: Path) -> None:
    (tmp_path / "0001_rows.sql").write_text("CREATE TABLE rows (id BIGINT); INSERT INTO rows VALUES (1);")

    async def begin() -> int:
        async with opened(url, "together") as made:
            await migrate(made, SCHEMA, "callboard")
            return await migrate(made, tmp_path, "rows")

    assert sorted(await asyncio.gather(*(begin() for _ in range(4)))) == [0, 0, 0, 1]


async def test_fetch_only_reads(database: PostgresDatabase) -> None:
    with pytest.raises(StatementError, match="fetch\\(\\) only reads"):
        await database.fetch("INSERT INTO notes VALUES (1, 'a') RETURNING id")


async def test_a_scan_ends_early(database: PostgresDatabase) -> None:
    async with database.transaction() as tx:
        for number in range(300):
            await tx.execute("INSERT INTO notes VALUES ($1, $2)", number, str(number))
    seen: list[int] = []

    def each(row: Row) -> bool:
        seen.append(row["id"])
        return len(seen) < 150

    await database.scan(each, "SELECT id FROM notes WHERE id >= $1 ORDER BY id", 10)
    assert seen == list(range(10, 160))
    assert await database.delete_in_steps("notes", "id", "id < $1", 250) == 250


class Colour(Enum):
    RED = "red"


class Stored(Struct):
    value: Any


COLUMNS: dict[str, Any] = {
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "INTEGER": st.integers(-(2**31), 2**31 - 1),
    "TEXT": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    "DOUBLE PRECISION": st.floats(allow_nan=False),
    "NUMERIC": st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12),
    "BOOLEAN": st.booleans(),
    "BYTEA": st.binary(),
    "TIMESTAMPTZ": st.datetimes(timezones=st.just(UTC)),
    "DATE": st.dates(),
    "TIME": st.times(),
    "INTERVAL": st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000)),
    "UUID": st.uuids(),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_values_come_back_equal(url: str, column: str) -> None:
    name = f"v_{column.lower().replace(' ', '_')}"

    async def check(values: list[Any]) -> None:
        async with opened(url, name) as made:
            await made.script(f"DROP TABLE IF EXISTS stored; CREATE TABLE stored (at BIGINT, value {column})")
            async with made.transaction() as tx:
                for at, value in enumerate(values):
                    await tx.execute("INSERT INTO stored VALUES ($1, $2)", at, value)
            rows = await made.fetch("SELECT value FROM stored ORDER BY at")
        assert [row["value"] for row in rows] == values

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(COLUMNS[column] | st.none(), min_size=20, max_size=20))
    def run(values: list[Any]) -> None:
        asyncio.run(check(values))

    run()


@pytest.mark.parametrize(
    ("column", "value", "stored"),
    [
        ("TEXT", datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01-31T12:00:00.000000Z"),
        ("TEXT", UUID(int=5), str(UUID(int=5))),
        ("TEXT", Decimal("1.50"), "1.50"),
        ("TEXT", Colour.RED, "red"),
        ("BIGINT", True, 1),
        ("BIGINT", 2.0, 2),
        ("DOUBLE PRECISION", 1, 1.0),
        ("NUMERIC", 0.1, Decimal("0.1")),
        ("BOOLEAN", 1, True),
        ("UUID", str(UUID(int=5)), UUID(int=5)),
    ],
)
async def test_values_of_related_types_are_stored_as_on_sqlite(url: str, column: str, value: Any, stored: Any) -> None:
    async with opened(url, "related") as made:
        await made.script(f"DROP TABLE IF EXISTS stored; CREATE TABLE stored (value {column})")
        await made.execute("INSERT INTO stored VALUES ($1)", value)
        assert await made.fetch("SELECT value FROM stored") == [{"value": stored}]
        assert await made.fetch("SELECT value FROM stored", into=Stored) == [Stored(stored)]


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("BIGINT", 199.9, StatementError),
        ("BIGINT", Decimal("0.5"), StatementError),
        ("BIGINT", "1", StatementError),
        ("BIGINT", 2**63, UnstorableValue),
        ("INTEGER", 2**31, UnstorableValue),
        ("TEXT", 5, StatementError),
        ("TEXT", "a\0b", UnstorableValue),
        ("TEXT", "\ud800", UnstorableValue),
        ("DOUBLE PRECISION", float("nan"), UnstorableValue),
        ("NUMERIC", Decimal("NaN"), UnstorableValue),
        ("BOOLEAN", 2, StatementError),
        ("TIMESTAMPTZ", datetime(2026, 1, 1), UnstorableValue),  # noqa: DTZ001  # that is the fault
        ("DATE", datetime(2026, 1, 1, tzinfo=UTC), StatementError),
        ("TIME", date(2026, 1, 1), StatementError),
        ("INTERVAL", time_of_day(1), StatementError),
        ("BYTEA", "text", StatementError),
        ("UUID", "nonsense", StatementError),
        ("TEXT", [1], UsageError),
    ],
)
async def test_a_value_that_cannot_be_stored_is_refused_and_the_transaction_continues(
    url: str, column: str, value: Any, error: type[Exception]
) -> None:
    async with opened(url, "refused") as made:
        await made.script(f"DROP TABLE IF EXISTS stored; CREATE TABLE stored (value {column})")
        async with made.transaction() as tx:
            await tx.execute("INSERT INTO stored VALUES (NULL)")
            with pytest.raises(error, match=r"\$1"):
                await tx.execute("INSERT INTO stored VALUES ($1)", value)
            with pytest.raises(StatementError, match="1 parameters, got 2"):
                await tx.execute("INSERT INTO stored VALUES ($1)", None, None)
        assert await made.fetch("SELECT value FROM stored") == [{"value": None}]


async def test_a_transaction_that_hangs_is_rolled_back_at_its_deadline(
    database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    loop = asyncio.get_running_loop()

    begun: list[bool] = []

    async def hang() -> None:
        async with database.transaction(None, Holder("Notes.hang", loop.time() + 0.3)) as tx:
            await tx.execute("INSERT INTO notes VALUES (1, 'a')")
            begun.append(True)
            await asyncio.sleep(30)

    hanging = asyncio.create_task(hang())
    await eventually(lambda: begun, "the transaction has begun")
    await database.execute("INSERT INTO notes VALUES (2, 'b')")
    assert [row["id"] for row in await database.fetch("SELECT id FROM notes")] == [2]
    assert "Notes.hang has held the write transaction until its deadline" in caplog.text
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging


async def test_a_statement_ends_at_the_deadline_of_its_handler(database: PostgresDatabase) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(DatabaseError):
        async with database.transaction(None, Holder("Notes.sleep", loop.time() + 0.3)) as tx:
            await tx.fetch("SELECT pg_sleep(20)")
    assert loop.time() - began < 10
    assert await database.execute("INSERT INTO notes VALUES (2, 'b')") == 1


def test_a_url_is_checked_and_never_shown() -> None:
    for text in ("sqlite:///x", "postgresql://", "postgresql://u:hunter2@h", "nonsense", "postgresql://u:hunter2@[/x"):
        with pytest.raises(UsageError) as caught:
            PostgresDatabase(text, "s")
        assert "hunter2" not in str(caught.value)
    made = PostgresDatabase("postgresql://u:hunter2@a:1,b:2/db", "s")
    assert "hunter2" not in f"{made!r} {made}"


# The server fails


@pytest.fixture
def server() -> Iterator[Postgres]:
    made = Postgres("fsync=off")
    made.start()
    yield made
    made.stop()


async def test_no_request_fails_after_the_server_has_restarted(server: Postgres) -> None:
    async with opened(server.new_database(), "s") as made:
        await made.script(TABLE)
        await asyncio.gather(*(made.fetch("SELECT pg_sleep(0.05)") for _ in range(8)))  # eight connections
        await made.execute("INSERT INTO notes VALUES (0, 'a')")
        server.kill()
        server.start()
        found = await asyncio.gather(
            *(made.fetch("SELECT id FROM notes WHERE id = 0") for _ in range(16)),
            *(made.execute("INSERT INTO notes VALUES ($1, $2)", number, str(number)) for number in range(1, 5)),
        )
        assert found == [[{"id": 0}]] * 16 + [1] * 4


async def test_a_server_that_stops_answering_holds_nobody_past_the_deadline(server: Postgres) -> None:
    async with opened(server.new_database(), "s") as made:
        await made.script(TABLE)
        loop = asyncio.get_running_loop()
        server.signal(signal.SIGSTOP)
        try:
            began = loop.time()
            with pytest.raises(DatabaseError):
                async with made.transaction(None, Holder("Notes.write", loop.time() + 0.5)) as tx:
                    await tx.execute("INSERT INTO notes VALUES (1, 'a')")
            assert loop.time() - began < 5
        finally:
            server.signal(signal.SIGCONT)
        assert await made.execute("INSERT INTO notes VALUES (2, 'b')") == 1
        server.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                await made.close()
        finally:
            server.signal(signal.SIGCONT)


STREAM = """
CREATE TABLE callboard_stream_head (one INTEGER PRIMARY KEY, seq BIGINT);
INSERT INTO callboard_stream_head VALUES (1, 0);
CREATE TABLE callboard_stream (seq BIGINT PRIMARY KEY, id TEXT, type TEXT, body TEXT, at TEXT, trace TEXT);
"""
MARKS = (ROOT / "runtime" / "storage" / "schema" / "0006_commits.sql").read_text(encoding="utf-8")
SLOW_COMMIT = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow();
"""


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("ended_by", ["network", "server"])
async def test_the_outcome_of_a_commit_is_known_although_its_connection_was_lost(ended_by: str, isolation: str) -> None:
    server = shared_postgres()
    url = server.new_database()
    server.run(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_isolation = '{isolation}'")
    schema = f"commit_{ended_by}"
    async with (
        Proxy(server.port) as proxy,
        opened(url.replace(str(server.port), str(proxy.port)), schema) as made,
    ):
        await made.script(f"{TABLE}; {MARKS}; {SLOW_COMMIT}")
        writing = asyncio.create_task(made.execute("INSERT INTO notes VALUES (1, 'a')"))
        database = url.rpartition("/")[2]
        in_commit = (
            f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND query LIKE '%COMMIT' AND state = 'active'"
        )
        await eventually(lambda: asyncio.to_thread(lambda: server.run(in_commit) == "1"), "the commit runs")
        if ended_by == "network":
            proxy.cut()
            assert await writing == 1, "the server has committed it"
        else:
            server.run(in_commit.replace("count(*)", "pg_terminate_backend(pid)"))
            with pytest.raises(DatabaseError, match="lost before the commit"):
                await writing
        assert len(await made.fetch("SELECT * FROM notes")) == (1 if ended_by == "network" else 0)


async def test_a_host_that_accepts_and_stays_silent_is_left(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.storage.postgres_connection.CONNECT_TIMEOUT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        async with opened(url.replace("@127", f"@{host},127"), "hosts") as made:
            assert await made.fetch("SELECT 1 AS one") == [{"one": 1}]
        with pytest.raises(DatabaseError, match=f"cannot connect: {host}"):
            await PostgresDatabase(f"postgresql://u@{host}/x", "hosts").open()


async def test_a_wrong_password_is_one_line(url: str) -> None:
    with pytest.raises(DatabaseError, match='role "nobody" does not exist'):
        await PostgresDatabase(url.replace("callboard@", "nobody:hunter2@"), "s").open()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def pgbouncer(server: Postgres, database: str, folder: Path) -> Iterator[int]:
    """A PgBouncer in transaction mode with two connections to a database. Yields its port."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/opt/homebrew/bin")
    assert program is not None, "PgBouncer is needed: `make test` installs it"
    port = any_free_port()
    (folder / "users.txt").write_text('"callboard" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{database} = host=127.0.0.1 port={server.port}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n"
        f"auth_type=trust\nauth_file={folder}/users.txt\npool_mode=transaction\ndefault_pool_size=2\nunix_socket_dir=\n"
    )
    process = subprocess.Popen([*as_user(folder), program, "-q", str(folder / "pgbouncer.ini")], stderr=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 10
        while not is_listening(port):
            assert time.monotonic() < ends, "PgBouncer does not answer"
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


async def test_pgbouncer_may_give_each_transaction_another_connection() -> None:
    server = shared_postgres()
    url = server.new_database()
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
    with pgbouncer(server, url.rpartition("/")[2], folder) as port:
        through = url.replace(f":{server.port}/", f":{port}/")
        async with opened(through, "one", pooled=True) as one, opened(through, "other", pooled=True) as other:
            for made in (one, other):
                await migrate(made, SCHEMA, "callboard")
                await made.script(TABLE)

            async def work(made: PostgresDatabase, number: int) -> None:
                async with made.transaction() as tx:
                    row = await tx.fetch_one("SELECT coalesce(max(id), 0) + 1 AS next FROM notes")
                    assert row is not None
                    await tx.execute("INSERT INTO notes VALUES ($1, $2)", row["next"], str(number))
                assert await made.fetch("SELECT text FROM notes WHERE text = $1", str(number)) == [{"text": str(number)}]

            await asyncio.gather(*(work(made, number) for number in range(30) for made in (one, other)))
            for made in (one, other):
                assert await made.fetch("SELECT max(id) AS last FROM notes") == [{"last": 30}]
    shutil.rmtree(folder)


_FREEZES = """
import asyncio, sys
from runtime import DatabaseError
from runtime.storage.postgres import PostgresDatabase

async def main():
    database = PostgresDatabase(sys.argv[1], sys.argv[2])
    await database.open()
    try:
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO notes VALUES (1, 'frozen')")
            print("holds the lock", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    except DatabaseError as error:
        print(type(error).__name__, flush=True)
    await database.close()

asyncio.run(main())
"""


@pytest.mark.long
async def test_a_process_that_is_frozen_does_not_keep_the_lock_of_the_service(url: str) -> None:
    schema = f"s{time.monotonic_ns()}"
    async with opened(url, schema) as database:
        await database.script(TABLE)
        frozen = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _FREEZES, url, schema, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert frozen.stdout is not None
        assert frozen.stdin is not None
        try:
            assert await frozen.stdout.readline() == b"holds the lock\n"
            frozen.send_signal(signal.SIGSTOP)
            async with database.transaction() as tx:
                await tx.execute("INSERT INTO notes VALUES (1, 'another')")
            frozen.send_signal(signal.SIGCONT)
            frozen.stdin.write(b"\n")
            assert await frozen.stdout.readline() != b"", "its transaction has failed"
            assert await database.fetch("SELECT text FROM notes") == [{"text": "another"}]
        finally:
            frozen.kill()
            await frozen.wait()


@pytest.mark.long
async def test_a_standby_that_is_promoted_takes_over(tmp_path: Path) -> None:
    """The primary is killed, and its standby promoted: a URL with both hosts leads to the new primary, and nothing committed is lost."""
    primary = Postgres("fsync=off", "wal_level=replica", "max_wal_senders=4", "hot_standby=on")
    primary.start()
    url = primary.new_database()
    standby = Postgres("fsync=off", "hot_standby=on", of=primary)
    try:
        standby.start()
        both = url.replace(f"127.0.0.1:{primary.port}", f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}")
        async with opened(both, "s") as made:
            await made.script(TABLE)
            for number in range(5):
                await made.execute("INSERT INTO notes VALUES ($1, $2)", number, str(number))
            await eventually(
                lambda: standby.run("SELECT count(*) FROM s.notes", url.rpartition("/")[2]) == "5", "the standby has all rows"
            )
            primary.kill()
            with pytest.raises(DatabaseError):
                await made.execute("INSERT INTO notes VALUES (99, 'to nobody')")  # the standby takes no writes yet
            standby.run("SELECT pg_promote()")

            async def writes() -> bool:
                try:
                    await made.execute("INSERT INTO notes VALUES (5, 'after') ON CONFLICT DO NOTHING")
                except DatabaseError:
                    return False
                return True

            await eventually(writes, "the new primary takes writes", 30)
            assert [row["id"] for row in await made.fetch("SELECT id FROM notes ORDER BY id")] == [0, 1, 2, 3, 4, 5]
    finally:
        primary.stop()
        standby.stop()


@pytest.mark.parametrize("publishes", [False, True])
async def test_a_commit_that_the_standby_never_got_is_not_taken_for_another_one(publishes: bool) -> None:
    """Ids of transactions are given out again on the standby that takes over, where another transaction with the same id is committed."""
    primary = Postgres("fsync=off", "wal_level=replica", "hot_standby=on")
    primary.start()
    url = primary.new_database()
    standby = Postgres("fsync=off", "hot_standby=on", of=primary)
    try:
        name = url.rpartition("/")[2]
        standby.start()
        async with Proxy(primary.port) as proxy, opened(url.replace(str(primary.port), str(proxy.port)), "s") as made:
            await made.script(f"{TABLE}; {STREAM}; {MARKS}; {SLOW_COMMIT}")
            flushed = primary.run("SELECT pg_current_wal_flush_lsn()")
            replayed = f"SELECT pg_last_wal_replay_lsn() >= '{flushed}'"
            await eventually(lambda: asyncio.to_thread(lambda: standby.run(replayed) == "t"), "the standby has the tables", 30)
            standby.kill()

            async def write() -> None:
                async with made.transaction() as tx:
                    await tx.execute("INSERT INTO notes VALUES (1, 'a')")
                    if publishes:
                        tx.appends.append(("event-1", "s.Noted", "{}", "now", ""))

            writing = asyncio.create_task(write())
            in_commit = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%COMMIT' AND state = 'active'"
            await eventually(lambda: asyncio.to_thread(lambda: primary.run(in_commit) == "1"), "the commit runs")
            proxy.half_open()
            committed = "SELECT count(*) FROM s.notes"
            await eventually(lambda: asyncio.to_thread(lambda: primary.run(committed, name) == "1"), "the primary has committed")
            primary.kill()
            standby.start()
            standby.run("SELECT pg_promote()")
            for _ in range(20):  # other transactions get the ids
                standby.run("SELECT pg_current_xact_id()")
            proxy.to = standby.port
            proxy.thaw()
            proxy.cut()
            with pytest.raises(DatabaseError, match="lost before the commit"):
                await writing
            assert standby.run(f"{committed} WHERE id = 1", name) == "0"
    finally:
        primary.stop()
        standby.stop()


async def test_a_handler_that_only_reads_needs_no_database_that_can_be_written() -> None:
    url = shared_postgres().new_database()
    async with opened(url, "reads") as made:
        await made.script(f"{TABLE}; {MARKS}")
        await made.execute("INSERT INTO notes VALUES (1, 'a')")
    shared_postgres().run(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
    async with opened(url, "reads") as made:
        async with made.transaction() as tx:
            assert await tx.fetch("SELECT id FROM notes") == [{"id": 1}]
        with pytest.raises(DatabaseError, match="read-only"):
            await made.execute("INSERT INTO notes VALUES (2, 'b')")


async def test_marks_of_commits_are_deleted_after_an_hour(url: str) -> None:
    async with opened(url, "marks") as made:
        await made.script(f"{TABLE}; {MARKS}")
        for number in range(3):
            await made.execute("INSERT INTO notes VALUES ($1, $2)", number, str(number))
        assert len(await made.fetch("SELECT id FROM notes")) == len(await made.fetch("SELECT id FROM callboard_commits")) == 3
        await made.execute("UPDATE callboard_commits SET at = at - interval '2 hours'")
        await made.shrink()
        assert len(await made.fetch("SELECT id FROM callboard_commits")) == 2, "those of the update and of the deletion"


async def test_a_connection_with_tls_is_verified(tmp_path: Path) -> None:
    """`sslmode=verify-full` in the URL, as with psql: an authority that did not sign the server's certificate is refused."""
    provision(tmp_path / "ours", RENTAL)
    provision(tmp_path / "theirs", RENTAL)
    server = Postgres("fsync=off")
    try:
        for name, target in (("certificate.pem", "server.crt"), ("private-key.pem", "server.key")):
            path = server.folder / "data" / target
            path.write_bytes((tmp_path / "ours" / "wallet" / name).read_bytes())
            if as_user(server.folder):
                shutil.chown(path, "postgres")
            path.chmod(0o600)
        (server.folder / "data" / "pg_hba.conf").write_text(
            "hostssl all callboard 127.0.0.1/32 trust\nhostnossl postgres callboard 127.0.0.1/32 trust\n"
        )
        with (server.folder / "data" / "postgresql.conf").open("a") as settings_file:
            settings_file.write("ssl = on\n")
        server.start()
        url = server.new_database().replace("127.0.0.1", "localhost")
        with pytest.raises(DatabaseError):
            async with opened(f"{url}?sslmode=disable", "s"):
                pass
        with pytest.raises(DatabaseError, match="certificate"):
            async with opened(f"{url}?sslmode=verify-full&sslrootcert={tmp_path}/theirs/shared/ca.pem", "s"):
                pass
        async with opened(f"{url}?sslmode=verify-full&sslrootcert={tmp_path}/ours/shared/ca.pem", "s") as made:
            assert await made.fetch("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [{"ssl": True}]
    finally:
        server.stop()
