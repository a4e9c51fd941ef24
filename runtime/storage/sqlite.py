"""SQLite: one connection that writes and one that reads, in WAL mode.

A hop to the thread of a connection costs more than most statements, and the fsync of a commit more than both. So
transactions that queue for the writer share one COMMIT (`writer.py`), and statements that are known to be quick need no hop,
nor does the BEGIN before them (`sqlite_statements.py`).
"""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from runtime.storage.database import Database, DatabaseError, Guard, Holder, Row, Transaction
from runtime.storage.sqlite_connection import DO_NOT_WAIT, WAIT_FOR_LOCKS, SqliteConnection
from runtime.storage.sqlite_statements import SqliteStatements
from runtime.storage.sqlite_transaction import SqliteTransaction
from runtime.storage.writer import Writer

__all__ = ["SqliteDatabase", "SqliteFolder"]

_VACUUMED = 500
"""The pages that one step releases, of 4 KiB each."""
_KEPT_FREE = 1_000
"""The free pages that stay in the file: the next rows need them."""


class SqliteDatabase(Database):
    """A database in one file.

    Args:
        path: the file. Its folder must exist.
        durable: whether a commit survives a power failure (`synchronous=FULL`), or only the end of the process (`NORMAL`).
    """

    system: str = "sqlite"

    def __init__(self, path: Path | str, *, durable: bool = True) -> None:
        super().__init__()
        self.path: Path = Path(path)
        self._durable = durable
        self._writer: SqliteConnection | None = None
        self._reader: SqliteConnection | None = None
        self.statements: SqliteStatements = SqliteStatements()
        self.turns: Writer = Writer(lambda: self.writer, lambda: self.log, lambda: self.commits)

    def __repr__(self) -> str:
        return f"<SqliteDatabase {self.path} [{'CLOSED' if self._writer is None else 'OPEN'}]>"

    async def open(self) -> None:
        try:
            self._make_private()
        except OSError as error:
            raise DatabaseError(f"{self.path}: cannot be opened: {error.strerror}") from error
        synchronous = "FULL" if self._durable else "NORMAL"
        self._writer = await self._connect(
            # the first one counts for a new file only
            f"PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}; PRAGMA foreign_keys=ON; {DO_NOT_WAIT}"
        )
        self._reader = await self._connect("PRAGMA query_only=ON;")

    def _make_private(self) -> None:
        """Let nobody but the owner read or write the file. SQLite gives `-wal` and `-shm` the mode of the file."""
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        for path in (self.path, *(self.path.with_name(f"{self.path.name}-{suffix}") for suffix in ("wal", "shm"))):
            if path.exists() and path.stat().st_uid == os.geteuid():
                path.chmod(0o600)

    async def _connect(self, pragmas: str) -> SqliteConnection:
        connection = SqliteConnection(self.path)
        await connection.open(pragmas)
        return connection

    async def close(self) -> None:
        self.turns.stop()
        writer, reader, self._writer, self._reader = self._writer, self._reader, None, None
        for connection in (writer, reader):
            if connection is not None:
                await connection.close()

    def transaction(self, guard: Guard | None = None, holder: Holder | None = None) -> AbstractAsyncContextManager[Transaction]:
        return SqliteTransaction(self, guard, holder or self.holder(sys._getframe(1)))  # pyright: ignore[reportPrivateUsage]

    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        statement, connection = self.statements.find(sql), self._reading()
        if not (statement.quick and connection.idle):
            return await connection.run(lambda raw: statement.timed_in_thread(statement.fetch, raw, params))
        if connection.must_yield():
            await asyncio.sleep(0)
            return await self._fetch(sql, params)
        return connection.call(lambda raw: statement.timed_here(statement.fetch, raw, params))

    async def scan(self, each: Callable[[Row], bool], sql: str, *params: Any) -> None:
        statement = self.statements.find(sql)
        await self._reading().run(lambda raw: statement.scan(raw, each, params))

    @property
    def contended(self) -> bool:
        return self.turns.contended

    async def script(self, statements: str) -> None:
        await self.turns.alone("a migration", lambda raw: _script(raw, statements))

    async def shrink(self) -> None:
        while await self.turns.alone("the release of free space", _vacuum):
            await asyncio.sleep(0)

    @property
    def is_open(self) -> bool:
        """Whether the database is open."""
        return self._writer is not None

    @property
    def writer(self) -> SqliteConnection:
        """The connection that writes. Raises `DatabaseError` if the database is closed."""
        if self._writer is None:
            raise DatabaseError(f"{self.path}: is closed")
        return self._writer

    def _reading(self) -> SqliteConnection:
        if self._reader is None:
            raise DatabaseError(f"{self.path}: is closed")
        return self._reader


class SqliteFolder:
    """Returns each service's own database, `<folder>/<service>.sqlite`. Pass it to `Node` as `databases=`.

    Args:
        folder: the folder, which is created when the first database is needed.
        durable: as for `SqliteDatabase`.

    Raises:
        DatabaseError: when a database is needed and the folder cannot be created.
    """

    def __init__(self, folder: Path | str, *, durable: bool = True) -> None:
        self._folder = Path(folder)
        self._durable = durable

    def __call__(self, service: str) -> SqliteDatabase:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DatabaseError(f"{self._folder}: the folder cannot be made: {error.strerror}") from error
        return SqliteDatabase(self._folder / f"{service}.sqlite", durable=self._durable)


def _vacuum(raw: sqlite3.Connection) -> bool:
    """Release some free pages. Return whether there are more than new rows will use."""
    raw.executescript(f"PRAGMA incremental_vacuum({_VACUUMED})")  # `execute` would release one page
    (automatic,), (free,) = (raw.execute(f"PRAGMA {name}").fetchone() for name in ("auto_vacuum", "freelist_count"))
    return bool(automatic) and free > _KEPT_FREE


def _script(raw: sqlite3.Connection, statements: str) -> None:
    try:
        raw.executescript(f"{WAIT_FOR_LOCKS} BEGIN IMMEDIATE; {DO_NOT_WAIT}\n{statements}\n;COMMIT;")
    except sqlite3.Error:
        if raw.in_transaction:
            raw.rollback()
        raise
