"""A transaction of PostgreSQL, on the service's writing connection and under the service's lock."""

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from runtime.contract.errors import UsageError
from runtime.storage.database import DatabaseError, Guard, Holder, Row, StatementError, Superseded
from runtime.storage.managed_transaction import ManagedTransaction
from runtime.storage.postgres_connection import ConnectionGone, PostgresConnection
from runtime.tasks import finish

if TYPE_CHECKING:
    from runtime.storage.postgres import PostgresDatabase

_APPEND = (
    "WITH head AS (UPDATE callboard_stream_head SET seq = seq + $1 WHERE one = 1 RETURNING seq), "
    "rows AS (SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) "
    "WITH ORDINALITY AS given (id, type, body, at, trace, ordinal)), "
    "appended AS (INSERT INTO callboard_stream (seq, id, type, body, at, trace) "
    "SELECT head.seq - $1 + rows.ordinal, rows.id, rows.type, rows.body, rows.at, rows.trace FROM head, rows) "
    "SELECT seq FROM head"
)
"""Appends events to the stream. It is the last statement, so that the row of the head is locked as briefly as possible."""
_MARK = "SELECT gen_random_uuid()::text AS id WHERE pg_current_xact_id_if_assigned() IS NOT NULL"
"""Makes the mark of a transaction that has written something. Afterwards, the mark says whether it was committed."""
_LONGEST = 3600.0
"""The seconds of a statement without a deadline."""


class Mark(NamedTuple):
    """The statement that finds a row which a transaction has written, if it was committed."""

    sql: str
    params: tuple[Any, ...]


class _Ran(NamedTuple):
    """A statement that has run in this transaction, and what it returned."""

    sql: str
    params: Sequence[Any]
    fetches: bool
    result: Any


class PostgresTransaction(ManagedTransaction):
    """A transaction, as the context manager that commits it.

    PostgreSQL gives up the whole transaction when a statement fails. The port promises that only the statement is undone. So the
    statements before are run again, which is checked to have the same results. That costs nothing where nothing fails; a savepoint
    would take a round trip for each statement.
    """

    ended: bool
    committed: bool
    head: int

    def __init__(self, database: "PostgresDatabase", guard: Guard | None, holder: Holder) -> None:
        super().__init__(database)
        self._database = database
        self._guard = guard
        self._holder = holder
        self._connection: PostgresConnection | None = None
        self._one_at_a_time = asyncio.Lock()
        self._ran: list[_Ran] = []
        self._lost: DatabaseError | Superseded | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<PostgresTransaction {self._holder.title} [{'ENDED' if self.ended else 'BEGUN' if self.begun else 'NEW'}]>"

    @property
    def begun(self) -> bool:
        return self._connection is not None

    # Statements

    async def _execute(self, sql: str, params: Sequence[Any]) -> int:
        found: int = await self._run(sql, params, fetches=False)
        return found

    async def _fetch(self, sql: str, params: Sequence[Any]) -> list[Row]:
        found: list[Row] = await self._run(sql, params, fetches=True)
        return found

    async def _run(self, sql: str, params: Sequence[Any], *, fetches: bool) -> Any:
        async with self._one_at_a_time:  # tasks of one handler may race
            if self.ended:
                raise UsageError("this transaction has ended: it lives as long as the handler that was given it")
            if self._lost is not None:
                raise self._lost
            try:
                if self._connection is None:
                    await self._begin()
                assert self._connection is not None
                ran = await self._one(self._connection, sql, params, fetches=fetches)
            except StatementError as error:
                if not isinstance(error.__cause__, ValueError | type(None)) and self._connection is not None:
                    await self._again(self._connection)
                raise
            except (DatabaseError, Superseded) as error:
                self._lost = self._lost or error
                raise self._lost from error.__cause__
            except asyncio.CancelledError:
                self._lost = DatabaseError("a statement of the transaction was cancelled")
                raise
            self._ran.append(ran)
            return ran.result

    async def _one(self, connection: PostgresConnection, sql: str, params: Sequence[Any], *, fetches: bool) -> _Ran:
        run = connection.fetch if fetches else connection.execute
        return _Ran(sql, params, fetches, await run(sql, params, self._seconds))

    @property
    def _seconds(self) -> float:
        """The seconds until the deadline."""
        deadline = self._holder.deadline
        return _LONGEST if deadline == math.inf else max(deadline - asyncio.get_running_loop().time(), 0.001)

    async def _begin(self) -> None:
        """Wait for the turn, begin, and run the guard."""
        loop = asyncio.get_running_loop()
        connection = await self._database.begin(self._holder, self._seconds)
        if self.ended:  # the handler has returned, but left a task behind
            await finish(self._database.end(connection, roll_back=True))
            raise UsageError("this transaction has ended while a statement waited for its turn")
        self._connection = connection
        if self._holder.deadline != math.inf:
            self._expiry = loop.call_at(self._holder.deadline, self._expire)
        if self._guard is not None:
            ran = await self._one(connection, self._guard.sql, self._guard.params, fetches=False)
            if ran.result != 1:
                raise Superseded("another transaction has done this work")
            self._ran.append(ran)

    async def _again(self, connection: PostgresConnection) -> None:
        """Run the statements before the one that has failed again, in a new transaction."""
        try:
            await self._database.begin_again(connection, self._seconds)
            for ran in self._ran:
                again = await self._one(connection, ran.sql, ran.params, fetches=ran.fetches)
                if again.result != ran.result:
                    raise DatabaseError(
                        f"after a statement had failed, {ran.sql!r:.100} had another result than before: the transaction was rolled back"
                    )
        except DatabaseError as error:
            self._lost = error if not isinstance(error, StatementError) else DatabaseError(str(error))

    def _expire(self) -> None:
        """Roll the transaction back, because its deadline has passed."""
        if self.ended:
            return  # a commit is completed even after the deadline
        self._lost = DatabaseError(f"the transaction of {self._holder.title} took longer than its deadline, and was rolled back")
        self._database.log.error("%s has held the write transaction until its deadline: it is rolled back", self._holder.title)
        if self._connection is not None:
            self._connection.terminate()
            self._database.pass_on(self._connection)

    # The end

    async def _commit(self) -> None:
        await finish(self._committed())

    async def _committed(self) -> None:
        """Commit. A transaction that ran no statement and has nothing to write costs nothing."""
        async with self._one_at_a_time:
            self.ended = True
            if self._lost is not None:
                await self._leave(roll_back=True)
                raise self._lost
            if not (self.begun or self._guard is not None or self.final or self.appends):
                self.committed = True
                return
            try:
                await self._write()
            except BaseException:  # also a cancellation
                await self._leave(roll_back=True)
                raise
            self.committed = True
            await self._leave(roll_back=False)

    async def _write(self) -> None:
        if self._connection is None:
            self.ended = False
            await self._begin()
            self.ended = True
        connection = self._connection
        assert connection is not None
        seconds = max(self._seconds, 1.0)
        for sql, params in self.final:
            await connection.execute(sql, params, seconds)
        mark: Mark | None = None
        commit = "COMMIT"
        if self.appends:
            [row] = await connection.append(_APPEND, self.appends, seconds)
            self.head = row["seq"]
            mark = Mark("SELECT 1 FROM callboard_stream WHERE seq = $1 AND id = $2", (self.head, self.appends[-1][0]))
        elif await self._database.marks_commits(connection):
            rows = await connection.fetch(_MARK, (), seconds)
            if not rows:
                with suppress(ConnectionGone):  # it has written nothing
                    await connection.run("COMMIT", seconds)
                return
            made = str(UUID(rows[0]["id"]))
            mark = Mark("SELECT 1 FROM callboard_commits WHERE id = $1", (made,))
            commit = f"INSERT INTO callboard_commits (id) VALUES ('{made}');COMMIT"
        commits = self._database.commits
        began = 0.0 if commits is None else commits.stopwatch()
        try:
            await connection.run(commit, seconds)
            if commits is not None:
                commits.observe(began, 1)
        except ConnectionGone as error:
            if not await self._database.has_committed(mark):
                raise DatabaseError(f"the connection was lost before the commit: {error}") from error

    async def _roll_back(self) -> None:
        await finish(self._rolled_back())

    async def _rolled_back(self) -> None:
        self.ended = True
        async with self._one_at_a_time:
            await self._leave(roll_back=True)

    async def _leave(self, *, roll_back: bool) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self._connection is not None:
            await self._database.end(self._connection, roll_back=roll_back)
