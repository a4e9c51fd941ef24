"""`callboard backup` and `callboard restore` on each engine, and what they refuse."""

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config.backups import back_up
from config.cli.backups import backup_command, restore_command
from config.packages import ROOT
from config.settings import DatabaseSettings
from runtime import CallboardError, Clock, Database, Random
from runtime.durable.stream import Stream, read_history
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.postgres import PostgresDatabase
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import FakeAuth
from services.wallet.service import Wallet
from tests.config.cli.terminal import Terminal
from tests.databases import ENGINES
from tests.postgres import shared_postgres
from tests.project import RENTAL_SERVICES, rental
from tests.topology import Topology


class Place:
    """Where the wallet's database is."""

    def __init__(self, engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.chdir(folder)
        monkeypatch.setenv("CALLBOARD_DATABASE__FOLDER", str(folder / "data"))
        monkeypatch.setenv("CALLBOARD_SERVICES", RENTAL_SERVICES)
        (folder / "data").mkdir()
        self.url = shared_postgres().new_database() if engine == "postgres" else None
        if self.url is not None:
            monkeypatch.setenv("CALLBOARD_DATABASE__URL", self.url)

    def database(self, service: str = "wallet") -> Database:
        if self.url is not None:
            return PostgresDatabase(self.url, service)
        return SqliteDatabase(self.folder / "data" / f"{service}.sqlite")

    def run(self, *statements: str, service: str = "wallet", epochs: bool = True) -> list[Any]:
        """Run statements in the database, which gets its tables. Return the rows of the last one."""

        async def run() -> list[Any]:
            database = self.database(service)
            await database.open()
            try:
                await migrate(database, SCHEMA, "callboard")
                assert Wallet.definition.migrations is not None
                if service == "wallet":
                    await migrate(database, Path(Wallet.definition.migrations), "wallet")
                if epochs:
                    await Stream(database, Clock(), Random(Clock()), lambda: 0).open()
                rows: list[Any] = []
                for statement in statements:
                    if statement.startswith("SELECT"):
                        rows = [tuple(row.values()) for row in await database.fetch(statement)]
                    else:
                        await database.execute(statement)
                return rows
            finally:
                await database.close()

        return asyncio.run(run())

    def epochs(self) -> tuple[list[str], set[str]]:
        async def read() -> tuple[list[str], set[str]]:
            database = self.database()
            await database.open()
            try:
                history = await read_history(database)
            finally:
                await database.close()
            return [epoch for epoch, _ in history.epochs], set(history.branches)

        return asyncio.run(read())


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(request.param, tmp_path, monkeypatch)


def command(chosen: Any, *arguments: object) -> str:
    result = CliRunner().invoke(chosen, [str(argument) for argument in arguments])
    if isinstance(result.exception, CallboardError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


ACCOUNT = "INSERT INTO accounts VALUES ('{0}', 0, 0)"
EVENT = "INSERT INTO callboard_stream VALUES ({0}, 'id-{0}', 't', '{{}}', '2026-11-30T00:00:00.000000Z', '')"
HEAD = "UPDATE callboard_stream_head SET seq = {0}"


def test_a_backup_is_put_back_as_a_new_epoch(place: Place) -> None:
    place.run(ACCOUNT.format("before"), EVENT.format(1), HEAD.format(1))
    file = place.folder / "wallet.backup"
    assert command(backup_command, "wallet", file).endswith("with its events up to 1.\n")
    assert file.stat().st_mode & 0o077 == 0, "nobody else reads it"
    place.run(ACCOUNT.format("after"), EVENT.format(2), EVENT.format(3), HEAD.format(3))
    [first], _ = place.epochs()
    said = command(restore_command, "wallet", file)
    assert said.startswith("wallet has lost its events 2 to 3, which others may have applied.\n")
    assert "wallet is restored, with its events up to 1. A new epoch begins. What was there before is kept in " in said
    assert place.run("SELECT user_id FROM accounts") == [("before",)]
    assert place.run("SELECT seq FROM callboard_stream_head") == [(1,)]
    (one, second), branches = place.epochs()
    assert (one, branches) == (first, set())
    place.run(EVENT.format(2), HEAD.format(2))
    command(restore_command, "wallet", file)
    (one, third), branches = place.epochs()
    assert (one, branches) == (first, {second}), "subscribers that have reached the second epoch find their way"
    assert third not in (first, second)


def test_what_a_restore_replaces_is_kept(place: Place) -> None:
    place.run(ACCOUNT.format("before"))
    file = place.folder / "wallet.backup"
    command(backup_command, "wallet", file)
    place.run(ACCOUNT.format("after"))
    kept = command(restore_command, "wallet", file).rpartition(" is kept in ")[2].strip().rstrip(".")
    if place.url is not None:
        schema = kept.removeprefix("the schema ")
        assert place.run(f"SELECT count(*) FROM {schema}.accounts") == [(2,)]
    else:
        assert Path(kept).exists()
        assert sorted(path.name for path in (place.folder / "data").glob("*.sqlite*")) == sorted(
            ["wallet.sqlite", Path(kept).name]
        )


def test_a_database_that_is_gone_is_restored(place: Place) -> None:
    place.run(ACCOUNT.format("before"))
    file = place.folder / "wallet.backup"
    command(backup_command, "wallet", file)
    if place.url is None:
        for path in (place.folder / "data").glob("wallet.sqlite*"):
            path.unlink()
    else:
        place.run("DROP SCHEMA wallet CASCADE", service="rides")
    assert command(restore_command, "wallet", file).startswith("wallet is restored, with its events up to 0.")
    assert place.run("SELECT user_id FROM accounts") == [("before",)]


def test_a_damaged_database_is_replaced_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("sqlite", tmp_path, monkeypatch)
    place.run(ACCOUNT.format("before"))
    file = tmp_path / "wallet.backup"
    command(backup_command, "wallet", file)
    (tmp_path / "data" / "wallet.sqlite").write_bytes(b"not a database" * 1000)
    kept = Path(command(restore_command, "wallet", file).rpartition(" is kept in ")[2].strip().rstrip("."))
    assert kept.read_bytes().startswith(b"not a database")
    assert place.run("SELECT user_id FROM accounts") == [("before",)]


def test_nothing_is_overwritten_or_restored_from_what_is_no_backup(place: Place) -> None:
    place.run(ACCOUNT.format("before"))
    place.run("SELECT 1", service="rides")
    file = place.folder / "wallet.backup"
    command(backup_command, "wallet", file)
    with pytest.raises(CallboardError, match="exists already: choose a new file"):
        command(backup_command, "wallet", file)
    with pytest.raises(CallboardError, match="does not exist: expected a file that `callboard backup wallet FILE`"):
        command(restore_command, "wallet", place.folder / "nothing")
    with pytest.raises(CallboardError, match="did you mean wallet"):
        command(backup_command, "walet", place.folder / "other")
    with pytest.raises(CallboardError, match="cannot be written: No such file or directory"):
        command(backup_command, "wallet", place.folder / "no" / "folder")
    with pytest.raises(CallboardError, match=r"is a backup of wallet: expected one of rides|is not a backup of rides"):
        command(restore_command, "rides", file)
    (place.folder / "text").write_text("no database", encoding="utf-8")
    with pytest.raises(CallboardError, match=r"is not a database of a service|pg_restore has failed"):
        command(restore_command, "wallet", place.folder / "text")
    assert place.run("SELECT user_id FROM accounts") == [("before",)], "all of them have changed nothing"
    assert not list(place.folder.rglob("*.part*"))


def test_a_service_that_is_running_is_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("postgres", tmp_path, monkeypatch)
    place.run(ACCOUNT.format("before"))
    command(backup_command, "wallet", tmp_path / "wallet.backup")

    async def restore_while_it_runs() -> None:
        database = place.database()
        await database.open()
        try:
            await asyncio.sleep(1.1)  # connections of the last second may be ending
            await asyncio.to_thread(command, restore_command, "wallet", tmp_path / "wallet.backup")
        finally:
            await database.close()

    with pytest.raises(CallboardError, match="is in use by wallet: stop all its instances first"):
        asyncio.run(restore_while_it_runs())


def test_the_file_of_a_service_that_is_running_is_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("sqlite", tmp_path, monkeypatch)
    place.run(ACCOUNT.format("before"))
    command(backup_command, "wallet", tmp_path / "wallet.backup")
    code = f"from pathlib import Path; from config.folder_locks import databases_locked\nwith databases_locked(Path({str(tmp_path / 'data')!r}), ['wallet'], 'callboard run wallet'): print('locked', flush=True); input()"

    async def restore_while_it_runs() -> None:
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        assert other.stdout is not None
        try:
            assert await other.stdout.readline() == b"locked\n"
            await asyncio.to_thread(command, restore_command, "wallet", tmp_path / "wallet.backup")
        finally:
            other.kill()
            await other.wait()

    with pytest.raises(CallboardError, match=r"in use by process \d+ \(`callboard run wallet`\)"):
        asyncio.run(restore_while_it_runs())


def test_a_backup_of_a_newer_version_leaves_everything_as_it_is(place: Place) -> None:
    place.run(ACCOUNT.format("newer"), "INSERT INTO callboard_migrations VALUES ('wallet', 9999, 'x')")
    file = place.folder / "wallet.backup"
    command(backup_command, "wallet", file)
    drop_migration(place)
    before = place.run("UPDATE accounts SET held_cents = 7", "SELECT * FROM accounts"), place.epochs()
    with pytest.raises(CallboardError, match="has migration 9999 of 'wallet'"):
        command(restore_command, "wallet", file)
    assert (place.run("SELECT * FROM accounts"), place.epochs()) == before


def drop_migration(place: Place) -> None:
    if place.url is not None:
        place.run("DELETE FROM wallet.callboard_migrations WHERE number = 9999", service="rides")
        return
    with closing(sqlite3.connect(place.folder / "data" / "wallet.sqlite")) as connection:
        connection.execute("DELETE FROM callboard_migrations WHERE number = 9999")
        connection.commit()


def test_the_role_of_a_service_owns_what_the_owner_of_the_database_restores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place("postgres", tmp_path, monkeypatch)
    assert place.url is not None
    role = f"wallet_{place.url.rpartition('/')[2]}"
    place.run(f"CREATE ROLE {role} LOGIN", f"CREATE SCHEMA wallet AUTHORIZATION {role}", service="rides")
    place.url = place.url.replace("callboard@", f"{role}@")
    place.run(ACCOUNT.format("before"))
    monkeypatch.setenv("CALLBOARD_DATABASE__URL", place.url)
    file = tmp_path / "wallet.backup"
    command(backup_command, "wallet", file)
    place.run(ACCOUNT.format("after"))
    with pytest.raises(CallboardError, match=r"permission denied for database .*: name the owner of the database"):
        command(restore_command, "wallet", file)
    assert place.run("SELECT count(*) FROM accounts") == [(2,)]
    monkeypatch.setenv("CALLBOARD_DATABASE__URL", place.url.replace(f"{role}@", "callboard@"))
    command(restore_command, "wallet", file)
    assert place.run(ACCOUNT.format("again"), "SELECT user_id FROM accounts ORDER BY user_id") == [("again",), ("before",)]
    assert place.run("CREATE TABLE more (id BIGINT)") == [], "the role may change its schema"


def test_nothing_else_in_the_database_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("postgres", tmp_path, monkeypatch)
    place.run(ACCOUNT.format("before"))
    place.run("CREATE SCHEMA wallet_restored", "CREATE TABLE wallet_restored.mine (id BIGINT)", service="rides")
    command(backup_command, "wallet", tmp_path / "wallet.backup")
    command(restore_command, "wallet", tmp_path / "wallet.backup")
    assert place.run("SELECT count(*) FROM wallet_restored.mine", service="rides") == [(0,)]


def test_a_restore_that_is_refused_leaves_an_empty_schema_to_its_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("postgres", tmp_path, monkeypatch)
    assert place.url is not None
    role = f"wallet_{place.url.rpartition('/')[2]}"
    place.run(f"CREATE ROLE {role} LOGIN", f"CREATE SCHEMA wallet AUTHORIZATION {role}", service="rides")
    command(backup_command, "rides", tmp_path / "rides.backup")
    with pytest.raises(CallboardError, match="is not a backup of wallet"):
        command(restore_command, "wallet", tmp_path / "rides.backup")
    assert place.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'wallet'", service="rides") == [(0,)]


def test_a_backup_from_before_the_first_start_is_put_back(place: Place) -> None:
    """It has no epoch: subscribers find that it shares no event with what it replaces."""
    place.run("DELETE FROM callboard_epochs", epochs=False)
    file = place.folder / "wallet.backup"
    command(backup_command, "wallet", file)
    place.run(EVENT.format(1), HEAD.format(1))
    [first], _ = place.epochs()
    command(restore_command, "wallet", file)
    [second], branches = place.epochs()
    assert (branches, second != first) == ({first}, True)


def test_a_service_without_a_database_has_no_backup(place: Place) -> None:
    with pytest.raises(CallboardError, match="gateway has no database"):
        command(backup_command, "gateway", place.folder / "file")


def test_a_pooler_hides_whether_a_service_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("postgres", tmp_path, monkeypatch)
    place.run(ACCOUNT.format("before"))
    command(backup_command, "wallet", tmp_path / "wallet.backup")
    monkeypatch.setenv("CALLBOARD_DATABASE__POOLED", "true")
    with pytest.raises(CallboardError, match="cannot be seen through a pooler"):
        command(restore_command, "wallet", tmp_path / "wallet.backup")


async def test_a_backup_while_events_are_written_says_how_far_it_is(tmp_path: Path, one_node: Topology) -> None:
    await one_node.start(FakeAuth, Wallet)
    await one_node.close()
    file = tmp_path / "wallet.sqlite"
    with closing(sqlite3.connect(file, check_same_thread=False)) as filler:
        filler.execute(
            "CREATE TABLE filler AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) SELECT randomblob(4000) FROM n"
        )
        filler.commit()
        parts: list[float] = []

        def write(part: float) -> None:
            parts.append(part)
            filler.execute("INSERT INTO filler VALUES (randomblob(4000))")
            filler.commit()

        settings = rental(database=DatabaseSettings(folder=str(tmp_path)))
        made = await back_up(settings, "wallet", tmp_path / "backup", write)
    assert made.size > 20_000_000
    assert len(parts) > 3
    assert parts == sorted(set(parts)), "it never begins again"
    assert parts[-1] == 1
    with closing(sqlite3.connect(tmp_path / "backup")) as copy:
        assert copy.execute("SELECT COUNT(*) FROM filler").fetchone() == (5000,)


async def test_a_backup_that_is_cancelled_ends_and_leaves_nothing(tmp_path: Path, one_node: Topology) -> None:
    await one_node.start(FakeAuth, Wallet)
    await one_node.close()
    with closing(sqlite3.connect(tmp_path / "wallet.sqlite")) as filler:
        filler.execute("CREATE TABLE filler AS SELECT zeroblob(50000000)")
        filler.commit()
    parts, loop = list[float](), asyncio.get_running_loop()

    def cancel(part: float) -> None:
        parts.append(part)
        loop.call_soon_threadsafe(working.cancel)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result()  # until the cancellation has arrived

    working = asyncio.create_task(
        back_up(rental(database=DatabaseSettings(folder=str(tmp_path))), "wallet", tmp_path / "backup", cancel)
    )
    with pytest.raises(asyncio.CancelledError):
        await working
    assert len(parts) == 1
    assert not [file.name for file in tmp_path.iterdir() if "backup" in file.name]


class _Long(Terminal):
    code = """
import time
from config.cli.output import progress
with progress("copying x[/y].backup") as done:
    time.sleep(1.5)  # a spinner comes after one second
    done(0.25)
    time.sleep(1)  # the terminal shows the part meanwhile
"""


async def test_work_of_more_than_a_second_shows_how_far_it_is(tmp_path: Path) -> None:
    async with _Long(tmp_path) as terminal:
        await terminal.says("copying x[/y].backup: 25%")
        assert await terminal.ends() == 0
