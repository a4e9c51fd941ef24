"""Backups of a service's database, and their return as a new epoch of its stream.

A service that is put back has lost events that others have applied. So a restore begins a new epoch, in which subscribers
find the place where the histories part. The database that was there before is kept under another name.
"""

import asyncio
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from config import compose
from config.databases import migrate_all, stateful
from config.folder_locks import databases_locked
from config.settings import Settings
from runtime import CallboardError, Clock, Database, Random
from runtime.durable.stream import History, Stream, read_history
from runtime.service.service import Definition
from runtime.storage import StatementError
from runtime.storage.sqlite import SqliteDatabase

_LONGEST_NAME = 63
"""The characters of a name in PostgreSQL."""
_LIVE = '"Callboard live"'
"""The name of the live schema within the transaction that loads a backup."""
_ENDING_SECONDS = 2.0
_PAGES = 1024
"""The pages of SQLite that are copied in one step."""

Done = Callable[[float], None]
"""Takes how much is done, from 0 to 1."""


class Made(NamedTuple):
    """A backup that was made.

    Attributes:
        size: its bytes.
        head: the number of the last event in it.
    """

    size: int
    head: int


class Restored(NamedTuple):
    """A backup that was put back.

    Attributes:
        head: the number of the last event in it.
        lost: the number of the last event that was in the database which it replaces; None if there was none.
        kept: where that database is now; None if there was none.
    """

    head: int
    lost: int | None
    kept: str | None


async def back_up(settings: Settings, service: str, file: Path, done: Done) -> Made:
    """Write a backup of a service's database to a new file. The service may be running.

    Args:
        done: takes the part that is copied, from 0 to 1, on SQLite.

    Raises:
        CallboardError: if there is no database here, or if it cannot be read or written to the file.
    """
    _require_new(file)
    stateful(settings, service)
    url = compose.database_url(settings, service)
    with _replaced_at_end(file) as part:
        if url is None:
            head = await _copied(_existing(settings, service), part, done)
        else:
            head = await _head(compose.databases(settings)(service))
            await _run(
                url,
                "pg_dump",
                "--format=custom",
                f"--schema={_quoted(service)}",
                "--no-owner",
                "--no-privileges",
                f"--file={part}",
            )
    return Made(os.stat(file).st_size, head)


async def restore(settings: Settings, service: str, file: Path, done: Done) -> Restored:
    """Put a backup back, as a new epoch. The service must not be running.

    Args:
        done: takes the part that is copied, from 0 to 1, on SQLite.

    Raises:
        CallboardError: if it is not a backup of this service, or of a newer version, or if the service is running.
    """
    _require_file(file, service)
    definition = stateful(settings, service)
    with databases_locked(Path(settings.database.folder), [service], f"callboard restore {service}"):
        if compose.database_url(settings, service) is not None:
            return await _restore_postgres(settings, definition, file)
        return await _restore_sqlite(settings, definition, file, done)


def _require_new(file: Path) -> None:
    if file.exists():
        raise CallboardError(f"{file} exists already: choose a new file, so that no backup is overwritten")


def _require_file(file: Path, service: str) -> None:
    if not file.is_file():
        raise CallboardError(
            f"{file} {'is not a file' if file.exists() else 'does not exist'}: expected a file that `callboard backup {service} FILE` has written"
        )


def _existing(settings: Settings, service: str) -> Path:
    path = compose.database_file(settings, service)
    if not path.exists():
        raise CallboardError(f"{path} does not exist: run this command where {service} runs, with its settings")
    return path


@contextmanager
def _replaced_at_end(file: Path) -> Generator[Path, None, None]:
    """A file beside another one, whose place it takes if the `with` block succeeds."""
    part = file.with_name(f".{file.name}.part")
    try:
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(file)
    except OSError as error:
        raise CallboardError(f"{file}: cannot be written: {error.strerror}") from error
    finally:
        for file_of in (part, part.with_name(f"{part.name}-journal")):
            file_of.unlink(missing_ok=True)


async def _prepare(database: Database, definition: Definition, replaced: History | None) -> int:
    """Bring a database up to this version, and begin a new epoch. Return the number of its last event."""
    clock = Clock()
    stream = Stream(database, clock, Random(clock), lambda: 0)
    await database.open()
    try:
        await migrate_all(database, definition)
        await stream.fork(replaced)
        return (await stream.head()).seq
    finally:
        await database.close()


async def _head(database: Database) -> int:
    await database.open()
    try:
        row = await database.fetch_one("SELECT seq FROM callboard_stream_head")
        return 0 if row is None else row["seq"]
    finally:
        await database.close()


async def _history(database: Database) -> History | None:
    """Return the epochs of a stream that is about to be replaced, or None if the database cannot be read."""
    try:
        await database.open()
        return await _history_in(database)
    except CallboardError:
        return None
    finally:
        await database.close()


async def _history_in(database: Database) -> History | None:
    try:
        return await read_history(database)
    except StatementError:
        pass  # an earlier version has written it, or nobody has
    except CallboardError:
        return None
    try:
        rows = await database.fetch("SELECT epoch, begins FROM callboard_epochs ORDER BY ordinal")
        [head] = await database.fetch("SELECT seq FROM callboard_stream_head")
    except CallboardError:
        return None
    return History(tuple((row["epoch"], row["begins"]) for row in rows), {}, head["seq"])


# SQLite


async def _copied(source: Path, to: Path, done: Done) -> int:
    """Copy a database like `_copy_sqlite`, until it is cancelled."""
    stop = threading.Event()

    def go_on(part: float) -> None:
        if stop.is_set():
            raise InterruptedError
        done(part)

    copying = asyncio.create_task(asyncio.to_thread(_copy_sqlite, source, to, go_on))
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.gather(copying, return_exceptions=True)
        raise


def _copy_sqlite(source: Path, to: Path, done: Done) -> int:
    """Copy a database into one file, as it is at one moment. Return the number of the last event in its stream."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as read,
            closing(sqlite3.connect(to)) as written,
        ):
            read.execute("BEGIN")
            read.execute("SELECT 1 FROM sqlite_schema")  # a commit between two steps would make the copy begin again
            read.backup(written, pages=_PAGES, progress=lambda _, left, pages: done(1 - left / max(pages, 1)))
            written.execute("PRAGMA journal_mode=DELETE")  # all of it in one file
            (result,) = written.execute("PRAGMA quick_check(1)").fetchone()
            if result != "ok":
                raise CallboardError(f"{source} is damaged ({result}): use an earlier backup")
            row = written.execute("SELECT seq FROM callboard_stream_head").fetchone()
    except sqlite3.Error as error:
        raise CallboardError(f"{source} is not a database of a service: {error}") from error
    return 0 if row is None else int(row[0])


def _check_owner(path: Path, source: Path, service: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        owners = {row[0] for row in connection.execute("SELECT DISTINCT grp FROM callboard_migrations")} - {"callboard"}
    if owners - {service}:
        raise CallboardError(f"{source} is a backup of {' and '.join(sorted(owners))}: expected one of {service}")


async def _restore_sqlite(settings: Settings, definition: Definition, file: Path, done: Done) -> Restored:
    service = definition.contract.name
    path = compose.database_file(settings, service)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replaced = await _history(SqliteDatabase(path)) if path.exists() else None
    with _replaced_at_end(path.with_name(f"{path.stem}.restored.sqlite")) as part:
        await _copied(file, part, done)
        _check_owner(part, file, service)
        head = await _prepare(SqliteDatabase(part), definition, replaced)
    prepared = path.with_name(f"{path.stem}.restored.sqlite")
    like = os.stat(path if path.exists() else path.parent)
    if os.geteuid() == 0:
        os.chown(prepared, like.st_uid, like.st_gid)  # the service's user, also if root restores
    kept = _keep(path) if path.exists() else None
    prepared.replace(path)
    _sync_folder(path.parent)
    return Restored(head, None if replaced is None else replaced.head, None if kept is None else str(kept))


def _keep(path: Path) -> Path:
    """Give a database a second name, with everything in one file. The first name stays until another file takes it."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error:
        pass  # it is damaged, and kept as it is
    kept = path.with_name(f"{path.stem}.{_stamp()}.replaced.sqlite")
    os.link(path, kept)
    for suffix in ("-wal", "-shm"):  # only a damaged database still has them
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(kept.with_name(kept.name + suffix))
    return kept


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp() -> str:
    return f"{Clock().now():%Y%m%dt%H%M%S%f}"


# PostgreSQL


async def _restore_postgres(settings: Settings, definition: Definition, file: Path) -> Restored:
    """Load a backup beside the schema of the service, prepare it, and exchange the two in one transaction."""
    from runtime.storage.postgres import PostgresDatabase

    service = definition.contract.name
    url = compose.database_url(settings, service)
    assert url is not None
    if settings.database.pooled:
        raise CallboardError(
            f"whether {service} is running cannot be seen through a pooler: name the server itself in CALLBOARD_DATABASE__URL, and set CALLBOARD_DATABASE__POOLED=false"
        )
    server = PostgresDatabase(url)
    await server.open()
    try:
        await _refuse_if_in_use(server, service)
        role = await _role_of(server, service)
    finally:
        await server.close()
    await _psql(url, f"--command=CREATE SCHEMA IF NOT EXISTS {_quoted(service)} AUTHORIZATION {_quoted(role)}")
    live = PostgresDatabase(url, service)
    replaced = await _history(live)
    # no contract has a name with capitals
    loaded, kept = f"Callboard restores {service}"[:_LONGEST_NAME], f"Callboard {_stamp()} {service}"[:_LONGEST_NAME]
    await _load(url, service, _quoted(role), loaded, file)
    separator = "&" if "?" in url else "?"
    head = await _prepare(PostgresDatabase(f"{url}{separator}role={quote(role)}", loaded), definition, replaced)
    exchange = (
        f"ALTER SCHEMA {_quoted(service)} RENAME TO {_quoted(kept)}; ALTER SCHEMA {_quoted(loaded)} RENAME TO {_quoted(service)}"
    )
    await _psql(url, f"--command={exchange}")
    return Restored(head, None if replaced is None else replaced.head, f"the schema {_quoted(kept)}")


async def _role_of(server: Database, service: str) -> str:
    """Return the role that owns, or is to own, the schema of a service."""
    rows = await server.fetch(
        "SELECT rolname FROM pg_roles JOIN pg_namespace ON pg_roles.oid = nspowner WHERE nspname = $1", service
    )
    rows = rows or await server.fetch("SELECT rolname FROM pg_roles WHERE rolname = $1", service)
    rows = rows or await server.fetch("SELECT current_user AS rolname")
    return str(rows[0]["rolname"])


async def _load(url: str, service: str, owner: str, loaded: str, file: Path) -> None:
    """Load a backup into a separate schema."""
    schema, aside = _quoted(service), _quoted(loaded)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "restore.sql"
        options = ("--no-owner", "--no-privileges", f"--schema={service}", f"--file={script}", str(file))
        try:
            await _run(url, "pg_restore", *options, connects=False)
        except CallboardError as error:
            raise CallboardError(f"{file} is not a backup of {service}: {error}") from error
        text = script.read_text(encoding="utf-8")
        if not any(f"CREATE TABLE {name}.callboard_migrations" in text for name in (schema, service)):
            raise CallboardError(
                f"{file} is not a backup of {service}: expected a file that `callboard backup {service} FILE` has written"
            )
        # the statements name the schema, so that it has the place of the live one while they run; nobody sees that
        begin = (
            f"DROP SCHEMA IF EXISTS {aside} CASCADE; ALTER SCHEMA {schema} RENAME TO {_LIVE}; "
            f"CREATE SCHEMA {schema} AUTHORIZATION {owner}; SET ROLE {owner}"
        )
        end = f"RESET ROLE; ALTER SCHEMA {schema} RENAME TO {aside}; ALTER SCHEMA {_LIVE} RENAME TO {schema}"
        await _psql(url, f"--command={begin}", f"--file={script}", f"--command={end}")


async def _refuse_if_in_use(server: Database, service: str) -> None:
    ends = asyncio.get_running_loop().time() + _ENDING_SECONDS
    while await server.fetch(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1 LIMIT 1",
        f"callboard {service}",
    ):
        if asyncio.get_running_loop().time() > ends:  # by then, connections of a process that has just ended are gone
            raise CallboardError(f"{server} is in use by {service}: stop all its instances first")
        await asyncio.sleep(0.1)


async def _psql(url: str, *arguments: str) -> None:
    """Run statements and files in one transaction."""
    try:
        await _run(url, "psql", "--quiet", "--no-psqlrc", "--single-transaction", "--set=ON_ERROR_STOP=1", *arguments)
    except CallboardError as error:
        if "permission denied for database" not in str(error):
            raise
        raise CallboardError(f"{error}: name the owner of the database in CALLBOARD_DATABASE__URL for this command") from error


async def _run(url: str, program: str, *arguments: str, connects: bool = True) -> None:
    """Run a program of PostgreSQL. The password is passed in its environment, where other users do not see it."""
    from runtime.storage.postgres_url import PostgresUrl

    found = shutil.which(program)
    if found is None:
        raise CallboardError(
            f"{program} is not installed here: install PostgreSQL's client programs (Debian: apt-get install postgresql-client)"
        )
    address, password = PostgresUrl(url).without_password()
    environment = {**os.environ, **({} if password is None else {"PGPASSWORD": password})}
    given = [f"--dbname={address}", *arguments] if connects else list(arguments)
    process = await asyncio.create_subprocess_exec(
        found, *given, env=environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no reason was given"]
        error = next((line for line in lines if "error" in line.lower()), lines[-1])  # there may be notices before it
        raise CallboardError(f"{program} has failed: {error}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
