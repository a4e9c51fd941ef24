"""Turns at SQLite's one writer, and the transactions that share a COMMIT.

Whoever has the turn may open a savepoint in the group's transaction, and passes the turn on at its end. Nobody is told that
a transaction is committed before the COMMIT that its group shares. Decision 1 has the figures.
"""

import asyncio
import functools
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from runtime.storage.database import DatabaseError
from runtime.tasks import finish

MOST = 64
"""The most transactions that share a COMMIT."""

Hop = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]
"""Runs a function in the writing connection's thread. Raises our errors."""


class Group:
    """Transactions that share one COMMIT; `size` counts those that have ended well."""

    def __init__(self) -> None:
        self.size = 0
        self.committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Writer:
    """Hands the writing connection from one transaction to the next."""

    def __init__(self, hop: Hop) -> None:
        self._hop = hop
        self._busy = False
        self._queue: deque[asyncio.Future[None]] = deque()
        self._group: Group | None = None

    def __repr__(self) -> str:
        return (
            f"<Writer [{'BUSY' if self._busy else 'IDLE'}] waiting={len(self._queue)} group={self._group and self._group.size}>"
        )

    async def take_turn(self) -> Group:
        """Waits for the writer; what begins then is one savepoint of the group returned."""
        if self._busy:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it has the turn already
                    await finish(self.pass_on(self._entered()))
                raise
        self._busy = True
        return self._entered()

    def _entered(self) -> Group:
        if self._group is None:
            self._group = Group()
        return self._group

    async def end_turn(self, group: Group, final: Callable[[sqlite3.Connection], None]) -> None:
        """Runs `final`, passes the turn on, and returns when the group is committed.

        Raises:
            DatabaseError: it could not be committed: nothing of the group was kept.
        """
        commit = group.size + 1 >= MOST or not self._queue
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
            await self.pass_on(group)
        try:
            await asyncio.shield(group.committed)
        except DatabaseError as error:
            raise DatabaseError(str(error)) from error  # each waiter its own: a traceback grows on a shared one

    async def give_up_turn(self, group: Group) -> None:
        """Undoes the savepoint and passes the turn on; what the group has done before stands."""
        try:
            if not await self._hop(_undo):
                raise DatabaseError("the whole transaction was rolled back")
        except DatabaseError as error:
            await self._fail(group, error)
        else:
            await self.pass_on(group)

    async def pass_on(self, group: Group) -> None:
        """Gives the turn to who waits, or ends the group's transaction."""
        if self._wake_next():
            return
        try:
            await self._hop(_commit if group.size else _roll_back)
        except DatabaseError as error:
            await self._fail(group, error)
        else:
            self._settle(group)

    def _settle(self, group: Group) -> None:
        self._group = None
        group.committed.set_result(None)
        self._hand_over()

    async def _fail(self, group: Group, error: DatabaseError) -> None:
        self._group = None
        group.committed.set_exception(error)
        group.committed.exception()  # nobody may be waiting
        try:
            await self._hop(_roll_back)
        except DatabaseError:
            pass  # the connection is gone, and its transaction with it
        self._hand_over()

    def _hand_over(self) -> None:
        if not self._wake_next():
            self._busy = False

    def _wake_next(self) -> bool:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return True
        return False

    async def alone(self, function: Callable[[sqlite3.Connection], Any]) -> None:
        """Runs a function that has a transaction of its own, in nobody's group."""
        group = await self.take_turn()
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
