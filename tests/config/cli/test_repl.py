"""`callboard repl`: commands at a prompt, or from a pipe."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.config.cli.terminal import Terminal
from tests.system.process import ROOT, Callboard

UP = "\x1b[A"


async def piped(running: Callboard, text: str, *arguments: str) -> tuple[int, str, str]:
    """Run the lines of a text. Return the exit status, and what is on standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "config.cli", "repl", *arguments, cwd=running.folder, env={**running.environment, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate(text.encode())
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.long  # the prompt is in the shorter run
async def test_each_line_of_a_pipe_is_a_command(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        lines = """
            # a comment
            call wallet.TopUp amount_cents=700 --json
            callboard call GetWallet --json
            call NoSuchRequest
            'no end
            sevices
            services --wacht
            dev
            streams resume wallet auth
            dead-letters list
            streams --service wallet --json"""
        status, output, errors = await piped(running, lines, "--as", "operator@example.com")
        assert status == 0, errors
        topped, wallet, letters, streams = output.splitlines()
        assert "700" in topped
        assert json.loads(wallet)["balance_cents"] == 700
        assert letters == "There are no dead letters."
        assert json.loads(streams)["service"] == "wallet"
        for said in (
            "there is no request NoSuchRequest", "No closing quotation: 'no end", "did you mean services?", "No such option", "--watch",
            "run `callboard dev` in another shell", "has not stopped",
        ):  # fmt: skip
            assert said in errors
        assert "Traceback" not in errors
        assert (await piped(running, "services\ncall NoSuchRequest"))[0] == 2
        status, output, _ = await piped(running, "exit\nservices")
        assert (status, output) == (0, "")


async def enters(prompt: Terminal, keys: str, shown: str) -> None:
    """Type keys, and wait for a text and for the next prompt. Keys that are typed before it appears would be lost."""
    before = prompt.text.count("callboard>")
    at = len(prompt.text)
    prompt.type(keys)
    await prompt.until(lambda: shown in prompt.text[at:], shown)
    shown_at = prompt.text.index(shown, at)
    await prompt.until(
        lambda: "callboard>" in prompt.text[shown_at:] and prompt.text.count("callboard>") > before, "the next prompt"
    )


async def test_the_prompt_completes_and_remembers_and_survives_ctrl_c(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        port = {"CALLBOARD_GATEWAY__PORT": str(running.port)}
        async with Terminal(tmp_path, "repl", **port) as prompt:
            await prompt.says(f"Commands for {running.url}")
            await prompt.says("callboard>")
            prompt.type("servi\t")
            await prompt.until(lambda: "services" in prompt.text, "the completed command")
            await enters(prompt, "\r", "in_flight")
            prompt.type("call wallet.T\t")
            await prompt.until(lambda: "call wallet.TopUp" in prompt.text, "the completed request")
            prompt.type(" amou\t")
            await prompt.until(lambda: "amount_cents=" in prompt.text, "the completed field")
            await enters(prompt, "77 --as rider@example.com\r", "{\n")
            prompt.type(" tail fleet.Telemetry\r")
            await prompt.until(lambda: "listening to fleet.Telemetry" in prompt.text, "the tail runs")
            await enters(prompt, "\x03", "")
            await enters(prompt, "half a line\x03", "")
            await enters(prompt, "routes\r", "StartRide")
            prompt.type("\x04")
            assert await prompt.ends() == 0
            assert "Traceback" not in prompt.text
        history = tmp_path / "data" / "repl_history"
        assert history.stat().st_mode & 0o077 == 0
        lines = [line[1:] for line in history.read_text().splitlines() if line.startswith("+")]
        assert lines == ["services", "call wallet.TopUp amount_cents=77 --as rider@example.com", "routes"]
        async with Terminal(tmp_path, "repl", **port) as again:
            await again.says("callboard>")
            again.type(UP + UP)
            await again.until(lambda: "amount_cents=77" in again.text, "the command of before")
            await enters(again, "\x03", "")
            again.type("exit\r")
            assert await again.ends() == 0
