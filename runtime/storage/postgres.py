"""PostgreSQL: a schema of its own for each service, which several instances share.

The transactions of a service take turns, also those of several processes: each begins by taking the service's lock. So a handler
sees what SQLite would show it, and code that reads before it writes is right on both engines (decision 12).
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import blake2b
from typing import Any

from runtime.storage.database import CommitUnknown, Database, DatabaseError, Guard, Holder, Row, Transaction
from runtime.storage.postgres_connection import ConnectionGone, PostgresConnection, Statement, connect
from runtime.storage.postgres_transaction import Mark, PostgresTransaction
from runtime.storage.postgres_url import PostgresUrl

__all__ = ["PostgresDatabase"]

_READ_TIMEOUT = 30.0
_SCRIPT_TIMEOUT = 600.0
"""The seconds that a migration may take, with the wait for others that are being applied."""
_RESOLVE_SECONDS = 10.0
"""The seconds for which the outcome of a commit is asked for after its connection was lost."""
_IDLE_SECONDS = 5.0
"""The seconds between two statements of a transaction after which the server ends it: a process that is frozen, or whose machine is
gone, must not keep the service's lock from the other instances."""
_MARKED_HOURS = 1
"""The hours for which the mark of a commit is kept. Its transaction asks for it within seconds."""
_READERS = 8
"""The connections that read at once."""
_CACHED = 200
"""The statements that a connection keeps prepared."""


class PostgresDatabase(Database):
    """A service's schema in a database of PostgreSQL.

    Args:
        url: the database, with the name and the password of the user. Several hosts are tried in turn.
        schema: the schema, which is created if the user may do that; None for the user's own `search_path`.
        pooled: whether a pooler such as PgBouncer may give each transaction another connection to the server. Then nothing is kept in
            a connection between transactions.

    Raises:
        UsageError: if the URL is none.
    """

    is_shared: bool = True
    system: str = "postgresql"

    def __init__(self, url: str, schema: str | None = None, *, pooled: bool = False) -> None:
        super().__init__()
        self._url = PostgresUrl(url)
        self._schema = schema
        self._pooled = pooled
        self._known: dict[str, Statement] = {}
        self._writer: PostgresConnection | None = None
        self._marks = False
        self._turn = asyncio.Lock()
        self._held_by: PostgresConnection | None = None
        self._waiting = 0
        self._made: set[PostgresConnection] = set()
        self._idle: list[PostgresConnection] = []
        self._reading = asyncio.Semaphore(_READERS)
        self._open = False
        name = f"callboard {self._url.database} {schema or ''}"
        self._lock = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)

    def __repr__(self) -> str:
        return f"<PostgresDatabase {self} [{'OPEN' if self._open else 'CLOSED'}]>"

    def __str__(self) -> str:
        return f"{self._url!r}{'' if self._schema is None else f' (schema {self._schema})'}"

    async def open(self) -> None:
        self._open = True
        try:
            self._writer = await self._connect()
            if self._schema is not None:
                exists = await self._writer.fetch("SELECT 1 FROM pg_namespace WHERE nspname = $1", (self._schema,), _READ_TIMEOUT)
                if not exists:
                    await self._locked(self._writer, f"CREATE SCHEMA IF NOT EXISTS {_quoted(self._schema)}")
        except BaseException:  # also a cancellation
            await self.close()
            raise

    async def close(self) -> None:
        self._open = False
        self._writer, self._idle = None, []
        for connection in list(self._made):  # also those that are in use
            await connection.close()
        self._made.clear()

    async def _connect(self, *, reads: bool = False) -> PostgresConnection:
        if not self._open:
            raise DatabaseError(f"{self}: is closed")
        settings = {"application_name": f"callboard {self._schema or ''}".strip()}
        if not self._pooled:
            settings |= {"default_transaction_read_only": "on"} if reads else {}
            if self._schema is not None:
                settings["search_path"] = _quoted(self._schema)
        made = await connect(self._url, self._known, settings, 0 if self._pooled else _CACHED)
        self._made = {one for one in self._made if one.is_usable} | {made}
        if not self._open:
            await made.close()
            raise DatabaseError(f"{self}: is closed")
        return made

    def transaction(self, guard: Guard | None = None, holder: Holder | None = None) -> AbstractAsyncContextManager[Transaction]:
        return PostgresTransaction(self, guard, holder or self.holder(sys._getframe(1)))  # pyright: ignore[reportPrivateUsage]

    # Turns at the writing connection

    @property
    def contended(self) -> bool:
        return self._waiting > 0

    async def begin(self, holder: Holder, seconds: float) -> PostgresConnection:
        """Wait for the turn, begin a transaction, and return its connection. Raises `DatabaseError`."""
        self._waiting += 1
        ends = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(ends):
                await self._turn.acquire()
        except TimeoutError:
            raise DatabaseError(f"{holder.title} did not get the write transaction before its deadline") from None
        finally:
            self._waiting -= 1
        try:
            async with asyncio.timeout_at(ends):
                connection = await self._begun(seconds)
        except TimeoutError:
            self._turn.release()
            raise DatabaseError(f"{self} did not answer before the deadline of {holder.title}") from None
        except BaseException:  # also a cancellation
            self._turn.release()
            raise
        self._held_by = connection
        return connection

    async def _begun(self, seconds: float) -> PostgresConnection:
        """Begin on the writing connection, or on a new one if that has ended: nothing has happened yet."""
        writer = self._writer
        if writer is not None and writer.is_usable:
            try:
                await writer.run(self._begin(seconds), seconds)
            except ConnectionGone:
                pass
            except BaseException:  # also a cancellation
                writer.terminate()
                raise
            else:
                return writer
        if writer is not None:
            writer.terminate()
        made = self._writer = await self._connect()
        try:
            await made.run(self._begin(seconds), seconds)
        except BaseException:  # also a cancellation
            made.terminate()
            raise
        return made

    def _begin(self, seconds: float) -> str:
        """Return the statements that begin a transaction, as one message.

        What it reads is what the others have committed before it got the lock, whatever isolation the server has by default.
        """
        path = "" if self._schema is None or not self._pooled else f"SET LOCAL search_path TO {_quoted(self._schema)};"
        statement, idle = max(int(seconds * 1000), 1), max(int(min(seconds, _IDLE_SECONDS) * 1000), 1)
        limits = f"SET LOCAL statement_timeout={statement};SET LOCAL idle_in_transaction_session_timeout={idle};"
        return f"BEGIN ISOLATION LEVEL READ COMMITTED;{limits}{path}SELECT pg_advisory_xact_lock({self._lock})"

    async def begin_again(self, connection: PostgresConnection, seconds: float) -> None:
        """Roll back, and begin again. Another process may have had its turn in between. Raises `DatabaseError`."""
        await connection.run(f"ROLLBACK;{self._begin(seconds)}", seconds)

    async def end(self, connection: PostgresConnection, *, roll_back: bool) -> None:
        """Pass the turn on, after a rollback if one is needed."""
        if roll_back and connection.is_usable:
            try:
                await connection.run("ROLLBACK", 1.0)
            except DatabaseError:
                connection.terminate()
        elif not connection.is_usable:
            connection.terminate()
        self.pass_on(connection)

    def pass_on(self, connection: PostgresConnection) -> None:
        """Let the next transaction begin, if this one still has the turn."""
        if self._held_by is connection:
            self._held_by = None
            self._turn.release()

    async def marks_commits(self, connection: PostgresConnection) -> bool:
        """Return whether there is the table for marks of transactions without events. The migrations of the runtime make it."""
        if not self._marks:
            self._marks = bool(
                await connection.fetch("SELECT 1 WHERE to_regclass('callboard_commits') IS NOT NULL", (), _READ_TIMEOUT)
            )
        return self._marks

    async def has_committed(self, mark: Mark | None) -> bool:
        """Return whether a transaction has been committed whose connection was lost in its commit.

        The server does not know it by its id: after a crash, and on a standby that takes over, another transaction may have the same one.

        Args:
            mark: finds a row that it has written; None if there is none.

        Raises:
            CommitUnknown: if the server cannot be asked.
        """
        if mark is None:
            raise CommitUnknown("the connection was lost in the commit, whose outcome is unknown")
        loop = asyncio.get_running_loop()
        ends = loop.time() + _RESOLVE_SECONDS
        while True:
            try:
                return await self._has_row(mark, max(ends - loop.time(), 1.0))
            except DatabaseError as error:
                if loop.time() > ends or not self._open:
                    raise CommitUnknown(f"the connection was lost in the commit, whose outcome is unknown: {error}") from error
            await asyncio.sleep(0.1)

    async def _has_row(self, mark: Mark, seconds: float) -> bool:
        """Return whether the row is there, once the transaction that writes it has ended: until then, it has the service's lock."""
        connection = await self._connect()
        try:
            await connection.run(self._begin(seconds), seconds)
            return bool(await connection.fetch(mark.sql, mark.params, seconds))
        finally:
            connection.terminate()

    # Reading

    @asynccontextmanager
    async def _reader(self, *, in_transaction: bool = False) -> AsyncGenerator[PostgresConnection, None]:
        """A connection that reads; behind a pooler, in a transaction, so that all of it is on one connection to the server."""
        async with self._reading:
            connection = self._idle.pop() if self._idle else await self._connect(reads=True)
            begin = in_transaction or self._pooled
            try:
                if begin:
                    path = "" if self._schema is None or not self._pooled else f"SET LOCAL search_path TO {_quoted(self._schema)}"
                    await connection.run(f"BEGIN READ ONLY;{path}", _READ_TIMEOUT)
                yield connection
            finally:
                if begin and connection.is_usable:
                    await connection.run("ROLLBACK", _READ_TIMEOUT)
                if connection.is_usable and self._open:
                    self._idle.append(connection)
                else:
                    connection.terminate()

    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        while True:
            was_idle = bool(self._idle)
            try:
                async with self._reader() as connection:
                    return await connection.fetch(sql, params, _READ_TIMEOUT)
            except ConnectionGone:
                if not was_idle:  # a connection that was idle may have ended long ago, and a read can be made again
                    raise

    async def scan(self, each: Callable[[Row], bool], sql: str, *params: Any) -> None:
        async with self._reader(in_transaction=True) as connection:
            values = await connection.values(sql, params, _READ_TIMEOUT)
            async for record in connection.cursor(sql, values):
                if not each(dict(record)):
                    return

    async def shrink(self) -> None:
        """Delete the marks of commits that nobody asks for any more. The server's autovacuum frees the space."""
        if self._marks:
            await self.execute(f"DELETE FROM callboard_commits WHERE at < now() - interval '{_MARKED_HOURS} hours'")

    # Migrations

    async def script(self, statements: str) -> None:
        holder = self.holder(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        connection = await self.begin(holder, _SCRIPT_TIMEOUT)
        try:
            await connection.run(f"{statements}\n;COMMIT", _SCRIPT_TIMEOUT)
        except BaseException:  # also a cancellation
            await self.end(connection, roll_back=True)
            raise
        self._known.clear()
        await self.end(connection, roll_back=False)

    async def _locked(self, connection: PostgresConnection, statements: str) -> None:
        await connection.run(f"BEGIN;SELECT pg_advisory_xact_lock({self._lock});{statements};COMMIT", _SCRIPT_TIMEOUT)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
