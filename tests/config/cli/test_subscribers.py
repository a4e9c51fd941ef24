"""`callboard subscribers`: for whom a service retains its events."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from config.cli.subscribers import subscribers_command
from runtime import CallboardError
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.sqlite import SqliteDatabase
from tests.project import RENTAL_SERVICES


async def _write(folder: Path, *statements: str) -> None:
    database = SqliteDatabase(folder / "rides.sqlite", durable=False)
    await database.open()
    try:
        await migrate(database, SCHEMA, "callboard")
        for statement in statements:
            await database.execute(statement)
    finally:
        await database.close()


def write(folder: Path, *statements: str) -> None:
    asyncio.run(_write(folder, *statements))


TWO = (
    "UPDATE callboard_stream_head SET seq = 100",
    "INSERT INTO callboard_readers (subscriber, seq, silent) VALUES ('wallet', 100, 59), ('billing', 7, 1000000)",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLBOARD_DATABASE__FOLDER", str(tmp_path))
    monkeypatch.setenv("CALLBOARD_SERVICES", RENTAL_SERVICES)
    return tmp_path


def subscribers(*arguments: str) -> str:
    result = CliRunner().invoke(subscribers_command, arguments)
    if isinstance(result.exception, CallboardError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_subscribers_are_shown_with_cursor_and_age(folder: Path) -> None:
    write(folder, *TWO)
    assert [line.split(maxsplit=3) for line in subscribers("rides").splitlines()] == [
        ["subscriber", "cursor", "behind", "age"],
        ["billing", "7", "93", "11 d 13 h"],
        ["wallet", "100", "0", "0 min"],
    ]
    assert json.loads(subscribers("rides", "--json").splitlines()[0]) == {
        "subscriber": "billing", "cursor": 7, "behind": 93, "age": 1000000,
    }  # fmt: skip


def test_a_removed_subscriber_can_be_forgotten(folder: Path) -> None:
    write(folder, *TWO)
    assert subscribers("rides", "--forget", "billing") == "rides retains no more events for billing.\n"
    with pytest.raises(CallboardError, match="rides has no subscriber 'billing': expected wallet"):
        subscribers("rides", "--forget", "billing")
    assert subscribers("rides", "--forget", "wallet").startswith("rides retains no more events")
    assert subscribers("rides") == "No service has asked for the events of rides yet.\n"


def test_a_service_that_is_not_here_is_refused(folder: Path) -> None:
    with pytest.raises(CallboardError, match=r"rides\.sqlite does not exist: run this command where rides runs"):
        subscribers("rides")
