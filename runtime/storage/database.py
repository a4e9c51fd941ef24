"""The database port: what a service may ask of its own database, whichever engine it is.

SQL is written with `$1` parameters. Values are str, int, float, bytes, bool or None; a datetime becomes RFC 3339 text and a
UUID its text, and both come back as text.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Protocol

import msgspec

from runtime.contract.errors import CallboardError, UsageError
from runtime.contract.messages import Event

Row = Mapping[str, Any]
"""One row by column name."""

Statement = tuple[str, Sequence[Any]]


class DatabaseError(CallboardError):
    """The database refused or failed: locked, full, broken or unreachable. Nothing of the transaction was kept."""


class StatementError(DatabaseError):
    """The statement is wrong (its syntax, a name, a parameter's type), and would be if tried again.

    The statement alone was undone; the transaction can go on.
    """


class ConstraintError(StatementError):
    """A row breaks a constraint (unique, foreign key, check)."""


class Superseded(CallboardError):
    """The transaction's guard found that somebody else has done this work: nothing was changed."""


class Guard(msgspec.Struct, frozen=True):
    """The first statement of a transaction: it must change exactly one row, or the transaction is `Superseded`."""

    sql: str
    params: tuple[Any, ...]


class Transaction(ABC):
    """One all-or-nothing change of the service's database.

    It begins with its first statement, sees its own changes, and holds the only write lock until its end. A handler
    that takes one commits by returning.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.trace = ""
        """The W3C trace context that the events carry."""
        self.final: list[Statement] = []
        """Statements that run last, in the commit's own hop; `outcome` has the rows of the last of them."""
        self.outcome: list[Row] = []
        self.committed = False

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether a statement has run: from then on the transaction holds the write lock."""

    @abstractmethod
    async def execute(self, sql: str, *params: Any) -> int:
        """Runs a statement and says how many rows it changed.

        Raises:
            StatementError: the statement is wrong or (`ConstraintError`) breaks a constraint; only it was undone.
            DatabaseError: the database failed; the whole transaction is lost.
        """

    @abstractmethod
    async def fetch(self, sql: str, *params: Any) -> list[Row]:
        """Runs a query and gives all of its rows. Raises like `execute`."""

    async def fetch_one(self, sql: str, *params: Any) -> Row | None:
        """Runs a query and gives its first row, or None. Raises like `execute`."""
        rows = await self.fetch(sql, *params)
        return rows[0] if rows else None

    async def publish(self, event: Event) -> None:
        """Publishes a durable event: committed with this transaction, or not at all."""
        if not isinstance(event, Event):
            raise UsageError(f"tx.publish takes an Event, got {type(event).__name__}: a Signal goes through ctx.publish")
        self.events.append(event)


class Publisher(Protocol):
    """Who puts a transaction's events into the stream, and tells of them."""

    def append(self, tx: Transaction) -> None:
        """Adds the statements that append `tx.events`; called right before the commit."""

    def appended(self, tx: Transaction) -> None:
        """The transaction is committed."""


class Database(ABC):
    """A service's own database. Nobody else opens it."""

    def __init__(self) -> None:
        self.current: ContextVar[Transaction | None] = ContextVar("current", default=None)
        """The transaction that the current task is in, in its current handler."""
        self.publisher: Publisher | None = None
        """Takes the events of every transaction here."""

    @abstractmethod
    async def open(self) -> None:
        """Opens it, creating it where it can be created.

        Raises:
            DatabaseError: it cannot be opened, or is no database.
        """

    @abstractmethod
    async def close(self) -> None:
        """Ends what runs and closes it. Calling it twice is harmless."""

    @abstractmethod
    def transaction(self, guard: Guard | None = None) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that commits when the `async with` block ends, and rolls back when it raises.

        Committing is shielded from cancellation: when the block has ended, the outcome is known.

        Raises:
            UsageError: the current task is inside a transaction on this database already.
            DatabaseError: the commit failed; nothing was kept.
            Superseded: the guard changed no row.
        """

    @abstractmethod
    async def execute(self, sql: str, *params: Any) -> int:
        """Runs one statement in a transaction of its own and says how many rows it changed."""

    @abstractmethod
    async def fetch(self, sql: str, *params: Any) -> list[Row]:
        """Runs a query on what is committed and gives all of its rows."""

    async def fetch_one(self, sql: str, *params: Any) -> Row | None:
        """Runs a query on what is committed and gives its first row, or None."""
        rows = await self.fetch(sql, *params)
        return rows[0] if rows else None

    @abstractmethod
    async def script(self, statements: str) -> None:
        """Runs several statements, all or nothing, under a lock that keeps other processes out (migrations)."""
