"""Run a `callboard` command in a terminal, as a person does."""

import asyncio
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

from tests.system.process import ROOT, Callboard

_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>78])")


class Terminal(Callboard):
    """A running command whose standard streams are a terminal of 160 columns."""

    code = "from config.cli import main\nmain()"

    async def __aenter__(self) -> "Terminal":
        self._own, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"{_WITH_TERMINAL}\n{self.code}", *self.arguments,
            cwd=self.folder, env={**self.environment, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"},
            stdin=its, stdout=its, stderr=its, start_new_session=True,
        )  # fmt: skip
        os.close(its)
        asyncio.get_running_loop().add_reader(self._own, self._take)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self._take()
        asyncio.get_running_loop().remove_reader(self._own)
        os.close(self._own)

    def _take(self) -> None:
        try:
            data = os.read(self._own, 65536)
        except OSError:  # the command has ended
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._own)
        self.output += data.decode(errors="replace")

    @property
    def text(self) -> str:
        """What the command has printed so far, without colours and movements of the cursor."""
        return _CONTROL.sub("", self.output).replace("\r", "")

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())


class Shell(Terminal):
    """A running bash, in which `callboard` is the command under test."""

    code = "import os, sys; os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])"

    def __init__(self, folder: Path, **environment: str) -> None:
        super().__init__(folder, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **environment)


_WITH_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
"""Ctrl-C reaches the process because the terminal is its controlling one."""
