"""`callboard compensations`: what it shows, deletes, and refuses."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from config.cli.compensations import compensations_command
from runtime import CallboardError
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.sqlite import SqliteDatabase
from tests.project import RENTAL_SERVICES


async def _store(folder: Path) -> None:
    database = SqliteDatabase(folder / "rides.sqlite", durable=False)
    await database.open()
    try:
        await migrate(database, SCHEMA, "callboard")
        await database.execute(
            "INSERT INTO callboard_compensations VALUES "
            """('k1', 'wallet', 'wallet.ReleaseHold', '{"hold_id":"h1"}', 1700000000, 3, 'NoInstance: No instance is live')"""
        )
    finally:
        await database.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLBOARD_DATABASE__FOLDER", str(tmp_path))
    monkeypatch.setenv("CALLBOARD_SERVICES", RENTAL_SERVICES)
    return tmp_path


def compensations(*arguments: str) -> str:
    result = CliRunner().invoke(compensations_command, arguments)
    if isinstance(result.exception, CallboardError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_what_waits_is_shown_and_can_be_deleted(folder: Path) -> None:
    with pytest.raises(CallboardError, match=r"rides\.sqlite does not exist: run this command where rides runs"):
        compensations("rides")
    asyncio.run(_store(folder))
    assert json.loads(compensations("rides", "--json")) == {
        "id": "k1",
        "request": "wallet.ReleaseHold",
        "body": {"hold_id": "h1"},
        "since": "2023-11-14T22:13:20+00:00",
        "attempts": 3,
        "error": "NoInstance: No instance is live",
    }
    assert compensations("rides").splitlines()[1].startswith("k1")
    with pytest.raises(CallboardError, match="rides has no compensation 'k2'"):
        compensations("rides", "--drop", "k2")
    assert compensations("rides", "--drop", "k1") == "The compensation k1 is deleted.\n"
    assert compensations("rides") == ""
    with pytest.raises(CallboardError, match="no service is called"):
        compensations("rids")
