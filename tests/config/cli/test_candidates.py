"""What a shell offers for the next word."""

import asyncio
import socket
from pathlib import Path

import pytest
import rich_click as click
from click.testing import CliRunner

from config.cli import candidates
from config.cli.main import cli
from config.packages import ROOT
from tests.config.cli.commands import commands
from tests.config.cli.terminal import Shell
from tests.system.process import Callboard, command
from tests.system.test_commands import GREETER, greeter_in


def asked(line: str) -> dict[str, str]:
    """Return the variables in which bash passes on a line whose last word is to be completed."""
    return {"_CALLBOARD_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}


def words_in(output: str) -> list[str]:
    return [one.removeprefix("plain,") for one in output.splitlines() if one]


async def offered(folder: Path, line: str, **environment: str) -> list[str]:
    """Return the words that bash is offered for the last word of a line, and everything else that is printed."""
    _, output = await command(folder, **environment, **asked(line))
    return words_in(output)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("callboard call wallet.T", ["wallet.TopUp"]),
        ("callboard call TopU", ["TopUp"]),
        ("callboard call wallet.TopUp ", ["amount_cents="]),
        ("callboard call FindScooters lat=5 l", ["lon=", "limit="]),
        ("callboard call wallet.TopUp amount_cents=5 ", []),
        ("callboard backup w", ["wallet"]),
        ("callboard streams resume wallet ri", ["rides"]),
        ("callboard run wallet wa", []),
        ("callboard tail rides.RideE", ["rides.RideEnded"]),
        ("callboard tail fleet.Tel", ["fleet.Telemetry"]),
        ("callboard tail --kind ev", ["event"]),
        ("callboard tail --from fl", ["fleet"]),
        ("callboard dead-letters list --type rides.RideE", ["rides.RideEnded"]),
        ("callboard call NoSuch ", []),
    ],
)
def test_names_of_the_project_are_offered(line: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner(env={"CALLBOARD_URL": "http://127.0.0.1:1", **asked(line)}).invoke(cli, prog_name="callboard")
    assert words_in(done.output) == words


async def test_a_running_system_is_asked_whose_services_are_not_here(tmp_path: Path) -> None:
    code = GREETER.replace("class Greet(Request[str]):\n    pass", "class Greet(Request[str]):\n    loud: bool = False")
    greeter_in(tmp_path, code)
    async with Callboard(
        tmp_path, "dev", "greeter", "gateway", "--no-reload", CALLBOARD_SERVICES="greeter.service:Greeter"
    ) as dev:
        await dev.says("Stop with Ctrl-C")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        here = {"CALLBOARD_URL": dev.url, "CALLBOARD_SERVICES": ""}
        assert await offered(elsewhere, "callboard call greeter.", **here) == ["greeter.Greet"]
        assert await offered(elsewhere, "callboard call Greet ", **here) == ["loud="]
        assert await offered(elsewhere, "callboard call Greet loud = t", **here) == ["true"]
        with_option = f"callboard call --url {dev.url} greeter."
        assert await offered(elsewhere, with_option, CALLBOARD_SERVICES="") == ["greeter.Greet"]


async def test_a_system_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # the system accepts connections, and nobody answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        async with asyncio.timeout(20):
            assert await offered(tmp_path, "callboard call wallet.T", CALLBOARD_URL=url) == ["wallet.TopUp"]


@pytest.mark.parametrize(
    "line",
    [
        "callboard call Greet lo",
        "callboard tail gre",
        pytest.param("callboard call gre", marks=pytest.mark.long),
        pytest.param("callboard run gre", marks=pytest.mark.long),
    ],
)
async def test_what_fails_offers_nothing_and_prints_nothing(line: str, tmp_path: Path) -> None:
    file = greeter_in(tmp_path, "")
    services = {"CALLBOARD_SERVICES": "greeter.service:Greeter"}
    for code in ("print('noise')\nraise SystemExit('noise')", "print('noise')\n1/0", "def ("):
        file.write_text(code)
        assert await offered(tmp_path, line, **services) == []
    file.write_text(f"print('noise')\n{GREETER}")
    (tmp_path / "callboard.toml").write_text("not TOML")
    assert await offered(tmp_path, line, **services) == []


@pytest.mark.parametrize("complete", [candidates.services, candidates.requests, candidates.fields, candidates.messages])
def test_a_prompt_survives_what_fails(
    complete: candidates.Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    greeter_in(tmp_path, "print('noise')\nraise SystemExit('noise')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLBOARD_SERVICES", "greeter.service:Greeter")
    command = commands()["call"]
    context = click.Context(command)
    context.params = {"request": "Greet"}
    assert complete(context, command.params[0], "") == []
    assert capsys.readouterr() == ("", "")


async def test_bash_completes_what_is_typed(tmp_path: Path) -> None:
    async with Shell(tmp_path) as shell:
        shell.type("PS1='$ '; source <(callboard completion bash); echo re''ady\n")
        await shell.says("ready")
        shell.type("callboard call wallet.To\t")
        await shell.says("wallet.TopUp ")
        shell.type("am\t5")
        await shell.until(lambda: "amount_cents=5" in shell.text, "a field without a space after it")
