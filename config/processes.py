"""Processes that belong together: started, watched, started anew when they end by themselves, and stopped in good order."""

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence

import rich_click as click

from runtime import CallboardError

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_yellow", "bright_magenta")
_WINDOW = 60.0
_RESTARTS = 5
_GRACE = 25.0
"""Seconds that a process has to stop: longer than it takes to drain."""
_LONGEST_LINE = 65_536
_WRONG = 2
"""The exit status of a process that cannot run as it is set up: starting it anew would not help."""


class Process:
    """One process through its restarts. Its output goes to ours, each line with its name before it."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], width: int, number: int) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._prefix = click.style(f"{name:{width}} | ", fg=_COLOURS[number % len(_COLOURS)])
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._ended: deque[float] = deque()
        self._last = ""

    def __repr__(self) -> str:
        return f"<Process {self.name} [{'DOWN' if self._process is None else self._process.pid}]>"

    async def run(self) -> None:
        """Keeps the process running until `stop`.

        Raises:
            CallboardError: it ends again and again, or says that it cannot run so.
        """
        while not self._stopping:
            # a group of its own: Ctrl-C in the terminal is for us, who stop the others in order
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command, env={**self._environment}, start_new_session=True,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            showing = asyncio.create_task(self._show(process))
            status = await process.wait()
            await asyncio.wait((showing,), timeout=1)  # a grandchild may hold the other end
            showing.cancel()
            self._process = None
            if self._stopping:
                return
            await self._again(status)

    async def _show(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        rest = b""
        while data := await process.stdout.read(_LONGEST_LINE):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) >= _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._last = line.decode(errors="replace").rstrip()
                click.echo(f"{self._prefix}{self._last}")
        if rest:
            click.echo(f"{self._prefix}{rest.decode(errors='replace')}")

    async def _again(self, status: int) -> None:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        now = time.monotonic()
        self._ended.append(now)
        while self._ended[0] < now - _WINDOW:
            self._ended.popleft()
        if status == _WRONG:
            raise CallboardError(f"{self.name} cannot run: {self._last.removeprefix('callboard: ')}")
        if len(self._ended) > _RESTARTS:
            raise CallboardError(f"{self.name} {how}, for the {len(self._ended)}th time within a minute: {self._last}")
        pause = 0.1 * 2 ** len(self._ended)
        click.echo(f"{self._prefix}{how}; starting it anew in {pause:g} s", err=True)
        await asyncio.sleep(pause)

    async def stop(self) -> None:
        """Lets it finish what it has begun; ends it if that takes too long."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_GRACE):
                await process.wait()
        except TimeoutError:
            click.echo(f"{self._prefix}does not stop, and is killed", err=True)
            process.kill()


async def play(groups: Sequence[Sequence[Process]], told: asyncio.Event) -> None:
    """Runs processes, the first group's first, until told to stop; stops the last group's first.

    Raises:
        CallboardError: one of them cannot be kept running.
    """
    running: dict[asyncio.Task[None], Process] = {}
    waiting = asyncio.create_task(told.wait())
    try:
        for group in groups:
            for process in group:
                running[asyncio.create_task(process.run())] = process
        done, _ = await asyncio.wait((*running, waiting), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        waiting.cancel()
        for group in reversed(groups):
            await asyncio.gather(*(process.stop() for process in group))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def inherited() -> dict[str, str]:
    """Our environment, for those we start."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
