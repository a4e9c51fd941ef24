"""SQLite through aiosqlite: one connection that writes and one that reads, in WAL mode.

A hop to the thread of a connection costs more than most statements, and the fsync of a commit more than both. So the BEGIN
of a transaction shares the hop of its first statement, and transactions that queue for the writer share one COMMIT
(`writer.py`).
"""

import asyncio
import functools
import os
import re
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from runtime.contract.errors import UsageError
from runtime.storage.database import (
    ConstraintError,
    Database,
    DatabaseError,
    Guard,
    Holder,
    MissingTable,
    Row,
    StatementError,
    Superseded,
    Transaction,
)
from runtime.storage.values import blame, bound
from runtime.storage.writer import Group, Turn, Writer
from runtime.tasks import finish

__all__ = ["SqliteDatabase", "SqliteFolder"]

T = TypeVar("T")


class SqliteDatabase(Database):
    """A database in one file.

    Args:
        path: the file. Its folder must exist.
        durable: whether a commit survives a power failure (`synchronous=FULL`), or only the end of the process (`NORMAL`).
    """

    def __init__(self, path: Path | str, *, durable: bool = True) -> None:
        super().__init__()
        self.path: Path = Path(path)
        self._durable = durable
        self._writer: _Connection | None = None
        self._reader: _Connection | None = None
        self.turns: Writer = Writer(self.hop, lambda: self.log)

    def __repr__(self) -> str:
        return f"<SqliteDatabase {self.path} [{'CLOSED' if self._writer is None else 'OPEN'}]>"

    async def open(self) -> None:
        try:
            self._make_private()
        except OSError as error:
            raise DatabaseError(f"{self.path}: cannot be opened: {error.strerror}") from error
        synchronous = "FULL" if self._durable else "NORMAL"
        self._writer = await self._connect(f"PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}; PRAGMA foreign_keys=ON;")
        self._reader = await self._connect("PRAGMA query_only=ON;")

    def _make_private(self) -> None:
        """Let nobody but the owner read or write the file. SQLite gives `-wal` and `-shm` the mode of the file."""
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        for path in (self.path, *(self.path.with_name(f"{self.path.name}-{suffix}") for suffix in ("wal", "shm"))):
            if path.exists() and path.stat().st_uid == os.geteuid():
                path.chmod(0o600)

    async def _connect(self, pragmas: str) -> "_Connection":
        connection = _Connection(lambda: sqlite3.connect(self.path, isolation_level=None, timeout=5), 64)
        try:
            await connection
            await connection.run(
                lambda raw: raw.executescript(f"PRAGMA busy_timeout=5000; {pragmas} SELECT count(*) FROM sqlite_master;")
            )
        except BaseException as error:
            await finish(connection.close())
            if isinstance(error, sqlite3.Error):
                raise DatabaseError(f"{self.path}: cannot be opened: {error}") from error
            raise
        return connection

    async def close(self) -> None:
        self.turns.stop()
        writer, reader, self._writer, self._reader = self._writer, self._reader, None, None
        for connection in (writer, reader):
            if connection is not None:
                await connection.close()

    def transaction(self, guard: Guard | None = None, holder: Holder | None = None) -> AbstractAsyncContextManager[Transaction]:
        return self._transaction(guard, holder or self.holder(sys._getframe(1)))  # pyright: ignore[reportPrivateUsage]

    @asynccontextmanager
    async def _transaction(self, guard: Guard | None, holder: Holder) -> AsyncGenerator[Transaction, None]:
        if self.running() is not None:
            raise UsageError(
                "this task is in a transaction on this database already: use the handler's tx instead of self.db.transaction()"
            )
        transaction = _SqliteTransaction(self, guard, holder)
        token = self.current.set(transaction)
        try:
            yield transaction
            transaction.require_finished()
            if transaction.events:
                self._append(transaction)
        except BaseException:
            await finish(transaction.roll_back())
            raise
        else:
            await finish(transaction.commit())
        finally:
            transaction.made.close()
            self.current.reset(token)
            if transaction.committed and transaction.events and self.after_commit is not None:
                self.after_commit(transaction)

    def _append(self, transaction: "_SqliteTransaction") -> None:
        if self.before_commit is None:
            raise UsageError("there is no stream here to publish events to: a service's own database has one, once it runs")
        self.before_commit(transaction)

    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        if self._reader is None:
            raise DatabaseError(f"{self.path}: is closed")
        return await self._on(self._reader, lambda raw: _fetch(raw, sql, params))

    async def scan(self, each: Callable[[Row], bool], sql: str, *params: Any) -> None:
        if self._reader is None:
            raise DatabaseError(f"{self.path}: is closed")
        await self._on(self._reader, lambda raw: _scan(raw, each, sql, params))

    @property
    def contended(self) -> bool:
        return self.turns.contended

    async def script(self, statements: str) -> None:
        await self.turns.alone(lambda raw: _script(raw, statements))

    @property
    def writer(self) -> "_Connection":
        if self._writer is None:
            raise DatabaseError(f"{self.path}: is closed")
        return self._writer

    async def _on(self, connection: "_Connection", function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await connection.run(function)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise _translation(self.path, error) from error

    async def hop(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in the thread of the writing connection. Raises `DatabaseError`."""
        return await self._on(self.writer, function)


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


class _SqliteTransaction(Transaction, Turn):
    def __init__(self, database: SqliteDatabase, guard: Guard | None, holder: Holder) -> None:
        Transaction.__init__(self)
        Turn.__init__(self, holder.title, holder.deadline)
        self._database = database
        self._guard = guard
        self._group: Group | None = None
        self._lost: DatabaseError | Superseded | None = None
        self._beginning = asyncio.Lock()
        self._giving_up: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self._group is not None

    async def _execute(self, sql: str, params: Sequence[Any]) -> int:
        return await self._run(lambda raw: _execute(raw, sql, params))

    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        return await self._run(lambda raw: _fetch(raw, sql, params))

    async def _run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        if self.ended:
            raise UsageError("this transaction has ended: it lives as long as the handler that was given it")
        if self._lost is not None:
            raise self._lost
        if self._group is None:
            async with self._beginning:  # tasks of one handler may race for the first statement
                if self._group is None:
                    return await self._begin(function)
        return await self._hop(function)

    async def _begin(self, function: Callable[[sqlite3.Connection], T]) -> T:
        group = await self._database.turns.take_turn(self)
        if self.ended:  # the handler has returned, but left a task behind
            await finish(self._database.turns.pass_on(group))
            raise UsageError("this transaction has ended while a statement waited for its turn")
        self._group = group
        try:
            return await self._hop(functools.partial(_begin_and, self._guard, function))
        except asyncio.CancelledError:
            self._lost = DatabaseError(
                "the transaction's first statement was cancelled"
            )  # the guard may have run, but its result is unknown
            raise

    async def _hop(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._database.hop(functools.partial(_inside, function))
        except StatementError:
            raise
        except (DatabaseError, Superseded) as error:
            self._lost = self._lost or error
            raise self._lost from None

    def expire(self) -> None:
        if self._group is None or self._giving_up is not None:
            return
        if not self.ended:
            self._lost = DatabaseError(f"the transaction of {self.title} took longer than its deadline, and was rolled back")
            self._giving_up = asyncio.ensure_future(self._database.turns.give_up_turn(self._group))
        self._database.writer.interrupt_now()  # a statement that still runs

    async def _give_up(self, group: Group) -> None:
        await (self._giving_up or self._database.turns.give_up_turn(group))

    async def commit(self) -> None:
        """Commit. A transaction that ran no statement and has nothing to write costs nothing."""
        if self._group is None and (self._guard is not None or self.final):
            try:
                await self._run(_nothing)
            except (DatabaseError, Superseded) as error:
                self._lost = error
        self.ended = True
        if self._group is not None:
            if self._lost is not None:
                await self._give_up(self._group)
                raise self._lost
            await self._database.turns.end_turn(self._group, self._write_final)
        self.committed = True

    async def roll_back(self) -> None:
        self.ended = True
        if self._group is not None:
            await self._give_up(self._group)

    def _write_final(self, raw: sqlite3.Connection) -> None:
        for sql, params in self.final:
            self.outcome = _fetch(raw, sql, params)


class _Connection(aiosqlite.Connection):
    """A connection that runs several statements in one hop. Only this class uses aiosqlite's private names."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], iter_chunk_size: int) -> None:
        super().__init__(connector, iter_chunk_size)
        self._thread.daemon = True  # a program that fails before it closes its database must still end

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in the connection's thread. Once awaited it runs, even if the caller is cancelled."""
        found: T = await self._execute(function, self._conn)  # type: ignore[no-untyped-call]
        return found

    def interrupt_now(self) -> None:
        """Let the statement that runs in the thread fail, if there is one."""
        if self._connection is not None:
            self._connection.interrupt()


def _translation(path: Path, error: Exception) -> DatabaseError:
    """Translate an error of SQLite by its result code (sqlite.org/rescode.html)."""
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintError(str(error))
    if str(error).startswith("no such table: "):
        return MissingTable(f"{error}: create it in a file in the service's folder migrations/, such as 0001_{path.stem}.sql")
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_READONLY:
        return StatementError(f"{error}: fetch() only reads: write through tx, or with self.db.execute")
    wrong = code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)
    if wrong or isinstance(error, sqlite3.InterfaceError | sqlite3.DataError | OverflowError):
        return StatementError(str(error))
    if isinstance(error, UnicodeError) or (isinstance(error, sqlite3.ProgrammingError) and "closed" not in str(error)):
        return StatementError(str(error))
    return DatabaseError(f"{path}: {error}")  # a ValueError means that the connection is closed


def _run(raw: sqlite3.Connection, sql: str, params: Sequence[Any]) -> sqlite3.Cursor:
    try:
        return raw.execute(_numbered(sql), bound(params))
    except (OverflowError, UnicodeEncodeError) as error:
        raise blame(params) or error from None


def _execute(raw: sqlite3.Connection, sql: str, params: Sequence[Any]) -> int:
    """Run a statement to its end, and return the number of rows that it changed, without those that its triggers changed."""
    before = raw.total_changes
    cursor = _run(raw, sql, params)
    if cursor.description is None and cursor.rowcount >= 0:
        return cursor.rowcount
    for _ in cursor:  # with RETURNING, sqlite3 does not count before the last row, and after WITH not at all
        pass
    return raw.execute("SELECT changes()").fetchone()[0] if raw.total_changes != before else 0


def _fetch(raw: sqlite3.Connection, sql: str, params: Sequence[Any]) -> list[Row]:
    cursor = _run(raw, sql, params)
    rows = cursor.fetchall()
    if not rows:
        return []
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _scan(raw: sqlite3.Connection, each: Callable[[Row], bool], sql: str, params: Sequence[Any]) -> None:
    with closing(_run(raw, sql, params)) as cursor:  # an open one would keep the database's log from being shortened
        names = [column[0] for column in cursor.description]
        for row in cursor:
            if not each(dict(zip(names, row, strict=True))):
                return


def _begin_and(guard: Guard | None, function: Callable[[sqlite3.Connection], T], raw: sqlite3.Connection) -> T:
    if not raw.in_transaction:
        raw.execute("BEGIN IMMEDIATE")
    raw.execute("SAVEPOINT one")
    if guard is not None and _execute(raw, guard.sql, guard.params) != 1:
        raise Superseded("another transaction has done this work")
    return function(raw)


def _nothing(_: sqlite3.Connection) -> None:
    """Run only the guard."""


def _inside(function: Callable[[sqlite3.Connection], T], raw: sqlite3.Connection) -> T:
    """Run a statement. If its failure ended the whole transaction (disk full, ON CONFLICT ROLLBACK), raise `DatabaseError`."""
    begun = raw.in_transaction
    try:
        return function(raw)
    except sqlite3.Error as error:
        if begun and not raw.in_transaction:
            raise DatabaseError(f"the database rolled the transaction back: {error}") from error
        raise


def _script(raw: sqlite3.Connection, statements: str) -> None:
    try:
        raw.executescript(f"BEGIN IMMEDIATE;\n{statements}\n;COMMIT;")
    except sqlite3.Error:
        if raw.in_transaction:
            raw.rollback()
        raise


_TOKEN = re.compile(
    r"""
      '(?:[^']|'')*'          # text, also as in x'00'
    | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]   # quoted names
    | --[^\n]* | /\*.*?(?:\*/|\Z)                    # comments
    | [^\W\d][\w$]*          # words
    | \$(?P<number>\d+)
    """,
    re.VERBOSE | re.DOTALL,
)
"""The tokens of SQLite (sqlite.org/lang_expr.html) in which a `$` may occur, and a parameter."""


@functools.lru_cache(1024)
def _numbered(sql: str) -> str:
    """Return a statement with the parameters `$1` as SQLite's `?1`. Text, quoted names, and comments stay as they are."""
    return _TOKEN.sub(lambda token: token[0] if token["number"] is None else f"?{token['number']}", sql)
