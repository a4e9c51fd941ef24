"""Start groups of processes, restart those that end unexpectedly, and stop them in reverse order."""

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import rich_click as click

from config.load import secret_variables
from config.printer import Printer
from runtime import Clock, Random
from runtime.tasks import Backoff
from runtime.telemetry import printable

_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_yellow", "bright_magenta")
_WINDOW = 60.0
"""The period, in seconds, over which restarts are counted."""
_RESTART = Backoff(0.1, 30.0)
"""The pause before a restart. It grows with the number of restarts within the period."""
_GRACE = 25.0
"""How long a process may take to stop, in seconds. Longer than the default drain timeout."""
_LONGEST_LINE = 65_536
"""Bytes. A longer line is split."""
_FOR_PROGRAMS = frozenset({"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "TERM"})


class Process:
    """A process that is restarted when it ends unexpectedly. Its output is printed with its name before each line.

    Args:
        name: the name to print before each line.
        command: the program and its arguments.
        environment: all environment variables of the process.
        width: the number of characters to pad the name to; 0 leaves the name out, because each line says where it comes from.
        number: selects the colour of the name.
    """

    _printer = Printer()
    """All processes share the output, whose lines stay in order."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], width: int, number: int) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._prefix = click.style(f"{name:{width}} | ", fg=_COLOURS[number % len(_COLOURS)]) if width else ""
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._ended: deque[float] = deque()
        self._random = Random(Clock())

    def __repr__(self) -> str:
        return f"<Process {self.name} [{'DOWN' if self._process is None else self._process.pid}]>"

    async def run(self) -> None:
        """Run the process until `stop` is called. Whenever it ends before, it is restarted after a pause that grows."""
        while not self._stopping:
            # A new session, so that Ctrl-C in the terminal does not reach the process: we stop all processes in order.
            try:
                self._process = process = await asyncio.create_subprocess_exec(
                    *self._command, env={**self._environment}, start_new_session=True,
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                )  # fmt: skip
            except OSError as error:
                await self._wait_before_restart(f"could not be started ({error})")
                continue
            printing = asyncio.create_task(self._print_output(process))
            status = await process.wait()
            await asyncio.wait((printing,), timeout=1)  # a grandchild may keep the pipe open
            printing.cancel()
            self._process = None
            if self._stopping:
                return
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            await self._wait_before_restart(how)

    @classmethod
    def flush(cls) -> None:
        """Print what the processes have written."""
        cls._printer.close()

    async def _print_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        rest = b""
        while data := await process.stdout.read(_LONGEST_LINE):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) >= _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._printer.line(f"{self._prefix}{_shown(line)}")
        if rest:
            self._printer.line(f"{self._prefix}{_shown(rest)}")

    async def _wait_before_restart(self, how: str) -> None:
        now = time.monotonic()
        self._ended.append(now)
        while self._ended[0] < now - _WINDOW:
            self._ended.popleft()
        pause = _RESTART.delay(len(self._ended), self._random)
        self._printer.line(f"{self._prefix}{how}; starting it again in {pause:.1f} s")
        await asyncio.sleep(pause)

    async def stop(self) -> None:
        """Ask the process to stop and wait until it has finished its work. Kill it if that takes too long."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_GRACE):
                await process.wait()
        except TimeoutError:
            self._printer.line(f"{self._prefix}did not stop within {_GRACE:g} s; killing it")
            process.kill()


def _shown(line: bytes) -> str:
    """Return a line of output with control characters escaped, so that it cannot look like another process's."""
    return printable(line.decode(errors="replace").rstrip().expandtabs())


async def run_groups(groups: Sequence[Sequence[Process]], stop: asyncio.Event) -> None:
    """Run groups of processes until an event is set. Groups start in the given order and stop in reverse order.

    Args:
        groups: the processes to run.
        stop: the event that ends the run. The end of a process does not end the run or any other process.
    """
    running: dict[asyncio.Task[None], Process] = {}
    waiting = asyncio.create_task(stop.wait())
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
        Process.flush()


def service_environment(service: str, services: Iterable[str]) -> dict[str, str]:
    """Return this process's environment for the process of one of some services, without what is secret or another one's."""
    secrets = secret_variables(os.environ, services, except_service=service)
    return {name: value for name, value in os.environ.items() if name not in secrets} | {"PYTHONUNBUFFERED": "1"}


def program_environment() -> dict[str, str]:
    """Return the environment for a program that is not ours: only what programs need to find files and to print."""
    return {name: value for name, value in os.environ.items() if name in _FOR_PROGRAMS or name.startswith("LC_")}
