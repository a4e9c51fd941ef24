"""Run `callboard` commands as separate processes."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from runtime.sockets import any_free_port
from runtime.testing.expectations import WAIT
from tests.project import RENTAL_SERVICES

ROOT = Path(__file__).parent.parent.parent

_CHEAP_HASHING = {
    "CALLBOARD_SERVICES": RENTAL_SERVICES,
    "CALLBOARD_SERVICES__AUTH__SETTINGS__HASHING__MEMORY_KIB": "64",
    "CALLBOARD_SERVICES__AUTH__SETTINGS__HASHING__ITERATIONS": "1",
    "CALLBOARD_SERVICES__AUTH__SETTINGS__HASHING__LANES": "1",
}
"""The rental, whose users log in fast."""


class Callboard:
    """A running `callboard` command with its own folder and port.

    Attributes:
        output: the text printed so far, on standard output and standard error.
    """

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.port = any_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = ""
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CALLBOARD_", "_CALLBOARD"))},
            "CALLBOARD_GATEWAY__PORT": str(self.port),
            "CALLBOARD_DATABASE__FOLDER": str(folder / "data"),
            "CALLBOARD_DEV__PASSWORD": "a dev password",
            **({} if "CALLBOARD_SERVICES" in environment else _CHEAP_HASHING),
            "CALLBOARD_LOG__FORMAT": "text",
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Callboard":
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "config.cli", *self.arguments,
            cwd=self.folder, env={**self.environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(4096):
            self.output += data.decode(errors="replace")

    async def says(self, text: str, count: int = 1) -> None:
        """Wait until a text occurs in the output `count` times."""
        await self.until(lambda: self.output.count(text) >= count, text)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds.

        Raises:
            AssertionError: if the process ends before that, or the time runs out.
        """
        try:
            async with asyncio.timeout(WAIT * 3):
                while not condition():
                    assert self.process.returncode is None or condition(), f"the process ended: {self.output}"
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{what!r} did not occur in {self.output}") from None

    async def ready(self) -> None:
        """Wait until the gateway answers and sees at least two services."""
        async with httpx.AsyncClient(verify=False) as client:
            async with asyncio.timeout(WAIT * 3):
                while True:
                    assert self.process.returncode is None, self.output
                    try:
                        if (await client.get(f"{self.url}/readyz")).json().get("services", 0) >= 2:
                            return
                    except (httpx.HTTPError, ValueError):
                        pass
                    await asyncio.sleep(0.02)

    async def ends(self, with_signal: signal.Signals | None = None) -> int:
        """Wait until the process ends, after sending a signal if one is given, and return its exit status."""
        if with_signal is not None:
            self.process.send_signal(with_signal)
        async with asyncio.timeout(WAIT * 3):
            status = await self.process.wait()
        if self._reading is not None:
            await self._reading
        return status


async def command(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command to its end, and return its exit status and output."""
    async with Callboard(folder, *arguments, **environment) as running:
        status = await running.ends()
    return status, running.output
