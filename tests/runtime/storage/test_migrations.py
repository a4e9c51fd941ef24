"""Migrations are applied once, in order, and completely."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from runtime import DefinitionError, StatementError
from runtime.storage.migrations import MigrationError, migrate
from runtime.storage.sqlite import SqliteDatabase


async def test_migrations_are_applied_once_and_in_order(database: SqliteDatabase, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_first.sql").write_text("CREATE TABLE a (x INT); INSERT INTO a VALUES (1);")
    assert await migrate(database, folder, "g") == 1
    (folder / "0002_second.sql").write_text("ALTER TABLE a ADD COLUMN y INT DEFAULT 5;")
    assert await migrate(database, folder, "g") == 1
    assert await migrate(database, folder, "g") == 0
    assert await database.fetch("SELECT * FROM a") == [{"x": 1, "y": 5}]


async def test_a_migration_is_applied_completely_or_not_at_all(database: SqliteDatabase, tmp_path: Path) -> None:
    (tmp_path / "0001_bad.sql").write_text("CREATE TABLE a (x INT); CREATE TABLE a (x INT);")
    with pytest.raises(MigrationError, match=r"0001_bad\.sql: .*already exists"):
        await migrate(database, tmp_path, "g")
    with pytest.raises(StatementError):
        await database.fetch("SELECT * FROM a")
    async with asyncio.timeout(5):
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO notes (text) VALUES ('still works')")


async def test_two_processes_may_migrate_at_the_same_time(database: SqliteDatabase, tmp_path: Path) -> None:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE a (x INT);")
    other = SqliteDatabase(database.path, durable=False)
    await other.open()
    try:
        counts = await asyncio.gather(migrate(database, tmp_path, "g"), migrate(other, tmp_path, "g"))
        assert sum(counts) in (1, 2)
        assert await other.fetch("SELECT count(*) AS n FROM callboard_migrations WHERE grp = 'g'") == [{"n": 1}]
    finally:
        await other.close()


async def test_a_migration_that_was_changed_or_removed_is_refused(database: SqliteDatabase, tmp_path: Path) -> None:
    path = tmp_path / "0001_first.sql"
    path.write_text("CREATE TABLE a (x INT);")
    await migrate(database, tmp_path, "g")
    path.write_text("CREATE TABLE a (x TEXT);")
    with pytest.raises(MigrationError, match="was changed after it was applied"):
        await migrate(database, tmp_path, "g")
    path.unlink()
    with pytest.raises(MigrationError, match="written by a newer version"):
        await migrate(database, tmp_path, "g")


async def test_a_migration_file_needs_a_number(tmp_path: Path) -> None:
    (tmp_path / "users.sql").write_text("CREATE TABLE x (id TEXT);")
    database = SqliteDatabase(tmp_path / "x.sqlite")
    await database.open()
    try:
        with pytest.raises(DefinitionError, match="0001_create_accounts"):
            await migrate(database, tmp_path, "x")
    finally:
        await database.close()


async def test_a_byte_order_mark_does_not_change_a_migration(database: SqliteDatabase, tmp_path: Path) -> None:
    path = tmp_path / "0001_first.sql"
    path.write_text("CREATE TABLE a (x INT);", encoding="utf-8-sig")
    assert await migrate(database, tmp_path, "g") == 1
    path.write_text("CREATE TABLE a (x INT);")
    assert await migrate(database, tmp_path, "g") == 0
    (with_mark,) = await database.fetch("SELECT digest FROM callboard_migrations WHERE grp = 'g'")
    before = hashlib.sha256("\ufeffCREATE TABLE a (x INT);".encode()).hexdigest()  # how earlier versions stored it
    assert with_mark["digest"] != before
    await database.execute("UPDATE callboard_migrations SET digest = $1 WHERE grp = 'g'", before)
    assert await migrate(database, tmp_path, "g") == 0


async def test_files_that_begin_with_a_dot_are_not_migrations(database: SqliteDatabase, tmp_path: Path) -> None:
    for name in ("._0001_first.sql", ".0001_first.sql", ".#0001_first.sql"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE a (x INT);")
    assert await migrate(database, tmp_path, "g") == 1
