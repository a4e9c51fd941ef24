"""The writer: turns at SQLite's only writing connection, and transactions that share a COMMIT.

The transaction that has the turn runs in a savepoint of its group's transaction, and passes the turn on when it ends. No
transaction counts as committed before the COMMIT that its group shares. Decision 1 has the figures.

A transaction that keeps the turn while others wait is logged; at its deadline it loses the turn.
"""

import asyncio
import logging
import math
import sqlite3
from collections import deque
from collections.abc import Callable
from contextvars import Context
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from runtime.metrics import Commits
from runtime.storage.database import DatabaseError
from runtime.storage.sqlite_connection import SqliteConnection
from runtime.storage.turn import Turn, commit_begun_group, commit_group, complete_turn, roll_back, undo_turn
from runtime.telemetry import current

T = TypeVar("T")

MOST = 64
"""The largest number of transactions that share a COMMIT."""
_AHEAD = 8
"""The number of waiting transactions that are woken together."""
_OLDEST = 0.1
"""The seconds after which a transaction that has ended waits for no further one before the COMMIT."""
_LOOK = 0.1
"""The seconds between two looks at the transaction that has the turn."""


class Group:
    """Transactions that share one COMMIT.

    Attributes:
        ended: the transactions that have ended without an error.
        since: when the first of them ended.
        ahead: how many transactions are woken together. Most run from their first statement to their end in one step of their
            task, so that all of them take their turns within one turn of the event loop. If one does not, the rest of the
            group is woken one by one.
    """

    def __init__(self) -> None:
        self.ended: list[Turn] = []
        self.since: float = 0.0
        self.ahead = _AHEAD


class WriterState(Enum):
    """Whether a transaction has the turn, or a COMMIT runs."""

    IDLE = "IDLE"
    BUSY = "BUSY"


class Writer:
    """Passes the writing connection from one transaction to the next.

    Args:
        connection: returns the writing connection. Raises `DatabaseError` if the database is closed.
        log: returns the logger for transactions that keep others waiting.
        commits: returns what measures the commits.
    """

    def __init__(
        self, connection: Callable[[], SqliteConnection], log: Callable[[], logging.Logger], commits: Callable[[], Commits | None]
    ) -> None:
        self._connection = connection
        self._log = log
        self._commits = commits
        self._began: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn: Turn | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._state = WriterState.IDLE
        self._queue: deque[Turn] = deque()
        self._group: Group | None = None

    def __repr__(self) -> str:
        ended = None if self._group is None else len(self._group.ended)
        return f"<Writer [{self._state.value}] waiting={len(self._queue)} group={ended}>"

    @property
    def contended(self) -> bool:
        """Whether a transaction waits for the one that has the turn."""
        return any(turn.waits for turn in self._queue)

    async def take_turn(self, turn: Turn) -> None:
        """Wait for the turn, for a transaction's first statement."""
        if self._state is WriterState.IDLE:
            self._give(turn)
            return
        self._enqueue(turn)
        try:
            while self._turn is not turn:
                turn.woken = asyncio.get_running_loop().create_future()
                await turn.woken
                if self._turn is not turn and self._group is not None:
                    self._group.ahead = 1
        except asyncio.CancelledError:
            turn.waits = False
            if self._turn is turn:  # it has been given the turn already
                self.pass_on()
            raise

    def _enqueue(self, turn: Turn) -> None:
        turn.waits = True
        self._queue.append(turn)

    def _give(self, turn: Turn) -> None:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._state = WriterState.BUSY
        self._turn = turn
        turn.since = loop.time()
        if self._group is None:
            self._group = Group()
        if self._look_timer is None:
            self._look_timer = loop.call_later(_LOOK, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Log a transaction that keeps others waiting, and end it at its deadline. Runs while a transaction has the turn."""
        self._look_timer = None
        turn = self._turn
        if turn is None:
            return
        current.set(turn.origin)  # in the timer's own context
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
        self._look_timer = loop.call_at(min(now + _LOOK, turn.deadline), self._look, loop, context=Context())

    def stop(self) -> None:
        """Look at no transaction any more: the connection is closed."""
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None

    def end(self, turn: Turn) -> None:
        """Complete a transaction, pass the turn on, and settle the transaction once its group is committed.

        A transaction that has run no statement waits for the turn here.
        """
        if turn is not self._turn:
            if self._state is WriterState.BUSY:
                self._enqueue(turn)
                return
            self._give(turn)
        if self._complete(turn):
            self.pass_on()

    def _complete(self, turn: Turn) -> bool:
        """Complete a transaction. Return False if that happens in the thread, and the turn is passed on afterwards."""
        assert self._group is not None
        self._turn = None  # a commit is completed even after the deadline
        commit = len(self._group.ended) + 1 >= MOST or not self._queue or self._is_old()
        if commit or not turn.ends_quickly():
            group = self._group.ended if commit else None
            if commit:
                self._measure()
            self._run(partial(complete_turn, turn, group, False)).add_done_callback(partial(self._completed, turn, commit))
            return False
        failure: Exception | None = None
        try:
            failure = complete_turn(turn, None, True, self._connection().raw)
        except Exception as error:
            self._settle(error, turn)
        else:
            self._note(turn, failure)
        return True

    def _completed(self, turn: Turn, commit: bool, done: "asyncio.Future[Exception | None]") -> None:
        error = done.exception()
        if error is not None:
            self._settle(error, turn)
        else:
            self._note(turn, done.result())
            if commit:
                self._settle(None)
        self.pass_on()

    def _note(self, turn: Turn, failure: Exception | None) -> None:
        """Take note that a transaction has ended."""
        if failure is not None:
            turn.settle(failure)
            return
        assert self._group is not None
        assert self._loop is not None
        if not self._group.ended:
            self._group.since = self._loop.time()
        self._group.ended.append(turn)

    def _settle(self, error: BaseException | None, turn: Turn | None = None) -> None:
        """End the group, which is committed, or with an error rolled back; and with it a transaction that has not ended."""
        group, self._group = self._group, None
        ended = [] if group is None else group.ended
        began, self._began = self._began, None
        commits = self._commits()
        if error is None and began is not None and commits is not None:
            commits.observe(began, len(ended))
        if turn is not None:
            ended.append(turn)
        for one in ended:
            if error is None:
                one.settle(None)
            elif len(ended) == 1 and isinstance(error, DatabaseError):
                one.settle(error)
            else:  # one error for each, whose traceback it is
                failed = DatabaseError(f"the commit failed: {error}")
                failed.__cause__ = error
                one.settle(failed)

    async def give_up_turn(self) -> None:
        """Roll back the savepoint and pass the turn on. Earlier transactions of the group are not affected."""
        try:
            if not await self._run(undo_turn):
                self._settle(DatabaseError("the whole transaction was rolled back"))
        except DatabaseError as error:
            self._settle(error)
        self.pass_on()

    def pass_on(self) -> None:
        """Give the turn to the next transaction that waits, or end the group's transaction."""
        self._turn = None
        while self._queue and not self._is_old():
            turn = self._queue.popleft()
            if not turn.waits:
                continue
            turn.waits = False
            self._give(turn)
            if turn.woken is not None:
                if not turn.woken.done():
                    turn.woken.set_result(None)
                if self._group is not None and self._group.ended:  # else it has to wait for BEGIN
                    self._wake_ahead(self._group.ahead - 1)
                return
            if not self._complete(turn):
                return
        if self._group is None:
            self._state = WriterState.IDLE
            return
        ended = self._group.ended
        if ended:
            self._measure()
        self._run(partial(commit_group, ended) if ended else roll_back).add_done_callback(self._closed)

    def _measure(self) -> None:
        """Note that a COMMIT begins."""
        commits = self._commits()
        self._began = None if commits is None else commits.stopwatch()

    def _wake_ahead(self, count: int) -> None:
        """Wake the next transactions together with the one that has the turn, each of which may find that it has it, too."""
        for turn in islice(self._queue, count):
            if turn.woken is not None and not turn.woken.done():
                turn.woken.set_result(None)

    def _closed(self, done: "asyncio.Future[None]") -> None:
        self._settle(done.exception())
        self.pass_on()

    def _is_old(self) -> bool:
        """Return whether a transaction of the group waits for the COMMIT too long already."""
        group = self._group
        return group is not None and bool(group.ended) and self._loop is not None and self._loop.time() > group.since + _OLDEST

    def _run(self, function: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        try:
            return self._connection().run(function)
        except DatabaseError as error:  # it is closed
            failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    async def alone(self, title: str, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that begins and ends its own transaction, outside every group. It has no deadline."""
        await self.take_turn(_Alone(title, math.inf))
        try:
            ended = [] if self._group is None else self._group.ended
            await self._run(partial(commit_begun_group, ended))
            self._settle(None)
            return await self._run(function)
        except DatabaseError as error:
            self._settle(error)
            raise
        finally:
            self.pass_on()


class _Alone(Turn):
    """The turn of a function that begins and ends its own transaction. It neither ends nor expires here."""

    def ends_quickly(self) -> bool:
        return False

    def complete(self, raw: sqlite3.Connection, *, here: bool) -> None:
        raise AssertionError("it does not end")

    def settle(self, error: Exception | None) -> None:
        raise AssertionError("it does not end")

    def expire(self) -> None:
        raise AssertionError("it has no deadline")
