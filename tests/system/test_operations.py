"""An operator repairs a system of real processes with commands alone."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runtime.testing import eventually
from tests.system.process import command
from tests.system_under_test import PASSWORD, System, callboard_up

LETTER = "INSERT INTO callboard_dead_letters VALUES ('auth', 'e', ?, ?, 'auth.UserRegistered', ?, '2026-11-30T00:00:00.000000Z', '', 5, 'KeyError()')"


async def run(system: System, *arguments: str, status: int = 0) -> str:
    """Run a command in the folder of the system, which finds it there."""
    assert system.process is not None
    found, output = await command(system.process.folder, *arguments)
    assert found == status, output
    return output


async def streams(system: System) -> dict[str, Any]:
    """Return the report of each service."""
    return {report["service"]: report for report in map(json.loads, (await run(system, "streams", "--json")).splitlines())}


async def state(system: System, subscriber: str, publisher: str) -> dict[str, Any]:
    reports = await streams(system)
    found: dict[str, Any] = next(one for one in reports[subscriber]["subscriptions"] if one["publisher"] == publisher)
    return found


def change(folder: Path, service: str, *statements: tuple[str, Any]) -> None:
    with closing(sqlite3.connect(folder / "data" / f"{service}.sqlite", timeout=20)) as connection:
        for statement, parameters in statements:
            connection.execute(statement, parameters)
        connection.commit()


async def test_dead_letters_nodes_and_keys_are_managed_by_commands(tmp_path: Path) -> None:
    async with callboard_up(tmp_path) as system:
        change(
            tmp_path, "wallet", (LETTER, (1, "letter-1", '{"user_id":"late","role":"rider"}')), (LETTER, (2, "letter-2", '{"user_id":7}')),
        )  # fmt: skip
        listed = [json.loads(line) for line in (await run(system, "dead-letters", "list", "--json")).splitlines()]
        assert [(one["service"], one["id"]) for one in listed] == [("wallet", "letter-1"), ("wallet", "letter-2")]
        shown = json.loads(await run(system, "dead-letters", "show", "wallet", "letter-1"))
        assert shown["body"] == {"user_id": "late", "role": "rider"}
        said = await run(system, "dead-letters", "retry", "wallet", "--all", status=1)
        assert "letter-1 was applied\n" in said
        assert "letter-2 stays a dead letter: " in said
        assert said.endswith("1 applied, 1 failed\n")
        assert await run(system, "dead-letters", "drop", "wallet", "letter-2") == "1 dropped\n"
        assert await run(system, "dead-letters", "list") == "There are no dead letters.\n"

        [key] = [json.loads(line) for line in (await run(system, "keys", "list", "--json")).splitlines()]
        assert key["state"] == "signs"
        assert "published" in await run(system, "keys", "rotate")
        assert await run(system, "keys", "retire", key["kid"]) == f"{key['kid']} has retired.\n"
        assert key["kid"] not in await run(system, "keys", "list")
        assert "404" in await run(system, "keys", "retire", key["kid"], status=2)

        nodes = {row["service"]: row["node"] for row in map(json.loads, (await run(system, "services", "--json")).splitlines())}
        assert await run(system, "drain", nodes["wallet"]) == f"{nodes['wallet']} has stopped.\n"
        assert "no node" in await run(system, "drain", nodes["wallet"], status=2)
        rider = await system.bearer()

        async def answers() -> bool:
            return (await system.client.get("/wallet", headers=rider)).status_code == 200

        await eventually(answers, "`up` has started another process of the wallet")


@pytest.mark.long
async def test_a_publisher_is_restored_and_a_stream_that_has_stopped_is_resumed_by_commands(tmp_path: Path) -> None:
    async with callboard_up(tmp_path) as system:
        for number in range(3):
            await register(system, f"before-{number}")
        await eventually(lambda: has_applied(system, 6), "the wallet has applied six users")
        assert "with its events up to 6" in await run(system, "backup", "auth", str(tmp_path / "auth.backup"))
        for number in range(2):
            await register(system, f"after-{number}")
        await eventually(lambda: has_applied(system, 8), "the wallet has applied eight users")
        assert "in use by process" in await run(system, "restore", "auth", str(tmp_path / "auth.backup"), status=2)
    status, said = await command(tmp_path, "restore", "auth", str(tmp_path / "auth.backup"))
    assert status == 0, said
    assert "auth has lost its events 7 to 8, which others may have applied." in said
    async with callboard_up(tmp_path) as system:
        await register(system, "again")
        await eventually(lambda: has_applied(system, 7), "the wallet has moved to the new epoch")
        assert system.process is not None
        await system.process.says("auth was restored: its events 7 to 8 of epoch")
    # a database that is put back by other means has another history: nothing says where the two part
    change(tmp_path, "auth", ("UPDATE callboard_epochs SET epoch = 'another' || ordinal", ()))
    async with callboard_up(tmp_path) as system:
        await eventually(lambda: is_in(system, "STOPPED"), "the stream has stopped")
        found = await state(system, "wallet", "auth")
        assert "auth does not know event 7 of epoch" in found["reason"]
        status, said = await command(tmp_path, "doctor", "wallet")
        assert status == 1, said
        assert "callboard streams resume wallet auth" in said
        assert (
            await run(system, "streams", "resume", "wallet", "auth", "--skip-to", "8")
            == "wallet continues with event 8 of auth.\n"
        )
        await eventually(lambda: is_in(system, "WAITING"), "the stream goes on")
        await register(system, "late")
        await eventually(lambda: has_applied(system, 8), "the wallet applies new events")


async def register(system: System, name: str) -> None:
    answer = await system.client.post("/users", json={"email": f"{name}@example.com", "password": PASSWORD, "name": name})
    assert answer.status_code == 201, answer.text


async def has_applied(system: System, seq: int) -> bool:
    found = await state(system, "wallet", "auth")
    return (found["seq"], found["lag"]) == (seq, 0)


async def is_in(system: System, wanted: str) -> bool:
    return bool((await state(system, "wallet", "auth"))["state"] == wanted)
