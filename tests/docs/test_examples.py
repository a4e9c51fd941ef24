"""The example service works as its readers would use it, and the pages show the text of its files."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.system.process import ROOT, Callboard
from tests.system.process import command as run_command

EXAMPLE = ROOT / "docs" / "examples" / "greeter"
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("tutorial.md", "services.md", "testing.md"))]
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(?:#|--) (?P<path>[\w./-]+\.\w+)(?P<excerpt> \(excerpt\))?\n(?P<text>.*)", re.DOTALL)
"""A code block whose first line is a comment that names the file it shows."""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of the example, so that nothing that runs in it writes into the documentation."""
    return shutil.copytree(EXAMPLE, tmp_path / "greeter", ignore=shutil.ignore_patterns(".*", "__pycache__"))


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a Python module in a folder, expect success, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_own_tests_pass(example: Path) -> None:
    run(example, "pytest", "-p", "no:cacheprovider", "--rootdir", str(example), PYTHONPATH=str(ROOT))


def test_the_example_is_fully_typed(example: Path, tmp_path: Path) -> None:
    options = ["--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "mypy")]
    run(example, "mypy", *options, "greeter", "tests", MYPYPATH=str(ROOT))


async def test_the_example_answers_behind_the_gateway(example: Path) -> None:
    async with (
        Callboard(example, "dev", CALLBOARD_SERVICES="") as running,
        httpx.AsyncClient(base_url=running.url, verify=False) as client,
    ):
        async with asyncio.timeout(30):
            while True:
                assert running.process.returncode is None, running.output
                try:
                    greeted = await client.post("/greetings", json={"name": "Ada"})
                    if greeted.status_code != 503:
                        break
                except httpx.ConnectError:
                    pass
                await asyncio.sleep(0.05)
        assert (greeted.status_code, greeted.json()) == (201, {"text": "Hello, Ada!", "count": 1})
        refused = await client.post("/greetings", json={"name": "Voldemort"})
        assert (refused.status_code, refused.json()["code"]) == (409, "too-rude")
        assert await running.ends(signal.SIGINT) == 0, running.output


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """A copy of the example whose tests use the pytest plugin."""
    folder = ROOT / "docs" / "examples" / "orders"
    return shutil.copytree(folder, tmp_path / "orders", ignore=shutil.ignore_patterns(".*", "__pycache__"))


def test_the_tests_of_the_orders_pass(orders: Path) -> None:
    """Fakes, users, a moved clock, published events, another version of a contract, and a real broker."""
    assert "8 passed" in run(orders, "pytest", "-p", "no:cacheprovider", PYTHONPATH=str(ROOT))


@pytest.mark.long
def test_the_orders_are_fully_typed(orders: Path, tmp_path: Path) -> None:
    run(
        orders,
        "mypy",
        "--follow-imports",
        "silent",
        "--cache-dir",
        str(tmp_path / "mypy"),
        "orders",
        "wallet",
        "tests",
        MYPYPATH=str(ROOT),
    )


@pytest.mark.parametrize("command", ["dev", "up"])
async def test_the_example_with_its_own_login_answers(tmp_path: Path, command: str) -> None:
    """Members with several roles, another scheme, and a request for anyone that knows its user."""
    folder = shutil.copytree(
        ROOT / "docs" / "examples" / "members", tmp_path / "members", ignore=shutil.ignore_patterns("__pycache__")
    )
    members = json.dumps([{"name": "ada", "password": "a password of ada", "roles": ["guest", "member"]}])
    async with (
        Callboard(folder, command, CALLBOARD_SERVICES="", CALLBOARD_SERVICES__AUTH__SETTINGS__MEMBERS=members) as running,
        httpx.AsyncClient(base_url=running.url, verify=False) as client,
    ):
        await running.says("Stop with Ctrl-C")
        assert "a password" not in running.output
        refused = await client.post("/login", json={"name": "ada", "password": "wrong"})
        assert (refused.status_code, refused.json()["code"]) == (401, "refused")
        token = (await client.post("/login", json={"name": "ada", "password": "a password of ada"})).json()
        ada = {"Authorization": f"Token {token}"}
        assert (await client.get("/bar", headers=ada)).json() == "Good evening, ada!"
        assert (await client.get("/bar")).status_code == 401
        assert (await client.get("/bar", headers={"Authorization": f"Bearer {token}"})).status_code == 401
        assert (await client.get("/door", headers=ada)).json() == "ada"
        assert (await client.get("/door")).json() == "a stranger"
        assert (await client.get("/door", headers={"Authorization": "Token nonsense"})).status_code == 401
        for arguments, expected in (
            (("call", "GetBar", "--as", "eve", "--role", "member"), '"Good evening, eve!"'),
            (("call", "GetDoor", "--as", "eve"), '"eve"'),
            (("call", "GetDoor"), '"a stranger"'),
            (("services", "--json"), '"service":"club"'),
        ):
            status, output = await run_command(folder, *arguments, CALLBOARD_SERVICES="")
            assert status == 0, output
            assert expected in output
        assert await running.ends(signal.SIGINT) == 0, running.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_show_the_text_of_the_files_they_name(page: Path) -> None:
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        named = NAMED.match(block)
        if named is None:
            continue
        text = (EXAMPLE / named["path"]).read_text(encoding="utf-8")
        if named["excerpt"]:
            assert named["text"] in text, f"{page.name} shows something else than {named['path']}"
        else:
            assert named["text"] == text, f"{page.name} shows something else than {named['path']}"


def test_the_tutorial_shows_every_file_of_the_example() -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    shown = {named["path"] for named in map(NAMED.match, blocks) if named is not None and not named["excerpt"]}
    assert {
        "greeter/messages.py",
        "greeter/service.py",
        "greeter/migrations/0001_greetings.sql",
        "tests/test_greeter.py",
        "callboard.toml",
    } <= shown
