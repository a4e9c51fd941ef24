"""`--watch`: the state of a system, again and again, in a terminal, in a pipe, and as JSON."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.config.cli.terminal import Terminal
from tests.config.cli.test_operations import CURSOR, EPOCH, HEAD, LETTER, write
from tests.system.process import Callboard


def dev(folder: Path, port: str) -> Callboard:
    running = Callboard(folder, "dev", "--no-reload", "auth", "wallet", "gateway", CALLBOARD_GATEWAY__PORT=port)
    running.url = f"http://127.0.0.1:{port}"
    return running


def documents(watching: Callboard) -> list[dict[str, Any]]:
    return [json.loads(line) for line in watching.output.splitlines(keepends=True) if line.endswith("\n")]


async def test_a_system_that_goes_and_comes_back_is_watched_as_json_and_in_a_terminal(tmp_path: Path) -> None:
    port = str(Callboard(tmp_path).port)
    url = {"CALLBOARD_URL": f"http://127.0.0.1:{port}"}
    async with dev(tmp_path, port) as first:
        await first.ready()
        async with (
            Callboard(tmp_path, "services", "--watch", "--json", **url) as lines,
            Terminal(tmp_path, "services", "--watch", **url) as screen,
        ):
            await lines.until(lambda: len(documents(lines)) > 1, "two documents")
            assert {row["service"]: row["state"] for row in documents(lines)[1]["items"]}["wallet"] == "there"
            assert isinstance(documents(lines)[1]["items"][0]["requests"], int)
            await screen.until(lambda: screen.text.count("wallet") > 1, "it is drawn again")
            assert await first.ends(signal.SIGINT) == 0
            await lines.until(lambda: "error" in documents(lines)[-1], "the error is shown")
            assert "cannot be reached" in documents(lines)[-1]["error"]
            await screen.until(lambda: "trying again" in screen.text, "the error is shown")
            assert "wallet" in screen.text[screen.text.index("cannot be reached") - 500 :], "with what was seen last"
            async with dev(tmp_path, port) as second:
                await second.ready()
                await lines.until(lambda: bool(documents(lines)[-1].get("items")), "the system is back")
                assert await lines.ends(signal.SIGINT) == 0
                screen.type("\x03")
                assert await screen.ends() == 0
            for output in (lines.output, screen.text):
                assert "Traceback" not in output


async def test_a_pipe_gets_each_state_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    await asyncio.to_thread(write, data, "rides", EPOCH, HEAD)
    async with Callboard(tmp_path, "streams", "--service", "rides", "--watch") as watching:
        await watching.says("rides   9 ")
        await asyncio.sleep(2.2)  # it is read twice more
        await asyncio.to_thread(write, data, "rides", "UPDATE callboard_stream_head SET seq = 10")
        await watching.says("rides   10")
        assert await watching.ends(signal.SIGINT) == 0
        assert (watching.output.count("rides   9 "), watching.output.count("rides   10")) == (1, 1)


async def test_dead_letters_are_watched(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    await asyncio.to_thread(write, data, "wallet", CURSOR.format("NULL", "FALSE"))
    async with (
        Callboard(tmp_path, "dead-letters", "--watch") as watching,
        Callboard(tmp_path, "dead-letters", "list", "--watch", "--json") as lines,
    ):
        await watching.says("There are no dead letters.")
        await lines.says('"items":[]')
        await asyncio.to_thread(write, data, "wallet", LETTER.format(3, "rides.RideEnded"))
        await watching.says("id-003")
        await lines.says("id-003")
        assert documents(lines)[-1]["items"][0]["seq"] == 3
        for one in (watching, lines):
            assert await one.ends(signal.SIGINT) == 0


@pytest.mark.parametrize("arguments", [("services", "--watch"), ("services",)])
async def test_a_system_that_never_was_there_ends_the_command(arguments: tuple[str, ...], tmp_path: Path) -> None:
    async with Callboard(tmp_path, *arguments) as running:
        assert await running.ends() == 2
    assert running.output.count("\n") == 1
    assert "is the system running?" in running.output
