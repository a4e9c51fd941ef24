"""The database port: the interface of a service to its own database, on any engine.

SQL has `$1` parameters. Values are str, int, float, bytes, bool, or None. A datetime becomes RFC 3339 text and a UUID its
text; both come back as text.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any

import msgspec

from runtime.contract.errors import CallboardError, UsageError
from runtime.contract.messages import Event

Row = Mapping[str, Any]
"""A row: values by column name."""

Statement = tuple[str, Sequence[Any]]
"""A statement: its SQL and its parameters."""


class DatabaseError(CallboardError):
    """The database refused or failed: locked, full, broken, or unreachable. The transaction was rolled back."""


class StatementError(DatabaseError):
    """A statement is wrong (its syntax, a name, the type of a parameter), so that a retry would fail, too.

    Only the statement was undone; the transaction can continue.
    """


class ConstraintError(StatementError):
    """A row violates a constraint (unique, foreign key, check)."""


class Superseded(CallboardError):
    """The guard of a transaction found that another transaction has done this work. Nothing was changed."""


class Guard(msgspec.Struct, frozen=True):
    """The first statement of a transaction. If it does not change exactly one row, the transaction is `Superseded`."""

    sql: str
    params: tuple[Any, ...]


class Transaction(ABC):
    """An atomic change of the service's database.

    It begins with its first statement, sees its own changes, and holds the only write lock until it ends. A handler that
    takes a transaction commits it by returning.

    Attributes:
        events: the events to append to the stream at the commit.
        trace: the W3C trace context of the events.
        final: statements that run last, in the commit's own hop.
        outcome: the rows of the last of the final statements.
        committed: whether the transaction has been committed.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.trace = ""
        self.final: list[Statement] = []
        self.outcome: list[Row] = []
        self.committed = False

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether a statement has run. From then on the transaction holds the write lock."""

    @abstractmethod
    async def execute(self, sql: str, *params: Any) -> int:
        """Run a statement, and return the number of rows that it changed.

        Raises:
            StatementError: if the statement is wrong or violates a constraint (`ConstraintError`); only it was undone.
            DatabaseError: if the database failed; the whole transaction is lost.
        """

    @abstractmethod
    async def fetch(self, sql: str, *params: Any) -> list[Row]:
        """Run a query, and return all rows. Raises like `execute`."""

    async def fetch_one(self, sql: str, *params: Any) -> Row | None:
        """Run a query, and return the first row, or None. Raises like `execute`."""
        rows = await self.fetch(sql, *params)
        return rows[0] if rows else None

    async def publish(self, event: Event) -> None:
        """Publish a durable event: it is committed with this transaction or not at all."""
        if not isinstance(event, Event):
            raise UsageError(f"tx.publish takes an Event, got {type(event).__name__}: a Signal goes through ctx.publish")
        self.events.append(event)


class Database(ABC):
    """A service's own database. No other service opens it.

    Attributes:
        current: the transaction of the current task, in its current handler.
        before_commit: called right before the commit of each transaction with events. It adds the statements that append
            the events to the stream.
        after_commit: called after each of these commits.
    """

    def __init__(self) -> None:
        self.current: ContextVar[Transaction | None] = ContextVar("current", default=None)
        self.before_commit: Callable[[Transaction], None] | None = None
        self.after_commit: Callable[[Transaction], None] | None = None

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
    def transaction(self, guard: Guard | None = None) -> AbstractAsyncContextManager[Transaction]:
        """Return a transaction that commits when the `async with` block ends, and rolls back when it raises.

        The commit is shielded from cancellation: when the block has ended, the outcome is known.

        Raises:
            UsageError: if the current task is in a transaction on this database already.
            DatabaseError: if the commit failed; the transaction was rolled back.
            Superseded: if the guard did not change exactly one row.
        """

    @abstractmethod
    async def execute(self, sql: str, *params: Any) -> int:
        """Run one statement in its own transaction, and return the number of rows that it changed."""

    @abstractmethod
    async def fetch(self, sql: str, *params: Any) -> list[Row]:
        """Run a query on the committed data, and return all rows."""

    async def fetch_one(self, sql: str, *params: Any) -> Row | None:
        """Run a query on the committed data, and return the first row, or None."""
        rows = await self.fetch(sql, *params)
        return rows[0] if rows else None

    @abstractmethod
    async def script(self, statements: str) -> None:
        """Run several statements atomically, under a lock that excludes other processes (for migrations)."""
