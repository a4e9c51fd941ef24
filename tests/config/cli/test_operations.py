"""Commands of operators in a folder where nothing runs: they read and change the databases there."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config.cli.dead_letters import dead_letters_command
from config.cli.drain import drain_command
from config.cli.streams import streams_command
from runtime import CallboardError
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.sqlite import SqliteDatabase
from tests.project import RENTAL_SERVICES

LETTER = "INSERT INTO callboard_dead_letters VALUES ('rides', 'e', {0}, 'id-{0:03}', '{1}', '{{}}', '2026-11-30T00:00:00.000000Z', '', 5, 'KeyError()')"
CURSOR = "INSERT INTO callboard_cursors (publisher, epoch, seq, event_id, types, stopped, diverged) VALUES ('rides', 'e', 5, 'id', '{{}}', {0}, {1})"
EPOCH = "INSERT INTO callboard_epochs (epoch, ordinal, begins) VALUES ('e', 1, 0)"
HEAD = "UPDATE callboard_stream_head SET seq = 9, pruned = 6"


def write(folder: Path, service: str, *statements: str) -> list[Any]:
    """Run statements in a service's database. Return the rows of the last one."""

    async def run() -> list[Any]:
        database = SqliteDatabase(folder / f"{service}.sqlite", durable=False)
        await database.open()
        try:
            await migrate(database, SCHEMA, "callboard")
            for statement in statements[:-1]:
                await database.execute(statement)
            if statements[-1].startswith("SELECT"):
                return [tuple(row.values()) for row in await database.fetch(statements[-1])]
            await database.execute(statements[-1])
            return []
        finally:
            await database.close()

    return asyncio.run(run())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLBOARD_DATABASE__FOLDER", str(tmp_path))
    monkeypatch.setenv("CALLBOARD_SERVICES", RENTAL_SERVICES)
    return tmp_path


def run(command: Any, arguments: Sequence[str], status: int = 0) -> str:
    result = CliRunner().invoke(command, arguments)
    if isinstance(result.exception, CallboardError):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output


def streams(*arguments: str) -> str:
    return run(streams_command, arguments)


def letters(*arguments: str, status: int = 0) -> str:
    return run(dead_letters_command, arguments, status)


def test_streams_show_cursors_lag_and_what_has_stopped(folder: Path) -> None:
    write(folder, "rides", EPOCH, HEAD, "INSERT INTO callboard_readers (subscriber, seq, silent) VALUES ('wallet', 5, 7200)")
    write(folder, "wallet", CURSOR.format("'rides has pruned events'", "FALSE"), LETTER.format(3, "rides.RideEnded"))
    reports = {report["service"]: report for report in map(json.loads, streams("--json").splitlines())}
    assert reports["rides"] == {
        "service": "rides", "epoch": "e", "head": 9, "oldest": 7, "subscriptions": reports["rides"]["subscriptions"],
        "readers": [{"reader": "wallet", "seq": 5, "behind": 4, "silent": 7200.0, "gone": None}],
    }  # fmt: skip
    [of_rides] = [one for one in reports["wallet"]["subscriptions"] if one["publisher"] == "rides"]
    assert of_rides == {
        "publisher": "rides", "epoch": "e", "seq": 5, "head": 9, "lag": 4, "state": "STOPPED",
        "reason": "rides has pruned events", "dead_letters": 1,
    }  # fmt: skip
    shown = streams()
    assert "rides   9     7       wallet  5        4       2 h 0 min" in shown
    assert "wallet      rides      5        9     4    1             STOPPED  rides has pruned events" in shown
    assert streams("--service", "rides").count("\n") < shown.count("\n")


def test_a_stopped_stream_continues_where_the_operator_says(folder: Path) -> None:
    write(folder, "rides", EPOCH, HEAD)
    write(folder, "wallet", CURSOR.format("'rides has pruned events'", "FALSE"))
    with pytest.raises(CallboardError, match="wallet has applied event 5 of rides already: expected a number above 5"):
        streams("resume", "wallet", "rides", "--skip-to", "5")
    with pytest.raises(
        CallboardError, match="rides has published 9 events so far, and none with the number 10: expected a smaller number"
    ):
        streams("resume", "wallet", "rides", "--skip-to", "11")
    assert streams("resume", "wallet", "rides", "--skip-to", "8") == "wallet continues with event 8 of rides.\n"
    assert write(folder, "wallet", "SELECT epoch, seq, stopped FROM callboard_cursors") == [("", 7, None)]
    with pytest.raises(CallboardError, match="has not stopped"):
        streams("resume", "wallet", "rides")


def test_after_the_publisher_has_lost_its_history_any_event_can_be_the_next(folder: Path) -> None:
    write(folder, "wallet", CURSOR.format("'rides does not know event 5'", "TRUE"))
    assert streams("resume", "wallet", "rides", "--skip-to", "2") == "wallet continues with event 2 of rides.\n"
    assert write(folder, "wallet", "SELECT seq, stopped, diverged FROM callboard_cursors") == [(1, None, 0)]


@pytest.mark.parametrize("more", [["--skip-to", "8", "--known-types"], ["--skip-to", "8", "--set-aside", "9"]])
def test_one_remedy_is_chosen(folder: Path, more: list[str]) -> None:
    write(folder, "wallet", CURSOR.format("'why'", "FALSE"))
    with pytest.raises(CallboardError, match="different remedies"):
        streams("resume", "wallet", "rides", *more)


def test_a_reader_that_was_removed_is_forgotten(folder: Path) -> None:
    write(folder, "rides", "INSERT INTO callboard_readers (subscriber, seq) VALUES ('billing', 5)")
    assert streams("forget", "rides", "billing") == "rides retains no more events for billing.\n"
    with pytest.raises(CallboardError, match="rides has no subscriber 'billing': expected none, because none is known"):
        streams("forget", "rides", "billing")


def test_dead_letters_are_listed_shown_and_dropped(folder: Path) -> None:
    kinds = ["rides.RideEnded", "rides.RideStarted"]
    write(folder, "wallet", *(LETTER.format(number, kinds[number % 2]) for number in range(1, 8)))
    write(folder, "notices", "SELECT 1")
    listed = [json.loads(line) for line in letters("list", "--json").splitlines()]
    assert [one["id"] for one in listed] == [f"id-{number:03}" for number in range(1, 8)]
    assert listed[0] == {
        "service": "wallet", "id": "id-001", "publisher": "rides", "seq": 1, "type": "rides.RideStarted",
        "at": "2026-11-30T00:00:00.000000Z", "attempts": 5, "error": "KeyError()",
    }  # fmt: skip
    assert letters("list", "wallet", "--type", "rides.RideEnded").count("\n") == 4
    assert json.loads(letters("show", "wallet", "id-003"))["body"] == {}
    with pytest.raises(CallboardError, match="wallet is not running here: name the gateway of the running system with --url"):
        letters("retry", "wallet", "id-003")
    with pytest.raises(CallboardError, match="which dead letters"):
        letters("drop", "wallet")
    with pytest.raises(CallboardError, match="which dead letters"):
        letters("drop", "wallet", "id-003", "--all")
    with pytest.raises(CallboardError, match="wallet has no dead letter 'id-999': `callboard dead-letters list wallet`"):
        letters("drop", "wallet", "id-001", "id-999")
    assert letters("drop", "wallet", "id-001", "id-002") == "2 dropped\n"
    assert letters("drop", "wallet", "--type", "rides.RideEnded") == "2 dropped\n"
    assert json.loads(letters("drop", "wallet", "--all", "--json")) == {"dropped": 3}
    assert letters("list") == "There are no dead letters.\n"


def test_more_dead_letters_than_one_request_takes_are_dropped(folder: Path) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1234)"
    write(
        folder,
        "wallet",
        f"{numbers} INSERT INTO callboard_dead_letters SELECT 'rides', 'e', i, 'id-' || (10000 + i), 't', '', '', '', 1, '' FROM n",
    )
    assert letters("list", "wallet", "--json").count("\n") == 1234
    assert letters("drop", "wallet", "--all") == "1234 dropped\n"


def test_a_node_can_be_drained_only_in_a_running_system(folder: Path) -> None:
    with pytest.raises(CallboardError, match="no system runs here: name the gateway of one with --url"):
        run(drain_command, ["wallet-1"])


def test_a_service_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(CallboardError, match="did you mean wallet"):
        letters("list", "walet")


def test_options_of_the_list_are_not_taken_for_those_of_a_subcommand(folder: Path) -> None:
    write(folder, "wallet", CURSOR.format("'why'", "FALSE"))
    with pytest.raises(CallboardError, match="options belong behind resume"):
        streams("--url", "http://127.0.0.1:1", "resume", "wallet", "rides")
    assert write(folder, "wallet", "SELECT stopped FROM callboard_cursors") == [("why",)]
