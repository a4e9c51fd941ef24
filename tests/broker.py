"""A real mosquitto on a free port, started and stopped by the test that needs it."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path
from types import TracebackType

from runtime.sockets import any_free_port

_SBIN = "/usr/sbin"  # where Debian installs it; not every user has it on PATH


def find_mosquitto() -> str:
    """Return the path of the mosquitto executable."""
    found = (
        shutil.which("mosquitto") or shutil.which("mosquitto", path=_SBIN) or shutil.which("mosquitto", path="/opt/homebrew/sbin")
    )
    assert found is not None, (
        "mosquitto is needed: `make test` installs it (Debian: apt-get install mosquitto; macOS: brew install mosquitto)"
    )
    return found


class Broker:
    """A mosquitto process. Leaving the `async with` block kills it.

    Args:
        folder: Where its configuration file is written.
        lines: Lines of the configuration; without any, everybody may connect and nothing is kept on disk.
    """

    def __init__(self, folder: Path, *lines: str) -> None:
        self.port = any_free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._file = folder / f"mosquitto-{self.port}.conf"
        as_root = ["user root"] if os.geteuid() == 0 else []  # otherwise it becomes a user who may not read the test's folder
        settings = [
            *as_root,
            f"listener {self.port} 127.0.0.1",
            "log_type none",
            *(lines or ("allow_anonymous true", "persistence false")),
        ]
        self._file.write_text("\n".join(settings) + "\n", encoding="utf-8")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(find_mosquitto(), "-c", str(self._file))
        async with asyncio.timeout(10):
            while True:
                assert self._process.returncode is None, "mosquitto exited while starting"
                with socket.socket() as probe:
                    probe.setblocking(False)
                    try:
                        await asyncio.get_running_loop().sock_connect(probe, ("127.0.0.1", self.port))
                        return
                    except OSError:
                        await asyncio.sleep(0.01)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is not None:
            while process.returncode is None:
                process.send_signal(number)
                # mosquitto ignores a signal that arrives after it listens and before its main loop runs, so send it again
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 1)

    async def __aenter__(self) -> "Broker":
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop(signal.SIGKILL)
