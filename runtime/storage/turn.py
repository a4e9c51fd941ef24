"""Transactions that take turns at a connection, and how they end: in a savepoint each, with a COMMIT that several share."""

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from contextlib import suppress

from runtime.storage.database import ADVANCE_HEAD, APPEND, StreamRow
from runtime.storage.sqlite_statements import SqliteStatement
from runtime.telemetry import Origin, current

LONG_SECONDS = 1.0
"""The seconds after which a transaction for which others wait is logged, and then again whenever they have doubled."""

_APPEND, _ADVANCE_HEAD = SqliteStatement(APPEND).text, SqliteStatement(ADVANCE_HEAD).text


class Turn(ABC):
    """A transaction's turn at the writer, from its first statement until it has ended.

    Attributes:
        title: who runs the transaction, for logs.
        deadline: when it loses the turn, on the event loop's scale.
        since: when it got the turn.
        logged_at: after how many seconds it is logged that others wait for it.
        waits: whether it is in the queue, and still wants the turn.
        origin: the message that is being handled, for logs.
        woken: done when it may have the turn; None for a transaction that has waited for nothing but its end.
        appends: the rows that its commit appends to the stream.
        head: the number of the last of the rows that its commit has appended.
    """

    appends: list[StreamRow]
    head: int

    def __init__(self, title: str, deadline: float) -> None:
        self.title = title
        self.deadline = deadline
        self.since: float = 0.0
        self.logged_at: float = LONG_SECONDS
        self.waits = False
        self.woken: asyncio.Future[None] | None = None
        self.origin: Origin | None = current.get()

    @abstractmethod
    def ends_quickly(self) -> bool:
        """Return whether `complete` may run in the event loop."""

    @abstractmethod
    def complete(self, raw: sqlite3.Connection, *, here: bool) -> None:
        """Run the last statements, and release the savepoint. Called in the thread, or with `here` in the event loop."""

    @abstractmethod
    def settle(self, error: Exception | None) -> None:
        """Take note that the transaction has been committed, or with an error that it has been rolled back."""

    @abstractmethod
    def expire(self) -> None:
        """Roll the transaction back, because its deadline has passed."""


def complete_turn(turn: Turn, group: list[Turn] | None, here: bool, raw: sqlite3.Connection) -> Exception | None:
    """Complete a transaction, and commit it with its group, if one is given. Return why it alone was rolled back, if it was.

    Raises:
        Exception: if the whole group was rolled back.
    """
    failure = None
    try:
        try:
            turn.complete(raw, here=here)
        except Exception as error:
            if not undo_turn(raw):
                raise
            failure = error
        if group is not None:
            commit_group(group if failure is not None else [*group, turn], raw)
    except BaseException:  # whatever ends it, no transaction stays open
        roll_back(raw)
        raise
    return failure


def undo_turn(raw: sqlite3.Connection) -> bool:
    """Roll back to the savepoint. Return False if the whole transaction was rolled back."""
    try:
        if raw.in_transaction:
            raw.execute("ROLLBACK TO one")
            raw.execute("RELEASE one")
    except sqlite3.Error:
        roll_back(raw)
        raise
    return raw.in_transaction


def commit_group(group: list[Turn], raw: sqlite3.Connection) -> None:
    """Append the events of a group to the stream, and commit it. If that fails, the whole group is rolled back."""
    try:
        rows = [row for turn in group for row in turn.appends]
        if rows:
            raw.executemany(_APPEND, [(offset, *row) for offset, row in enumerate(rows, 1)])
            [(head,)] = raw.execute(_ADVANCE_HEAD, (len(rows),)).fetchall()
            for turn in group:
                turn.head = head
        raw.execute("COMMIT")
    except BaseException:  # whatever ends it, no transaction stays open
        roll_back(raw)
        raise


def commit_begun_group(group: list[Turn], raw: sqlite3.Connection) -> None:
    if raw.in_transaction:
        commit_group(group, raw)


def roll_back(raw: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):  # the connection is gone, and its transaction with it
        if raw.in_transaction:
            raw.execute("ROLLBACK")
