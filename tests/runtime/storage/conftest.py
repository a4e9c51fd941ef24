"""A database with one table."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime.storage.sqlite import SqliteDatabase
from runtime.storage.sqlite_statements import SqliteStatement, SqliteStatements


class StatementsInOnePlace(SqliteStatements):
    """Statements that all run in the thread, or as far as possible in the event loop, however long they take."""

    def __init__(self, *, quick: bool) -> None:
        super().__init__()
        self._quick = quick

    def find(self, sql: str) -> SqliteStatement:
        found = super().find(sql)
        found.quick = self._quick and not found.alters
        return found


@pytest.fixture
async def database(tmp_path: Path) -> AsyncGenerator[SqliteDatabase, None]:
    opened = SqliteDatabase(tmp_path / "x.sqlite", durable=False)
    await opened.open()
    await opened.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)")
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture(params=["in the thread", "in the event loop"])
def database_in_both_places(database: SqliteDatabase, request: pytest.FixtureRequest) -> SqliteDatabase:
    """The database, for tests that run both ways: with its statements in the thread, and in the event loop."""
    database.statements = StatementsInOnePlace(quick=request.param == "in the event loop")
    return database
