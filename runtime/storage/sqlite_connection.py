"""A connection to SQLite, and the thread that runs what may block."""

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiosqlite

from runtime.storage.database import DatabaseError
from runtime.storage.sqlite_statements import translated
from runtime.tasks import finish

T = TypeVar("T")

WAIT_FOR_LOCKS = "PRAGMA busy_timeout=5000;"
"""Wait up to so many milliseconds for a lock that another process has."""
DO_NOT_WAIT = "PRAGMA busy_timeout=0;"
"""Fail at once if another process has the lock: the event loop must not wait."""

_MOST_IN_A_ROW = 32
"""How many statements run in the event loop before everything else that is ready gets a turn of it."""


class SqliteConnection:
    """A connection to SQLite. Its methods raise `DatabaseError`.

    Attributes:
        raw: the connection. The event loop uses it only while the thread has nothing to do.
    """

    raw: sqlite3.Connection

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = _Thread(path)
        self._in_a_row = 0

    async def open(self, pragmas: str) -> None:
        """Open the file and run some PRAGMA statements."""
        try:
            await self._thread
            self.raw = self._thread.raw
            await self._thread.submit(
                partial(self.raw.executescript, f"{WAIT_FOR_LOCKS} {pragmas} SELECT count(*) FROM sqlite_master;")
            )
        except BaseException as error:
            await finish(self.close())
            if isinstance(error, sqlite3.Error):
                raise DatabaseError(f"{self._path}: cannot be opened: {error}") from error
            raise

    async def close(self) -> None:
        """Close the connection after what was submitted."""
        await self._thread.close()

    @property
    def idle(self) -> bool:
        """Whether the thread has nothing to do, so that the event loop may use the connection."""
        return self._thread.idle

    def run(self, function: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        """Run a function in the thread. It runs even if the returned future is cancelled."""
        return self._thread.submit(partial(self.call, function))

    def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function: in the thread, or a quick one in the event loop while the thread has nothing to do."""
        try:
            return function(self.raw)
        except (sqlite3.Error, ValueError, OverflowError) as error:  # a ValueError means that a value cannot be bound
            raise translated(self._path, error) from error

    def begin_here(self) -> bool:
        """Begin a transaction with the write lock, in the event loop. Return False if the thread has to wait for the lock."""
        try:
            self.raw.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:  # if it is not the lock of another process, the thread meets the error again
            return False
        return True

    def begin(self) -> None:
        """Begin a transaction with the write lock, in the thread."""
        self.raw.execute(WAIT_FOR_LOCKS)
        try:
            self.raw.execute("BEGIN IMMEDIATE")
        finally:
            self.raw.execute(DO_NOT_WAIT)

    def must_yield(self) -> bool:
        """Count a statement that runs in the event loop. Return whether others have to get a turn of the loop before it."""
        self._in_a_row += 1
        if self._in_a_row <= _MOST_IN_A_ROW:
            return False
        self._in_a_row = 0
        return True

    def interrupt(self) -> None:
        """Let the statement that runs in the thread fail, if there is one."""
        self.raw.interrupt()


class _Thread(aiosqlite.Connection):
    """A connection with its thread, to which functions can be submitted. Only this class uses aiosqlite's private names."""

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False), 64)
        self._thread.daemon = True  # a program that fails before it closes its database must still end
        self._submitted = 0
        self._ran = 0  # counted in the thread

    @property
    def raw(self) -> sqlite3.Connection:
        """The connection, once it is open."""
        return self._conn

    @property
    def idle(self) -> bool:
        """Whether all functions that were submitted have run. The outcome of the last may not be delivered yet."""
        return self._ran == self._submitted

    def submit(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Run a function in the thread. It runs even if the returned future is cancelled."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submitted += 1
        self._tx.put_nowait((future, partial(self._counted, function)))
        return future

    def _counted(self, function: Callable[[], T]) -> T:
        try:
            return function()
        finally:
            self._ran += 1
