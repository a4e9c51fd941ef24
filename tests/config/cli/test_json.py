"""`--json`: every command that prints data prints JSON whose values are never JSON in a string."""

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import rich_click as click

from tests.config.cli.commands import commands
from tests.config.cli.test_operations import LETTER
from tests.system.process import Callboard, command

NO_DATA = {
    "new", "dev", "run", "up", "provision", "deploy kubernetes", "deploy compose", "deploy systemd", "completion", "drain",
    "resume", "streams resume", "streams forget", "keys retire", "repl", "bench serve",
}  # fmt: skip
"""Commands that say what they have done, or run something."""
ELSEWHERE = {"devices", "tail", "publish"}
"""Commands that run until Ctrl-C, or need a broker. Other tests read their JSON."""
RUNNING = (
    "routes", "openapi", "asyncapi", "config show", "config check", "map", "services", "streams", "dead-letters list",
    "dead-letters show wallet id-001", "dead-letters retry wallet id-001", "dead-letters drop wallet id-001", "compensations wallet",
    "subscribers auth", "keys list", "keys rotate", "doctor wallet", "call", "call StartRide --describe",
    "call GetWallet --as rider@example.com", "call wallet.TopUp amount_cents=500 --as rider@example.com", "backup wallet wallet.backup",
)  # fmt: skip
STOPPED = ("streams", "dead-letters list", "subscribers auth", "migrate", "restore wallet wallet.backup")
COMPENSATION = """INSERT INTO callboard_compensations VALUES ('k1', 'wallet', 'wallet.ReleaseHold', '{"hold_id":"h1"}', 17e8, 3, 'NoInstance')"""


def contained(value: Any) -> list[str]:
    """Return the strings in a value that are JSON objects or arrays."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in contained(item)]
    if isinstance(value, list):
        return [text for item in value for text in contained(item)]
    try:
        return [value] if isinstance(value, str) and isinstance(json.loads(value), dict | list) else []
    except ValueError:
        return []


def test_json_in_a_string_is_found() -> None:
    assert contained({"a": ['{"b":1}', "text", "{a}", 1], "c": {"d": "[1]"}}) == ['{"b":1}', "[1]"]


def test_every_command_that_prints_data_has_the_option_and_is_tried_here() -> None:
    found = {
        words: one
        for words, one in commands().items()
        if words not in NO_DATA and (not isinstance(one, click.Group) or one.invoke_without_command)
    }
    assert [words for words, one in found.items() if not any("--json" in option.opts for option in one.params)] == []
    tried = {words for words in found if any(f"{line} ".startswith(f"{words} ") for line in (*RUNNING, *STOPPED))}
    assert {words for words in found if not words.startswith("bench ")} == tried | ELSEWHERE


async def documents(folder: Path, line: str, port: int) -> list[Any]:
    status, output = await command(folder, *line.split(), "--json", CALLBOARD_GATEWAY__PORT=str(port))
    assert status == (1 if line.startswith("dead-letters retry") else 0), (line, output)
    found = [json.loads(one) for one in output.splitlines()]
    assert found, line
    assert contained(found) == [], line
    return found


async def test_what_commands_print_as_json(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        with closing(sqlite3.connect(tmp_path / "data" / "auth.sqlite", timeout=20)) as connection:
            connection.execute("INSERT INTO callboard_readers (subscriber, seq) VALUES ('billing', 2)")
            connection.commit()
        with closing(sqlite3.connect(tmp_path / "data" / "wallet.sqlite", timeout=20)) as connection:
            for letter in (LETTER.format(1, "rides.RideEnded"), LETTER.format(2, "rides.RideEnded")):
                connection.execute(letter.replace("'{}'", """'{"user_id":7}'"""))
            connection.execute(COMPENSATION)
            connection.commit()
        found = {line: await documents(tmp_path, line, running.port) for line in RUNNING}
        assert await running.ends(signal.SIGINT) == 0
    found |= {f"{line} here": await documents(tmp_path, line, running.port) for line in STOPPED}
    assert found["dead-letters show wallet id-001"][0]["body"] == {"user_id": 7}
    assert found["compensations wallet"][0]["body"] == {"hold_id": "h1"}
    assert found["dead-letters retry wallet id-001"][0]["id"] == "id-001"
    assert found["dead-letters drop wallet id-001"] == [{"dropped": 1}]
    settings = {row["setting"]: row["value"] for row in found["config show"]}
    assert (settings["gateway.port"], settings["gateway.cors_origins"], settings["dev.password"]) == (running.port, [], "***")
    assert "rides" in found["config check"][0]["services"]
    assert {"origin": "rides", "target": "fleet", "what": "requests", "names": []} in found["map"][0]["edges"]
    assert isinstance(found["services"][0]["load"], int)
    assert found["call GetWallet --as rider@example.com"] == [{"balance_cents": 0, "held_cents": 0}]
    described = found["call StartRide --describe"][0]
    assert (described["method"], described["path"], described["allow"]) == ("POST", "/rides", ["rider"])
    assert described["fields"] == [{"name": "scooter_id", "type": "string", "required": True, "default": None}]
    assert {"status": 402, "code": "insufficient-funds"} in described["errors"]
    assert described in [{**one, **{key: described[key] for key in ("reply", "reply_fields", "errors")}} for one in found["call"]]
    assert found["backup wallet wallet.backup"][0]["service"] == "wallet"
    assert found["restore wallet wallet.backup here"][0]["kept"].startswith(str(tmp_path))
    assert {"service": "rides", "migrations": 0} in found["migrate here"]
