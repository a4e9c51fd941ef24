"""Connections to PostgreSQL by asyncpg, each of whose calls ends in time, and the translation of their errors."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg

from runtime.contract.errors import CallboardError
from runtime.storage.database import Conflict, ConstraintError, DatabaseError, MissingTable, Row, StatementError
from runtime.storage.postgres_url import PostgresUrl
from runtime.storage.postgres_values import adapted

_untyped: Any = asyncpg
CONNECT_TIMEOUT = 5.0
"""The seconds that each host gets to accept a connection."""
_CLOSE_TIMEOUT = 1.0
_REMEMBERED = 500
_WRONG = re.compile("22|42|0A")
"""The classes of SQLSTATE of statements that are wrong: data exceptions, syntax and access rules, and features that are missing."""
_CONNECTION = re.compile("08|57P0[123]")
"""Those of a connection that has ended."""
_CONFLICTS = ("40001", "40P01", "55P03")
_PLAN = "0A000"


class ConnectionGone(DatabaseError):
    """The connection has ended. What it was about to do was not done, unless it was a COMMIT."""


class Statement(NamedTuple):
    """A statement as the server knows it: the types of its parameters."""

    types: tuple[str, ...]


class PostgresConnection:
    """One connection. Used by one task at a time.

    Attributes:
        is_usable: whether nothing has failed that leaves its state unknown.
    """

    def __init__(self, raw: Any, known: dict[str, Statement]) -> None:
        self._raw = raw
        self._known = known
        self._usable = True

    @property
    def is_usable(self) -> bool:
        return self._usable and not self._raw.is_closed()

    async def run(self, sql: str, seconds: float) -> None:
        """Run statements without parameters, in one message. Raises like `fetch`."""
        await self._guarded(self._raw.execute(sql, timeout=seconds), seconds)

    async def fetch(self, sql: str, params: Sequence[Any], seconds: float) -> list[Row]:
        """Run a query, and return its rows.

        Raises:
            StatementError: if the statement is wrong, or violates a constraint.
            Conflict: if it was in the way of another transaction.
            ConnectionGone: if the connection has ended, or the server did not answer in time.
            DatabaseError: if the server failed.
        """
        values = await self.values(sql, params, seconds)
        records = await self._guarded(self._raw.fetch(sql, *values, timeout=seconds), seconds)
        return [dict(record) for record in records]

    async def execute(self, sql: str, params: Sequence[Any], seconds: float) -> int:
        """Run a statement, and return the number of rows that it changed. Raises like `fetch`."""
        values = await self.values(sql, params, seconds)
        status: str = await self._guarded(self._raw.execute(sql, *values, timeout=seconds), seconds)
        words = status.split()
        return int(words[-1]) if words[0] in ("INSERT", "UPDATE", "DELETE", "MERGE") else 0

    async def append(self, sql: str, rows: Sequence[Sequence[str]], seconds: float) -> list[Row]:
        """Run a statement whose parameters are the number of rows, and an array for each of their columns. Raises like `fetch`."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        records = await self._guarded(self._raw.fetch(sql, len(rows), *columns, timeout=seconds), seconds)
        return [dict(record) for record in records]

    def cursor(self, sql: str, values: Sequence[Any]) -> Any:
        """Return the rows of a query as they come, inside a transaction."""
        return self._raw.cursor(sql, *values, prefetch=100)

    async def values(self, sql: str, params: Sequence[Any], seconds: float) -> list[Any]:
        """Return the parameters of a statement as the driver takes them. Raises like `fetch`."""
        known = self._known.get(sql)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            prepared = await self._guarded(self._raw.prepare(sql, name="", timeout=seconds), seconds)
            known = self._known[sql] = Statement(tuple(tp.name for tp in prepared.get_parameters()))
        return adapted(params, known.types)

    async def _guarded(self, work: Any, seconds: float) -> Any:
        """Await a call of the driver. One that is cancelled or too late leaves the connection unusable."""
        try:
            async with asyncio.timeout(
                seconds + _CLOSE_TIMEOUT
            ):  # the driver's own timeout waits for the server's answer to its cancel
                return await work
        except Exception as error:
            found = translated(error)
            if isinstance(found, ConnectionGone):
                self.terminate()
            raise found from error
        except asyncio.CancelledError:
            self._usable = False
            raise

    def terminate(self) -> None:
        """End the connection at once. The server rolls back what was not committed."""
        self._usable = False
        self._raw.terminate()

    async def close(self) -> None:
        """Close the connection, if the server answers in time."""
        self._usable = False
        try:
            await self._raw.close(timeout=_CLOSE_TIMEOUT)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._raw.terminate()


async def connect(
    url: PostgresUrl, known: dict[str, Statement], settings: dict[str, str] | None, cached: int
) -> PostgresConnection:
    """Connect to the first host that accepts, and that takes writes.

    Args:
        settings: server settings that the connection begins with.
        cached: how many statements the server keeps prepared; 0 behind a pooler that gives each transaction another server connection.

    Raises:
        ConnectionGone: if none does.
    """
    faults: list[str] = []
    for host in url.hosts:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                raw = await _untyped.connect(
                    url.of_host(host), timeout=CONNECT_TIMEOUT, statement_cache_size=cached, server_settings=settings,
                    target_session_attrs="primary" if len(url.hosts) > 1 else "any",
                )  # fmt: skip
        except (
            OSError,
            TimeoutError,
            ValueError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            faults.append(f"{host or 'localhost'}: {str(error) or type(error).__name__}")
        else:
            return PostgresConnection(raw, known)
    raise ConnectionGone(f"{url}: cannot connect: {'; '.join(faults)}")


def translated(error: Exception) -> CallboardError:
    """Translate an error of the driver by its SQLSTATE (PostgreSQL, appendix A)."""
    if isinstance(error, CallboardError):
        return error
    state = getattr(error, "sqlstate", None) or ""
    message = str(error).partition("\n")[0]
    if isinstance(error, asyncpg.PostgresError) and not _CONNECTION.match(state):
        if state.startswith("23"):
            return ConstraintError(message)
        if state == "42P01":
            return MissingTable(
                f"{message}: create it in a file in the service's folder migrations/, such as 0001_create_tables.sql"
            )
        if state == "25006":
            return StatementError(f"{message}: fetch() only reads: write through tx, or with self.db.execute")
        if state in _CONFLICTS or isinstance(error, asyncpg.InvalidCachedStatementError):
            return Conflict(message)
        if _WRONG.match(state):
            return StatementError(message)
        return DatabaseError(message)
    if isinstance(error, asyncpg.DataError):
        return StatementError(message)
    return ConnectionGone(f"the connection to the database has ended: {message or type(error).__name__}")
