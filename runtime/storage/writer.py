"""The writer: turns at SQLite's only writing connection, and transactions that share a COMMIT.

The transaction that has the turn runs in a savepoint of its group's transaction, and passes the turn on when it ends. No
transaction counts as committed before the COMMIT that its group shares. Decision 1 has the figures.

A transaction that keeps the turn while others wait is logged; at its deadline it loses the turn.
"""

import asyncio
import functools
import logging
import math
import sqlite3
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

from runtime.storage.database import DatabaseError
from runtime.tasks import finish

MOST = 64
"""The largest number of transactions that share a COMMIT."""
_OLDEST = 0.1
"""The seconds after which a transaction that has ended waits for no further one before the COMMIT."""
_LOOK = 0.1
"""The seconds between two looks at the transaction that has the turn."""
_LONG = 1.0
"""The seconds after which a transaction for which others wait is logged, and then again whenever they have doubled."""

Hop = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]
"""Runs a function in the thread of the writing connection. Raises `DatabaseError`."""


class Group:
    """Transactions that share one COMMIT.

    Attributes:
        size: the number of transactions that have ended without an error.
        since: when the first of them ended.
        committed: done when the COMMIT is, or failed with its error.
    """

    def __init__(self) -> None:
        self.size = 0
        self.since: float = 0.0
        self.committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Turn(ABC):
    """A transaction's turn at the writer, from its first statement until it has ended.

    Attributes:
        title: who runs the transaction, for logs.
        deadline: when it loses the turn, on the event loop's scale.
        since: when it got the turn.
        logged_at: after how many seconds it is logged that others wait for it.
    """

    def __init__(self, title: str, deadline: float) -> None:
        self.title = title
        self.deadline = deadline
        self.since: float = 0.0
        self.logged_at = _LONG

    @abstractmethod
    def expire(self) -> None:
        """Roll the transaction back, because its deadline has passed."""


class WriterState(Enum):
    """Whether a transaction has the turn."""

    IDLE = "IDLE"
    BUSY = "BUSY"


class Writer:
    """Passes the writing connection from one transaction to the next.

    Args:
        hop: runs a function in the thread of the writing connection.
        log: returns the logger for transactions that keep others waiting.
    """

    def __init__(self, hop: Hop, log: Callable[[], logging.Logger]) -> None:
        self._hop = hop
        self._log = log
        self._turn: Turn | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._state = WriterState.IDLE
        self._queue: deque[asyncio.Future[None]] = deque()
        self._group: Group | None = None

    def __repr__(self) -> str:
        return f"<Writer [{self._state.value}] waiting={len(self._queue)} group={self._group and self._group.size}>"

    @property
    def contended(self) -> bool:
        """Whether a transaction waits for the one that has the turn."""
        return any(not turn.done() for turn in self._queue)

    async def take_turn(self, holder: Turn) -> Group:
        """Wait for the turn. The transaction that begins then is one savepoint of the returned group."""
        if self._state is WriterState.BUSY:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it has been given the turn already
                    await finish(self.pass_on(self._entered()))
                raise
        self._state = WriterState.BUSY
        self._turn = holder
        loop = asyncio.get_running_loop()
        holder.since = loop.time()
        if self._look_timer is None:
            self._look_timer = loop.call_later(_LOOK, self._look, loop)
        return self._entered()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Log a transaction that keeps others waiting, and end it at its deadline. Runs while a transaction has the turn."""
        self._look_timer = None
        turn = self._turn
        if turn is None:
            return
        now = loop.time()
        held = now - turn.since
        if now >= turn.deadline:
            self._log().error(
                "%s has held the write transaction for %.1f s, until its deadline: it is rolled back, and %d others that waited proceed",
                turn.title, held, len(self._queue),
            )  # fmt: skip
            turn.deadline = math.inf
            turn.expire()
        elif held >= turn.logged_at and self._queue:
            turn.logged_at = held * 2
            self._log().warning(
                "%s has held the write transaction for %.1f s, and %d others wait for it (its deadline is in %.1f s)",
                turn.title, held, len(self._queue), turn.deadline - now,
            )  # fmt: skip
        self._look_timer = loop.call_at(min(now + _LOOK, turn.deadline), self._look, loop)

    def stop(self) -> None:
        """Look at no transaction any more: the connection is closed."""
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None

    def _entered(self) -> Group:
        if self._group is None:
            self._group = Group()
        return self._group

    async def end_turn(self, group: Group, final: Callable[[sqlite3.Connection], None]) -> None:
        """Run `final`, pass the turn on, and return when the group is committed.

        Raises:
            DatabaseError: if the commit failed: the whole group was rolled back.
        """
        self._turn = None  # a commit is completed even after the deadline
        commit = group.size + 1 >= MOST or not self._queue or self._is_old(group)
        try:
            await self._hop(functools.partial(_end, final, commit))
        except DatabaseError as error:
            alone = group.size == 0
            await self._fail(group, DatabaseError(f"the commit failed: {error}"))
            if alone:
                raise
            raise DatabaseError(f"the commit failed: {error}") from error
        group.size += 1
        if commit:
            self._settle(group)
        else:
            if group.size == 1:
                group.since = asyncio.get_running_loop().time()
            await self.pass_on(group)
        try:
            await asyncio.shield(group.committed)
        except DatabaseError as error:
            raise DatabaseError(str(error)) from error  # one for each waiter: the traceback of a shared error would grow

    async def give_up_turn(self, group: Group) -> None:
        """Roll back the savepoint and pass the turn on. Earlier transactions of the group are not affected."""
        try:
            if not await self._hop(_undo):
                raise DatabaseError("the whole transaction was rolled back")
        except DatabaseError as error:
            await self._fail(group, error)
        else:
            await self.pass_on(group)

    async def pass_on(self, group: Group) -> None:
        """Give the turn to the next transaction that waits, or end the group's transaction."""
        self._turn = None
        if not self._is_old(group) and self._wake_next():
            return
        try:
            await self._hop(_commit if group.size else _roll_back)
        except DatabaseError as error:
            await self._fail(group, error)
        else:
            self._settle(group)

    def _is_old(self, group: Group) -> bool:
        """Return whether a transaction of the group waits for the COMMIT too long already."""
        return group.size > 0 and asyncio.get_running_loop().time() > group.since + _OLDEST

    def _settle(self, group: Group) -> None:
        self._group = None
        group.committed.set_result(None)
        self._hand_over()

    async def _fail(self, group: Group, error: DatabaseError) -> None:
        self._group = None
        self._turn = None
        group.committed.set_exception(error)
        group.committed.exception()  # marks it as retrieved: nothing may be waiting
        try:
            await self._hop(_roll_back)
        except DatabaseError:
            pass  # the connection is gone, and its transaction with it
        self._hand_over()

    def _hand_over(self) -> None:
        if not self._wake_next():
            self._state = WriterState.IDLE

    def _wake_next(self) -> bool:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return True
        return False

    async def alone(self, function: Callable[[sqlite3.Connection], Any]) -> None:
        """Run a function that begins and ends its own transaction, outside every group. It has no deadline."""
        group = await self.take_turn(_Alone("a migration", math.inf))
        if group.size:
            try:
                await self._hop(_commit)
            except DatabaseError as error:
                await self._fail(group, error)
                raise
            group.committed.set_result(None)
            self._group = group = Group()
        try:
            await self._hop(function)
        finally:
            await finish(self.pass_on(group))


class _Alone(Turn):
    def expire(self) -> None:
        raise AssertionError("it has no deadline")


def _end(final: Callable[[sqlite3.Connection], None], commit: bool, raw: sqlite3.Connection) -> None:
    final(raw)
    raw.execute("RELEASE one")
    if commit:
        raw.execute("COMMIT")


def _undo(raw: sqlite3.Connection) -> bool:
    if raw.in_transaction:
        raw.execute("ROLLBACK TO one")
        raw.execute("RELEASE one")
    return raw.in_transaction


def _commit(raw: sqlite3.Connection) -> None:
    raw.execute("COMMIT")


def _roll_back(raw: sqlite3.Connection) -> None:
    if raw.in_transaction:
        raw.execute("ROLLBACK")
