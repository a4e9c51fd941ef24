"""SQLite's statements: their parameters, what they return, their errors, and whether they may run in the event loop.

A hop to the connection's thread and back costs the processor 60 µs, and most statements take less than 5 µs. So a statement
that is known to be quick runs in the event loop, unless it has to wait for the lock of another process (decision 9).
"""

import itertools
import math
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from runtime.storage.database import ConstraintError, DatabaseError, MissingTable, Row, StatementError
from runtime.storage.values import blame, bound

T = TypeVar("T")

QUICK_SECONDS = 1e-4
"""The duration up to which a statement in the thread is quick."""
_LONG_MEAN = 2e-4
"""The mean duration from which a statement in the event loop is not quick any more."""
_MEAN_OF = 256
"""Over about how many runs the mean is taken."""
_COUNTED_SECONDS = 0.005
"""The most that a single run counts: the operating system may have paused the process in it. Eleven such runs in a row are too many."""
_FIRST_PROOF, _LONGEST_PROOF = 8, 1024
"""How often a statement runs in the thread before it may be quick. Each time it turns out not to be, it is twice as often."""
_MOST_KNOWN = 1024
"""How many statements are remembered."""


_explained = itertools.count()


class SqliteStatement:
    """A statement, and how long it takes.

    It is quick once the fastest of some runs in the thread took no longer than `QUICK_SECONDS`, and SQLite's program for it
    has no loop over rows, so that other parameters hardly make it longer. In the event loop the mean counts, which several long
    runs raise above the limit: of a table that is not in memory any more, or with very large values.

    Attributes:
        text: the statement, with parameters as SQLite writes them.
        quick: whether it may run in the event loop.
    """

    __slots__ = ("_fastest", "_mean", "_proof", "_runs", "alters", "quick", "text")

    def __init__(self, sql: str) -> None:
        self.text: str = _TOKEN.sub(lambda token: token[0] if token["number"] is None else f"?{token['number']}", sql)
        self.quick: bool = False
        self.alters: bool = _FIRST_WORD.match(sql) is None
        """Whether it may change the schema, and with it the programs of other statements."""
        self._proof: float = math.inf if self.alters else _FIRST_PROOF
        self._runs = 0
        self._fastest = math.inf
        self._mean = 0.0

    def __repr__(self) -> str:
        return f"<SqliteStatement {self.text!r:.60} [{'QUICK' if self.quick else 'THREAD'}]>"

    def execute(self, raw: sqlite3.Connection, params: Sequence[Any]) -> int:
        """Run it to its end, and return the number of rows that it changed, without those that its triggers changed."""
        before = raw.total_changes
        cursor = self._run(raw, params)
        if cursor.description is None and cursor.rowcount >= 0:
            return cursor.rowcount
        for _ in cursor:  # with RETURNING, sqlite3 does not count before the last row, and after WITH not at all
            pass
        return raw.execute("SELECT changes()").fetchone()[0] if raw.total_changes != before else 0

    def fetch(self, raw: sqlite3.Connection, params: Sequence[Any]) -> list[Row]:
        """Run it, and return all rows."""
        cursor = self._run(raw, params)
        rows = cursor.fetchall()
        if not rows:
            return []
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in rows]

    def scan(self, raw: sqlite3.Connection, each: Callable[[Row], bool], params: Sequence[Any]) -> None:
        """Run it, and pass its rows to `each`, one after another, until it returns False."""
        with closing(self._run(raw, params)) as cursor:  # an open one would keep the database's log from being shortened
            names = [column[0] for column in cursor.description]
            for row in cursor:
                if not each(dict(zip(names, row, strict=True))):
                    return

    def _run(self, raw: sqlite3.Connection, params: Sequence[Any]) -> sqlite3.Cursor:
        try:
            return raw.execute(self.text, bound(params))
        except (OverflowError, UnicodeEncodeError) as error:
            raise blame(params) or error from None

    def timed_here(
        self, method: Callable[[sqlite3.Connection, Sequence[Any]], T], raw: sqlite3.Connection, params: Sequence[Any]
    ) -> T:
        """Run it in the event loop by one of its methods."""
        began = perf_counter()
        try:
            return method(raw, params)
        finally:
            self._mean += (min(perf_counter() - began, _COUNTED_SECONDS) - self._mean) / _MEAN_OF
            if self._mean > _LONG_MEAN:
                self._back_to_the_thread()

    def timed_in_thread(
        self, method: Callable[[sqlite3.Connection, Sequence[Any]], T], raw: sqlite3.Connection, params: Sequence[Any]
    ) -> T:
        """Run it in the connection's thread by one of its methods."""
        began = perf_counter()
        result = method(raw, params)
        self._fastest = min(self._fastest, perf_counter() - began)
        self._runs += 1
        if self._runs >= self._proof:
            if self._fastest <= QUICK_SECONDS and not self._has_loop(raw, params):
                self.quick = True
            else:
                self._back_to_the_thread()
        return result

    def _back_to_the_thread(self) -> None:
        self.quick = False
        self._proof = min(self._proof * 2, _LONGEST_PROOF)
        self._runs = 0
        self._fastest = math.inf
        self._mean = 0.0

    def _has_loop(self, raw: sqlite3.Connection, params: Sequence[Any]) -> bool:
        """Return whether SQLite's program for the statement, or for a trigger of it, may loop over many rows."""
        try:
            # A text that is new each time, because sqlite3 does not compile one that it knows again after the schema has changed
            program = raw.execute(f"EXPLAIN /* {next(_explained)} */ {self.text}", bound(params)).fetchall()
        except sqlite3.Error:
            return True
        names = {name for _, name, *_ in program}
        # Rows that the statement itself has collected, for RETURNING or `IN (…)`: without another loop there are few
        own: set[int] = set()
        if "Program" not in names:
            own.update(row[2] for row in program if row[1] == "OpenEphemeral")
        return not names.isdisjoint(_LOOPS) or any(
            (name in ("Next", "Prev") and first not in own)
            # after NullRow it goes on with the only row of a LEFT JOIN that has found none
            or (name == "Goto" and 1 < second < address and program[address - 1][1] != "NullRow")
            for address, name, first, second, *_ in program
        )


class SqliteStatements:
    """The statements that a database has run, by their texts."""

    def __init__(self) -> None:
        self._known: dict[str, SqliteStatement] = {}

    def find(self, sql: str) -> SqliteStatement:
        """Return a statement by its text, with parameters such as `$1`."""
        found = self._known.get(sql)
        if found is None:
            found = SqliteStatement(sql)
            if found.alters or len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            if not found.alters:
                self._known[sql] = found
        return found


def translated(path: Path, error: Exception) -> DatabaseError:
    """Translate an error of SQLite by its result code (sqlite.org/rescode.html)."""
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintError(str(error))
    if str(error).startswith("no such table: "):
        return MissingTable(f"{error}: create it in a file in the service's folder migrations/, such as 0001_{path.stem}.sql")
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_READONLY:
        return StatementError(f"{error}: fetch() only reads: write through tx, or with self.db.execute")
    wrong = code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)
    if wrong or isinstance(error, sqlite3.InterfaceError | sqlite3.DataError | OverflowError):
        return StatementError(str(error))
    if isinstance(error, UnicodeError) or (isinstance(error, sqlite3.ProgrammingError) and "closed" not in str(error)):
        return StatementError(str(error))
    return DatabaseError(f"{path}: {error}")


_LOOPS = frozenset({"SorterNext", "VNext", "VUpdate", "Yield", "RowSetRead", "Clear", "Count"})
"""Instructions of SQLite (sqlite.org/opcode.html) that end a loop over rows, or take as long as one."""

_FIRST_WORD = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH|VALUES)\b", re.IGNORECASE)
"""How a statement begins that does not alter the schema."""

_TOKEN = re.compile(
    r"""
      '(?:[^']|'')*'          # text, also as in x'00'
    | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]   # quoted names
    | --[^\n]* | /\*.*?(?:\*/|\Z)                    # comments
    | [^\W\d][\w$]*          # words
    | \$(?P<number>\d+)
    """,
    re.VERBOSE | re.DOTALL,
)
"""The tokens of SQLite (sqlite.org/lang_expr.html) in which a `$` may occur, and a parameter."""
