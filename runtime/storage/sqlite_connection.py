"""A connection to SQLite, and the thread that runs what may block."""

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runtime.storage.database import DatabaseError
from runtime.storage.sqlite_statements import translated
from runtime.storage.worker import Worker
from runtime.tasks import finish

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

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
        self._worker = Worker(f"sqlite {path.stem}")
        self._in_a_row = 0

    async def open(self, pragmas: str) -> None:
        """Open the file and run some PRAGMA statements."""

        def connect() -> None:
            self.raw = sqlite3.connect(self._path, isolation_level=None, timeout=5, check_same_thread=False)
            self.raw.executescript(f"PRAGMA busy_timeout=5000; {pragmas} SELECT count(*) FROM sqlite_master;")

        try:
            await self._worker.submit(connect)
        except BaseException as error:
            await finish(self.close())
            if isinstance(error, sqlite3.Error):
                raise DatabaseError(f"{self._path}: cannot be opened: {error}") from error
            raise

    async def close(self) -> None:
        """Close the connection after what was submitted."""
        closed = self._worker.submit(self._close)
        self._worker.stop()
        await closed

    def _close(self) -> None:
        if hasattr(self, "raw"):
            self.raw.close()

    @property
    def idle(self) -> bool:
        """Whether the thread has nothing to do, so that the event loop may use the connection."""
        return not self._worker.pending

    def run(self, function: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        """Run a function in the thread. It runs even if the returned future is cancelled."""
        return self._worker.submit(partial(self._call, function))

    def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return function(self.raw)
        except (sqlite3.Error, ValueError, OverflowError) as error:  # a ValueError means that a value cannot be bound
            raise translated(self._path, error) from error

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
