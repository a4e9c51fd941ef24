"""The tutorial's own project, made as the tutorial says: it passes its checks and tests, and runs."""

import json
import re
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from config.cli.new import new_command
from runtime.testing import eventually
from tests.docs.test_examples import run
from tests.docs.test_tutorial import Shell, commands
from tests.system.process import ROOT, Callboard
from tests.system.process import command as run_command

_BLOCK = re.compile(r"```(?:python|toml)\n# at the (top|end) of (\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, with everything that the section of the tutorial adds to it."""
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(new_command, ["shop"]).exit_code == 0
    folder = tmp_path / "shop"
    monkeypatch.chdir(folder)
    assert CliRunner().invoke(new_command, ["service", "mailer"]).exit_code == 0
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    section = text[text.index("## Your own project") : text.index("## Ride a scooter")]
    blocks = _BLOCK.findall(section)
    assert len(blocks) == 8
    for where, name, code in blocks:
        path = folder / name
        before = path.read_text()
        if where == "end":
            path.write_text(f"{before}\n{'' if code.startswith(' ') or name.endswith('.toml') else chr(10)}{code}")
        else:
            docstring, _, rest = before.partition("\n\n")
            path.write_text(f"{docstring}\n\n{code}{rest}")
    return folder


async def test_a_new_project_answers_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, call = commands("## Your own project")[:2]
    assert [line.partition("#")[0].strip() for line in begin.splitlines()] == [
        "callboard new shop",
        "cd shop",
        "make test",
        "make dev",
    ]
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(new_command, ["shop"]).exit_code == 0
    makefile = (tmp_path / "shop" / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in ("test", "dev"))
    async with Callboard(tmp_path / "shop", "dev", "--no-reload", CALLBOARD_SERVICES="") as running:
        await running.says("Stop with Ctrl-C")
        output = await Shell(running).run(call)
    assert "RemoveItem" not in output
    assert output.count("tea") == 2, "as the answer, and in the list"


@pytest.mark.long
def test_it_passes_its_checks(project: Path, tmp_path: Path) -> None:
    run(project, "ruff", "check", "--no-cache", "--extend-ignore", "I", ".")
    run(project, "mypy", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "mypy"), ".", MYPYPATH=str(ROOT))


def test_its_tests_pass(project: Path) -> None:
    assert "7 passed" in run(project, "pytest", "-p", "no:cacheprovider", PYTHONPATH=str(ROOT))


async def test_it_runs_and_the_mailer_follows(project: Path) -> None:
    async with (
        Callboard(project, "dev", "--no-reload", CALLBOARD_SERVICES="") as running,
        httpx.AsyncClient(base_url=running.url, verify=False) as client,
    ):
        await running.says("Stop with Ctrl-C")
        as_ada = ("--as", "ada", "--role", "rider")
        status, output = await run_command(project, "call", "AddItem", "text=tea", *as_ada, CALLBOARD_SERVICES="")
        assert status != 0
        assert "choose from mailer.AddItem, shop.AddItem" in " ".join(output.split())
        status, output = await run_command(project, "call", "shop.AddItem", "text=tea", *as_ada, "--json", CALLBOARD_SERVICES="")
        assert status == 0, output
        item = json.loads(output)["id"]

        async def is_mailed() -> bool:
            _, listed = await run_command(project, "call", "mailer.ListItems", *as_ada, "--json", CALLBOARD_SERVICES="")
            found: object = json.loads(listed)
            return found == {"items": [{"id": item, "text": "you have a new item"}]}

        await eventually(is_mailed, "the mailer has followed the event", 30)
        status, output = await run_command(project, "call", "RemoveItem", f"id={item}", *as_ada, CALLBOARD_SERVICES="")
        assert status == 0, output
        status, output = await run_command(project, "call", "RemoveItem", f"id={item}", *as_ada, CALLBOARD_SERVICES="")
        assert status == 1
        assert "no-item" in output
        assert (await client.get("/shop/items")).status_code == 401
        [add_and_list], [remove] = commands("### An event"), commands("### A route")
        added = await Shell(running).run(add_and_list)
        assert "coffee" in added
        [coffee, *_] = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", added)
        assert await Shell(running).run(remove.replace("…", coffee)) == ""
