"""The database port: the interface of a service to its own database, on any engine.

SQL has `$1` parameters. Each takes a str, int (of 64 bits), float (not NaN), bool, bytes, Decimal, datetime (with a timezone), date,
time, timedelta, UUID, a member of an Enum, or None. A row has what the engine's columns hold: SQLite returns those
that it has no column type for as text, and a bool as 0 or 1. `fetch(…, into=Ride)` returns structs instead, whose fields equal the
stored values on every engine. A datetime is stored in UTC: it comes back as the same moment.

Declare the columns of Decimal as TEXT on SQLite: a NUMERIC column rounds to 15 digits.
"""

import asyncio
import logging
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple, TypeVar, overload

import msgspec

from runtime.contract.errors import CallboardError, UsageError
from runtime.contract.messages import Event
from runtime.metrics import Commits
from runtime.storage.pruning import STEP, next_step
from runtime.storage.values import decoded
from runtime.tasks import Unfinished

T = TypeVar("T")

Row = Mapping[str, Any]
"""A row: values by column name."""

Statement = tuple[str, Sequence[Any]]
"""A statement: its SQL and its parameters."""


StreamRow = tuple[str, str, str, str, str]
"""An event in the stream: id, type, body, time, and trace."""

APPEND: str = (
    "INSERT INTO callboard_stream (seq, id, type, body, at, trace) "
    "VALUES ((SELECT seq FROM callboard_stream_head WHERE one = 1) + $1, $2, $3, $4, $5, $6)"
)
"""Appends a row to the stream, for each row of a commit. The first parameter counts them from 1."""
ADVANCE_HEAD: str = "UPDATE callboard_stream_head SET seq = seq + $1 WHERE one = 1 RETURNING seq"
"""Then takes the numbers of so many rows. It is a commit's last statement, so that commits of several processes wait only here."""


class DatabaseError(CallboardError):
    """The database refused or failed: locked, full, broken, or unreachable. The transaction was rolled back."""


class Conflict(DatabaseError):
    """The transaction was in the way of another one, such as in a deadlock, and was rolled back. It may be run again."""


class CommitUnknown(DatabaseError):
    """The connection was lost during a commit, and the server could not be asked whether it has happened."""


class StatementError(DatabaseError):
    """A statement is wrong (its syntax, a name, the type of a parameter), so that a retry would fail, too.

    Only the statement was undone; the transaction can continue.
    """


class MissingTable(StatementError):
    """A statement names a table that does not exist: a migration has to create it."""


class ConstraintError(StatementError):
    """A row violates a constraint (unique, foreign key, check)."""


class Superseded(CallboardError):
    """The guard of a transaction found that another transaction has done this work. Nothing was changed."""


class Guard(msgspec.Struct, frozen=True):
    """The first statement of a transaction. If it does not change exactly one row, the transaction is `Superseded`."""

    sql: str
    params: tuple[Any, ...]


class Holder(NamedTuple):
    """Who runs a transaction, and until when.

    Attributes:
        title: class and method, for logs.
        deadline: when the transaction is rolled back, on the event loop's scale.
    """

    title: str
    deadline: float


class Transaction(ABC):
    """An atomic change of the service's database.

    It begins with its first statement, sees its own changes, and holds the only write lock until it ends. A handler that
    takes a transaction commits it by returning. At the deadline of its handler it is rolled back, whatever the handler does.

    Attributes:
        events: the events to append to the stream at the commit.
        appends: the rows of the stream that they become, without their numbers.
        trace: the W3C trace context of the events, as `runtime.trace.as_stored` writes it.
        final: statements that run last, in the commit's own hop.
        head: the number of the last event that its commit has appended. Transactions that share a commit have the same.
        ended: whether it takes no more statements.
        committed: whether the transaction has been committed.
        made: statements, events, signals, and requests, each of which has to be awaited before the commit.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.trace = ""
        self.final: list[Statement] = []
        self.appends: list[StreamRow] = []
        self.head = 0
        self.ended: bool = False
        self.committed: bool = False
        self.made: Unfinished = Unfinished()

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether a statement has run. From then on the transaction holds the write lock."""

    def execute(self, sql: str, *params: Any) -> Coroutine[Any, Any, int]:
        """Run a statement, and return the number of rows that it changed.

        Raises:
            UsageError: if a parameter cannot be stored. The transaction can continue.
            StatementError: if the statement is wrong or violates a constraint (`ConstraintError`); only it was undone.
            DatabaseError: if the database failed; the whole transaction is lost.
        """
        return self.made.track("tx.execute", self._execute(sql, params))

    @overload
    def fetch(self, sql: str, *params: Any) -> Coroutine[Any, Any, list[Row]]: ...
    @overload
    def fetch(self, sql: str, *params: Any, into: type[T]) -> Coroutine[Any, Any, list[T]]: ...
    def fetch(self, sql: str, *params: Any, into: Any = None) -> Coroutine[Any, Any, list[Any]]:
        """Run a query, and return all rows; as structs of the type `into`, if given. Raises like `execute`."""
        work = self._fetch(sql, params) if into is None else self._fetch_into(sql, params, into)
        return self.made.track("tx.fetch", work)

    @overload
    def fetch_one(self, sql: str, *params: Any) -> Coroutine[Any, Any, Row | None]: ...
    @overload
    def fetch_one(self, sql: str, *params: Any, into: type[T]) -> Coroutine[Any, Any, T | None]: ...
    def fetch_one(self, sql: str, *params: Any, into: Any = None) -> Coroutine[Any, Any, Any]:
        """Run a query, and return the first row, or None; as a struct of the type `into`, if given. Raises like `execute`."""
        return self.made.track("tx.fetch_one", self._fetch_first(sql, params, into))

    def publish(self, event: Event) -> Coroutine[Any, Any, None]:
        """Publish a durable event: it is committed with this transaction or not at all."""
        return self.made.track("tx.publish", self._publish(event))

    def require_finished(self) -> None:
        """Refuse the commit if a statement, event, or request was made here that was not awaited to its end.

        Raises:
            UsageError: with the line where it was made.
        """
        unfinished = self.made.describe()
        if unfinished is not None:
            raise UsageError(f"{unfinished} when the transaction was to be committed, so nothing was: await it")

    @abstractmethod
    async def _execute(self, sql: str, params: Sequence[Any]) -> int:
        """Run a statement, and return the number of rows that it changed. Raises like `execute`."""

    @abstractmethod
    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        """Run a query, and return all rows. Raises like `execute`."""

    async def _fetch_into(self, sql: str, params: Sequence[Any], into: Any) -> list[Any]:
        return structs(await self._fetch(sql, params), into)

    async def _fetch_first(self, sql: str, params: Sequence[Any], into: Any) -> Any:
        rows = await self._fetch(sql, params)
        if not rows:
            return None
        return rows[0] if into is None else structs(rows[:1], into)[0]

    async def _publish(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise UsageError(f"tx.publish takes an Event, got {type(event).__name__}: a Signal goes through ctx.publish")
        self.events.append(event)


def structs(rows: Sequence[Row], into: type[T]) -> list[T]:
    """Return rows as structs. Raises `StatementError` if a row does not fit."""
    try:
        return decoded(rows, into)
    except msgspec.ValidationError as error:
        raise StatementError(f"a row is not a {into.__name__}: {error}") from None


class Database(ABC):
    """A service's own database. No other service opens it.

    Attributes:
        current: the transaction in which the current task was made, or which it has made.
        before_commit: called right before the commit of each transaction with events. It adds the rows that they become.
        after_commit: called after each of these commits.
        transaction_timeout: how long a transaction outside of a handler with a deadline may take, in seconds. With None,
            no transaction has a deadline.
        log: the log of the service.
        commits: measures the commits; None if nobody does.
        system: the engine, as OpenTelemetry names it.
        is_shared: whether several instances of the service may use it at once.
    """

    is_shared: bool = False
    system: str = "other_sql"

    def __init__(self) -> None:
        self.current: ContextVar[Transaction | None] = ContextVar("current", default=None)
        self.before_commit: Callable[[Transaction], None] | None = None
        self.after_commit: Callable[[Transaction], None] | None = None
        self.transaction_timeout: float | None = 30.0
        self.commits: Commits | None = None
        self.log: logging.Logger = logging.getLogger("callboard.storage")

    @abstractmethod
    async def open(self) -> None:
        """Open the database. Create it if the engine can.

        Raises:
            DatabaseError: if it cannot be opened, or is not a database.
        """

    @abstractmethod
    async def close(self) -> None:
        """End running transactions and close the database. Calling it twice is harmless."""

    @abstractmethod
    def transaction(self, guard: Guard | None = None, holder: Holder | None = None) -> AbstractAsyncContextManager[Transaction]:
        """Return a transaction that commits when the `async with` block ends, and rolls back when it raises.

        The commit is shielded from cancellation: when the block has ended, the outcome is known.

        Args:
            guard: the first statement.
            holder: the handler; by default the calling function, and `transaction_timeout` from now.

        Raises:
            UsageError: if the current task is in a transaction on this database already, or if the block left something
                that was made in it unfinished.
            DatabaseError: if the commit failed, or the deadline passed before; the transaction was rolled back.
            Superseded: if the guard did not change exactly one row.
        """

    def running(self) -> Transaction | None:
        """Return the transaction that the current task is in.

        A task that a handler leaves behind is in the handler's transaction only as long as that runs.
        """
        current = self.current.get()
        return None if current is None or current.ended else current

    def holder(self, frame: FrameType) -> Holder:
        """Return the function that runs in a frame, as the holder of a transaction that begins now."""
        code = frame.f_code
        timeout = math.inf if self.transaction_timeout is None else self.transaction_timeout
        title = f"{code.co_qualname} ({os.path.basename(code.co_filename)}:{frame.f_lineno})"
        return Holder(title, asyncio.get_running_loop().time() + timeout)

    def holder_until(self, title: str, deadline: float) -> Holder:
        """Return a handler as the holder of a transaction that begins now."""
        timeout = self.transaction_timeout
        if timeout is None:
            return Holder(title, math.inf)
        return Holder(title, asyncio.get_running_loop().time() + timeout if deadline == math.inf else deadline)

    def execute(self, sql: str, *params: Any) -> Coroutine[Any, Any, int]:
        """Run one statement in its own transaction, and return the number of rows that it changed.

        Raises:
            UsageError: in a handler with `tx`, whose statements belong into its transaction.
        """
        work = self._execute(sql, params, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        current = self.running()
        return work if current is None else current.made.track("self.db.execute", work, must_end=False)

    async def _execute(self, sql: str, params: Sequence[Any], caller: FrameType) -> int:
        async with self.transaction(None, self.holder(caller)) as tx:
            return await tx.execute(sql, *params)

    def delete_in_steps(self, table: str, key: str, condition: str, *params: Any) -> Coroutine[Any, Any, int]:
        """Delete the rows that meet a condition, up to 2,000 in each transaction. Return how many there were.

        Other transactions get their turns between the steps. Use this for rows that are too old to be needed: a failure
        leaves a part of them, and later calls delete the rest.

        Args:
            table: the name of the table.
            key: the columns of its primary key, separated by commas.
            condition: SQL with `$1` parameters. With an index on its columns, no step has to look at all rows.

        Raises:
            UsageError: in a handler with `tx`.
        """
        work = self._delete_in_steps(sys._getframe(1), table, key, condition, params)  # pyright: ignore[reportPrivateUsage]
        current = self.current.get()
        return work if current is None else current.made.track("self.db.delete_in_steps", work, must_end=False)

    async def _delete_in_steps(self, caller: FrameType, table: str, key: str, condition: str, params: Sequence[Any]) -> int:
        total, rows = 0, STEP
        while True:
            holder = self.holder(caller)
            began = asyncio.get_running_loop().time()
            async with self.transaction(None, holder) as tx:
                gone = await tx.execute(
                    f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {condition} LIMIT {rows})", *params
                )
            total += gone
            if gone < rows:
                return total
            rows = next_step(rows, asyncio.get_running_loop().time() - began)

    @overload
    async def fetch(self, sql: str, *params: Any) -> list[Row]: ...
    @overload
    async def fetch(self, sql: str, *params: Any, into: type[T]) -> list[T]: ...
    async def fetch(self, sql: str, *params: Any, into: Any = None) -> list[Any]:
        """Run a query on the committed data, and return all rows; as structs of the type `into`, if given."""
        rows = await self._fetch(sql, params)
        return rows if into is None else structs(rows, into)

    @overload
    async def fetch_one(self, sql: str, *params: Any) -> Row | None: ...
    @overload
    async def fetch_one(self, sql: str, *params: Any, into: type[T]) -> T | None: ...
    async def fetch_one(self, sql: str, *params: Any, into: Any = None) -> Any:
        """Run a query on the committed data, and return the first row, or None; as a struct of the type `into`, if given."""
        rows = await self._fetch(sql, params)
        if not rows:
            return None
        return rows[0] if into is None else structs(rows[:1], into)[0]

    @abstractmethod
    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        """Run a query on the committed data, and return all rows."""

    @abstractmethod
    async def scan(self, each: Callable[[Row], bool], sql: str, *params: Any) -> None:
        """Run a query on the committed data, and pass its rows to `each`, one after another, until it returns False.

        No more than one row is in memory, so this is for rows that may be large. `each` is called in another thread.
        """

    @property
    @abstractmethod
    def contended(self) -> bool:
        """Whether a transaction waits for the one that is running."""

    def append(self, transaction: Transaction) -> None:
        """Add the rows that append a transaction's events to the stream.

        Raises:
            UsageError: if there is no stream here.
        """
        if self.before_commit is None:
            raise UsageError("there is no stream here to publish events to: a service's own database has one, once it runs")
        self.before_commit(transaction)

    @abstractmethod
    async def shrink(self) -> None:
        """Give the space of deleted rows back to the file system, in steps between which other transactions get their turns."""

    @abstractmethod
    async def script(self, statements: str) -> None:
        """Run several statements atomically, under a lock that excludes other processes (for migrations)."""
