"""The commands of the tutorial, as a reader pastes them. `test_own_project.py` and `test_examples.py` test its code."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime.testing import eventually
from tests.system.process import ROOT, Callboard

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
"""A block of commands. Code of files is in fences."""
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """Return a section of the page, without the code of files."""
    level = title.partition(" ")[0]
    text = FENCE.sub("", TEXT.partition(f"\n{title}\n")[2])
    return re.split(rf"\n#{{2,{len(level)}}} ", text)[0]


def commands(title: str) -> list[str]:
    """Return the blocks of commands in a section."""
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in COMMANDS.findall(section(title))]


class Shell:
    """A shell in which commands of the page run, one block after the other, with the variables of those before.

    Attributes:
        folder: where the system runs.
    """

    def __init__(self, running: Callboard) -> None:
        self.folder = running.folder
        self._running = running
        self._variables = ""

    async def run(self, block: str) -> str:
        """Run a block of commands, expect success, and return what it prints."""
        script = block.replace("localhost:8000", self._running.url.removeprefix("http://")).replace(
            ".venv/bin/callboard", "callboard"
        )
        script = (
            f'callboard() {{ {sys.executable} -m config.cli "$@"; }}\n{self._variables}\n{script}\nwait\n'
            'printf "\\n== variables\\n"\nfor name in PASSWORD TOKEN H J SCOOTER RIDE; do declare -p $name 2>/dev/null || true; done\n'
        )
        shell = await asyncio.create_subprocess_exec(
            "bash", "-c", script, cwd=self.folder,
            env={**self._running.environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        printed = (await shell.communicate())[0].decode()
        output, separator, self._variables = printed.partition("\n== variables\n")
        assert separator, printed
        return output.strip()

    def value(self, name: str) -> str:
        """Return the value of a variable."""
        found = re.search(rf'^declare -- {name}="(.*)"$', self._variables, re.MULTILINE)
        return "" if found is None else found[1]


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncGenerator[Shell, None]:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.says("Stop with Ctrl-C")
        yield Shell(running)


async def log_in(shell: Shell) -> None:
    start, login = commands("## Ride a scooter")[:2]
    assert start == "make dev\n"
    assert shell.value("TOKEN") == ""
    await shell.run(login.replace("PASSWORD='…'", "PASSWORD='a dev password'"))
    assert shell.value("TOKEN").count(".") == 2


async def test_a_rider_rides_a_scooter(shell: Shell) -> None:
    await log_in(shell)

    [top_up] = commands("### Put money into the wallet")
    assert await shell.run(top_up) == await shell.run(top_up), "the same reply, and the same balance"

    [find] = commands("### Find a scooter")

    async def finds_one() -> bool:
        await shell.run(find)
        return shell.value("SCOOTER") != ""

    await eventually(finds_one, "a scooter is there", 30)

    [start] = commands("### Start a ride")
    begun = json.loads(await shell.run(start))
    assert begun["id"] == shell.value("RIDE")
    assert json.loads(await shell.run(start))["id"] == begun["id"], "the same key, the same ride"

    [follow], [end] = commands("### Follow along"), commands("### End the ride")
    assert follow.endswith("&\n")
    output = await shell.run(f"{follow.replace('curl -N', 'curl -sN -m 10')}sleep 1\n{end}")
    assert "event: ride-ended" in output, output
    entries = json.loads(await shell.run(end.splitlines()[1]))
    assert any(entry["cents"] < 0 for entry in entries["items"]), entries


async def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    [background, kill] = commands("### Kill it")
    assert (background, kill) == ("make dev > /tmp/dev.log 2>&1 &\n", "kill -9 %1\nmake dev\n")
    top_up, look = commands("### Put money into the wallet")[0].splitlines()
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.says("Stop with Ctrl-C")
        shell = Shell(running)
        await log_in(shell)
        await shell.run(top_up)
        before = await shell.run(look)
        running.process.kill()
        await running.process.wait()
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.says("Stop with Ctrl-C")
        shell = Shell(running)
        await log_in(shell)
        assert await shell.run(look) == before


async def test_an_operator_adds_a_scooter(shell: Shell) -> None:
    [add] = commands("### Lose a scooter")
    assert '"state"' in await shell.run(add.replace("AddScooter", "AddScooter --json"))


async def test_the_greeter_answers_as_the_page_says(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "docs" / "examples" / "greeter", tmp_path / "greeter", ignore=shutil.ignore_patterns(".*"))
    start, ask = commands("### 4. Run it")
    assert start == "callboard dev\n"
    async with Callboard(folder, "dev", "--no-reload", CALLBOARD_SERVICES="") as running:
        await running.says("Stop with Ctrl-C")
        output = await Shell(running).run(ask)
    assert "Hello, Ada!" in output
    assert '"too-rude"' in output
    assert "Greet" in output.partition('"too-rude"')[2]


def test_every_block_of_commands_is_known() -> None:
    """A new block needs a test, here or in test_own_project.py."""
    checked = {title: len(commands(title)) for title in re.findall(r"^###? .*$", FENCE.sub("", TEXT), re.MULTILINE)}
    assert {title: count for title, count in checked.items() if count and title.startswith("###")} == {
        "### A route": 1,
        "### An event": 1,
        "### Put money into the wallet": 1,
        "### Find a scooter": 1,
        "### Start a ride": 1,
        "### Follow along": 1,
        "### End the ride": 1,
        "### Kill it": 2,
        "### Lose a scooter": 1,
        "### 4. Run it": 2,
        "### 5. Test it": 1,
    }


def test_the_tests_of_the_service_pass_with_the_settings_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "greeter"
    shutil.copytree(ROOT / "docs" / "examples" / "greeter", folder, ignore=shutil.ignore_patterns("__pycache__", ".callboard"))
    [block] = commands("### 5. Test it")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        ["sh", "-c", block], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout


def test_the_layout_is_that_of_the_example() -> None:
    [layout] = re.findall(r"^```\n(callboard\.toml\n.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in layout.splitlines():
        assert (ROOT / "docs" / "examples" / "greeter" / line.split()[0]).is_file(), line
