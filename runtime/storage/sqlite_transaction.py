"""A transaction of SQLite: a savepoint of the writing connection's transaction, from its first statement to its end."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.contract.errors import UsageError
from runtime.storage.database import DatabaseError, Guard, Holder, Row, StatementError, Superseded
from runtime.storage.managed_transaction import ManagedTransaction
from runtime.storage.sqlite_statements import SqliteStatement, translated
from runtime.storage.turn import Turn
from runtime.tasks import finish

if TYPE_CHECKING:
    from runtime.storage.sqlite import SqliteDatabase

T = TypeVar("T")

_Method = Callable[[sqlite3.Connection, Sequence[Any]], T]
"""Runs a statement with its parameters."""

_STATEMENT_ERRORS = (sqlite3.Error, ValueError, OverflowError)
"""What sqlite3 raises; a ValueError for a value that cannot be bound."""


class SqliteTransaction(ManagedTransaction, Turn):
    """A transaction, as the context manager that commits it."""

    ended: bool
    committed: bool

    def __init__(self, database: "SqliteDatabase", guard: Guard | None, holder: Holder) -> None:
        ManagedTransaction.__init__(self, database)
        Turn.__init__(self, holder.title, holder.deadline)
        self._database = database
        self._guard = guard
        self._begun = False
        self._beginning = False
        self._has_begun: asyncio.Event | None = None
        self._lost: DatabaseError | Superseded | None = None
        self._giving_up: asyncio.Task[None] | None = None
        self._last: list[tuple[SqliteStatement, Sequence[Any]]] = []
        self._settled = False
        self._failure: Exception | None = None
        self._outcome: asyncio.Future[None] | None = None

    @property
    def begun(self) -> bool:
        return self._begun

    # Statements

    async def _execute(self, sql: str, params: Sequence[Any]) -> int:
        statement = self._database.statements.find(sql)
        return await self._run(statement, statement.execute, params)

    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        statement = self._database.statements.find(sql)
        return await self._run(statement, statement.fetch, params)

    async def _run(self, statement: SqliteStatement, method: _Method[T], params: Sequence[Any]) -> T:
        if self.ended:
            raise UsageError("this transaction has ended: it lives as long as the handler that was given it")
        if self._lost is not None:
            raise self._lost
        if not self._begun:
            return await self._begin(statement, method, params)
        connection = self._database.writer
        if not (statement.quick and connection.idle):
            return await self._in_thread(partial(self._statement, statement, method, params))
        if connection.must_yield():
            await asyncio.sleep(0)
            return await self._run(statement, method, params)
        try:
            return self._statement(statement, method, params, connection.raw, here=True)
        except (DatabaseError, Superseded) as error:
            raise self._after(error) from error.__cause__

    async def _begin(self, statement: SqliteStatement, method: _Method[T], params: Sequence[Any]) -> T:
        if self._beginning:  # tasks of one handler may race for the first statement
            if self._has_begun is None:
                self._has_begun = asyncio.Event()
            await self._has_begun.wait()
            return await self._run(statement, method, params)
        self._beginning = True
        try:
            await self._database.turns.take_turn(self)
            if self.ended or self._lost is not None:  # the handler has returned, but left a task behind; or it is too late
                self._database.turns.pass_on()
                raise self._lost or UsageError("this transaction has ended while a statement waited for its turn")
            self._begun = True
            if statement.quick and self._begins_quickly():
                try:
                    return self._first(statement, method, params, self._database.writer.raw, here=True)
                except (DatabaseError, Superseded) as error:
                    raise self._after(error) from error.__cause__
            try:
                return await self._in_thread(partial(self._first, statement, method, params))
            except asyncio.CancelledError:
                # the guard may have run, but its result is unknown
                self._lost = DatabaseError("the transaction's first statement was cancelled")
                raise
        finally:
            self._beginning = False
            if self._has_begun is not None:
                self._has_begun.set()

    async def _in_thread(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._database.writer.run(function)
        except (DatabaseError, Superseded) as error:
            raise self._after(error) from error.__cause__

    def _after(self, error: DatabaseError | Superseded) -> DatabaseError | Superseded:
        """Return the error of a statement. All but a `StatementError` end the transaction, whose first error is returned."""
        if isinstance(error, StatementError):
            return error
        self._lost = self._lost or error
        return self._lost

    # What runs in the connection's thread, or `here` in the event loop

    def _first(
        self,
        statement: SqliteStatement,
        method: _Method[T],
        params: Sequence[Any],
        raw: sqlite3.Connection,
        *,
        here: bool = False,
    ) -> T:
        self._enter(raw, here=here)
        return self._statement(statement, method, params, raw, here=here)

    def _enter(self, raw: sqlite3.Connection, *, here: bool) -> None:
        """Begin the transaction, and run its guard."""
        try:
            if not raw.in_transaction:
                self._database.writer.begin()
            raw.execute("SAVEPOINT one")
        except sqlite3.Error as error:
            raise translated(self._database.path, error) from error
        if self._guard is not None:
            statement = self._database.statements.find(self._guard.sql)
            if self._statement(statement, statement.execute, self._guard.params, raw, here=here) != 1:
                raise Superseded("another transaction has done this work")

    def _statement(
        self,
        statement: SqliteStatement,
        method: _Method[T],
        params: Sequence[Any],
        raw: sqlite3.Connection,
        *,
        here: bool = False,
    ) -> T:
        """Run a statement. If its failure ended the whole transaction (disk full, ON CONFLICT ROLLBACK), raise `DatabaseError`."""
        try:
            return statement.timed_here(method, raw, params) if here else statement.timed_in_thread(method, raw, params)
        except _STATEMENT_ERRORS as error:
            if raw.in_transaction or not isinstance(error, sqlite3.Error):
                raise translated(self._database.path, error) from error
            raise DatabaseError(f"the database rolled the transaction back: {error}") from error

    def complete(self, raw: sqlite3.Connection, *, here: bool) -> None:
        if not self._begun:
            self._enter(raw, here=here)
        for statement, params in self._last:
            self._statement(statement, statement.execute, params, raw, here=here)
        try:
            raw.execute("RELEASE one")
        except sqlite3.Error as error:
            raise translated(self._database.path, error) from error

    def _begins_quickly(self) -> bool:
        """Return whether the guard is quick, and the group has begun its transaction, or could begin it without waiting."""
        connection, guard = self._database.writer, self._guard
        return (
            connection.idle
            and (guard is None or self._database.statements.find(guard.sql).quick)
            and (connection.raw.in_transaction or connection.begin_here())
        )

    # The end

    async def _commit(self) -> None:
        """Commit. A transaction that ran no statement and has nothing to write costs nothing."""
        self.ended = True
        if self._lost is not None:
            if self._begun:
                await finish(self._give_up())
            raise self._lost
        if not (self._begun or self._guard is not None or self.final or self.appends):
            self.committed = True
            return
        find = self._database.statements.find
        self._last = [(find(sql), params) for sql, params in self.final]
        self.woken: asyncio.Future[None] | None = None
        self._outcome = asyncio.get_running_loop().create_future()
        self._database.turns.end(self)
        try:
            await self._outcome
        except asyncio.CancelledError:
            await finish(self._until_settled())
            raise
        if self._failure is not None:
            raise self._failure

    def ends_quickly(self) -> bool:
        return (
            self._database.is_open
            and self._database.writer.idle
            and all(statement.quick for statement, _ in self._last)
            and (self._begun or self._begins_quickly())
        )

    def settle(self, error: Exception | None) -> None:
        self._settled, self._failure = True, error
        self.committed = error is None
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(None)

    async def _until_settled(self) -> None:
        while not self._settled:
            self._outcome = asyncio.get_running_loop().create_future()
            await self._outcome

    async def _roll_back(self) -> None:
        self.ended = True
        if self._begun:
            await finish(self._give_up())

    async def _give_up(self) -> None:
        await (self._giving_up or self._database.turns.give_up_turn())

    def expire(self) -> None:
        if self._giving_up is not None:
            return
        if not self.ended:
            self._lost = DatabaseError(f"the transaction of {self.title} took longer than its deadline, and was rolled back")
            if not self._begun:
                return
            self._giving_up = asyncio.ensure_future(self._database.turns.give_up_turn())
        self._database.writer.interrupt()  # a statement that still runs
