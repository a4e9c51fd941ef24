"""A database with one table."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime.storage.sqlite import SqliteDatabase


@pytest.fixture
async def database(tmp_path: Path) -> AsyncGenerator[SqliteDatabase, None]:
    opened = SqliteDatabase(tmp_path / "x.sqlite", durable=False)
    await opened.open()
    await opened.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)")
    try:
        yield opened
    finally:
        await opened.close()
