"""`callboard resume`: what it changes in the service's database, and what it refuses."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from config.cli.resume import resume_command
from runtime import CallboardError
from runtime.durable.cursor import Cursor, Cursors, digest_of
from runtime.durable.stream import Position
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.sqlite import SqliteDatabase
from services.fleet.service import Fleet
from tests.project import RENTAL_SERVICES

TYPES = Fleet.definition.events_of("rides")


async def _cursor(folder: Path, *statements: str) -> Cursor:
    """Run statements in the fleet's database, and return its cursor at the stream of rides."""
    database = SqliteDatabase(folder / "fleet.sqlite", durable=False)
    await database.open()
    try:
        await migrate(database, SCHEMA, "callboard")
        for statement in statements:
            await database.execute(statement)
        cursor = await Cursors("rides", database).read()
        return cursor or Cursor(Position("", 0), {}, None, None, None)
    finally:
        await database.close()


def cursor(folder: Path, *statements: str) -> Cursor:
    return asyncio.run(_cursor(folder, *statements))


AT_EVENT_5 = "INSERT INTO callboard_cursors (publisher, epoch, seq, event_id, types, stopped, accepted) VALUES ('rides', 'e', 5, 'id', '{\"rides.Newer\":0}', NULL, NULL)"
STOPPED = "UPDATE callboard_cursors SET stopped = 'rides has pruned events'"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLBOARD_DATABASE__FOLDER", str(tmp_path))
    monkeypatch.setenv("CALLBOARD_SERVICES", RENTAL_SERVICES)
    return tmp_path


def resume(*arguments: str) -> str:
    result = CliRunner().invoke(resume_command, arguments)
    if isinstance(result.exception, CallboardError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_known_types_lets_this_version_continue_where_it_is(folder: Path) -> None:
    before = cursor(folder, AT_EVENT_5)
    printed = resume("fleet", "rides", "--known-types")
    assert printed.startswith("fleet continues with these events of rides: rides.RideAborted, ")
    after = cursor(folder)
    assert after.accepted == digest_of(TYPES)
    assert (after.position, after.types, after.stopped) == (before.position, before.types, before.stopped)


def test_a_subscription_that_has_stopped_begins_at_the_oldest_event(folder: Path) -> None:
    cursor(folder, AT_EVENT_5, STOPPED)
    assert resume("fleet", "rides") == "fleet continues with the oldest event that rides still has.\n"
    assert cursor(folder) == Cursor(Position("", 0), dict.fromkeys(TYPES, 0), None, None, None)


def test_an_event_is_set_aside_by_its_number(folder: Path) -> None:
    before = cursor(folder, AT_EVENT_5)
    assert resume("fleet", "rides", "--set-aside", "6") == (
        "fleet does not apply event 6 of rides: it becomes a dead letter once all events before it are applied.\n"
    )
    assert cursor(folder) == msgspec.structs.replace(before, set_aside=6)
    with pytest.raises(CallboardError, match="has applied event 5 of rides already: expected a number above 5"):
        resume("fleet", "rides", "--set-aside", "5")
    with pytest.raises(CallboardError, match="expected one of them"):
        resume("fleet", "rides", "--set-aside", "6", "--known-types")


def test_what_cannot_be_resumed_is_refused(folder: Path) -> None:
    with pytest.raises(CallboardError, match=r"fleet\.sqlite does not exist: run this command where fleet runs"):
        resume("fleet", "rides")
    cursor(folder)
    with pytest.raises(CallboardError, match="has not applied any events of rides yet"):
        resume("fleet", "rides")
    cursor(folder, AT_EVENT_5)
    with pytest.raises(CallboardError, match="nothing to resume"):
        resume("fleet", "rides")
    with pytest.raises(CallboardError, match="fleet takes no events of 'auth': expected rides"):
        resume("fleet", "auth")
    with pytest.raises(CallboardError, match="no service is called"):
        resume("flet", "rides")
