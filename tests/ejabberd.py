"""A real ejabberd on free ports, as a second MQTT 5 broker: started and stopped by the test that needs it, alone or as a cluster."""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from runtime.sockets import any_free_port
from transports.mqtt.settings import MqttSettings

_LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib")
"""Where Debian installs ejabberd's compiled code."""
_CONFIGURATION = """
hosts: [localhost]
loglevel: error
auth_method: [anonymous]
anonymous_protocol: login_anon
allow_multiple_connections: true
listen:
  - port: {port}
    ip: 127.0.0.1
    module: mod_mqtt
modules:
  mod_mqtt: {{}}
"""


needs_ejabberd = pytest.mark.skipif(
    shutil.which("apt-get") is None, reason="ejabberd is tested on Debian only, where `make tools` installs it"
)
"""Marks a test that needs ejabberd. Where it could be installed and is missing, the test fails."""


def _code() -> Path | None:
    return next((found for library in _LIBRARIES for found in Path(library).glob("ejabberd-*/ebin")), None)


class _Node:
    """The files and ports of one ejabberd."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder / f"ejabberd-{number}"
        self.name = f"callboard-test-{number}-{os.getpid()}@127.0.0.1"
        self.port = any_free_port()
        self.distribution = any_free_port()

    def write(self) -> None:
        (self.folder / "database").mkdir(parents=True)
        (self.folder / "ejabberd.yml").write_text(_CONFIGURATION.format(port=self.port), encoding="utf-8")


class Ejabberd:
    """One ejabberd, or several that form a cluster, with their own Erlang port mapper. Leaving the `async with` block kills them.

    Args:
        folder: Where their files are written.
        size: How many nodes the cluster has.

    Attributes:
        urls: The MQTT URL of each node.
    """

    def __init__(self, folder: Path, size: int = 1) -> None:
        self._folder = folder
        self._nodes = [_Node(folder, number) for number in range(size)]
        self._cookie = secrets.token_hex(16)
        self._port_mapper = any_free_port()
        self._processes: list[asyncio.subprocess.Process] = []
        self.urls = [f"mqtt://127.0.0.1:{node.port}" for node in self._nodes]

    @property
    def url(self) -> str:
        """The MQTT URL of the first node."""
        return self.urls[0]

    def settings(self, **more: Any) -> MqttSettings:
        """Return the settings of a node that connects to the cluster, as a user whom it lets in with any password."""
        return MqttSettings(urls=tuple(self.urls), username="conformance@localhost", password="any", **more)

    async def __aenter__(self) -> "Ejabberd":
        try:
            await self._start("epmd", "-port", str(self._port_mapper), "-address", "127.0.0.1", folder=self._folder)
            await self._listening(self._port_mapper)
            for node in self._nodes:
                await self._start_node(node)
                await self._listening(node.port)
        except BaseException:
            await self.stop()
            raise
        return self

    async def _start_node(self, node: _Node) -> None:
        node.write()
        code = _code()
        assert code is not None, "ejabberd is needed: `make tools` installs it (Debian: apt-get install ejabberd)"
        first = self._nodes[0]
        join: Sequence[str] = () if node is first else ("-eval", f"ok = ejabberd_cluster:join('{first.name}').")
        await self._start(
            "erl", "-noinput", "-name", node.name, "-setcookie", self._cookie, "-start_epmd", "false", "-pa", str(code),
            "-kernel", "inet_dist_use_interface", "{127,0,0,1}",
            "inet_dist_listen_min", str(node.distribution), "inet_dist_listen_max", str(node.distribution),
            "-mnesia", "dir", f'"{node.folder / "database"}"', "-s", "ejabberd", *join, folder=node.folder,
        )  # fmt: skip

    async def _start(self, *command: str, folder: Path) -> None:
        environment = os.environ | {
            "ERL_EPMD_PORT": str(self._port_mapper), "ERL_EPMD_ADDRESS": "127.0.0.1", "HOME": str(folder),
            "EJABBERD_CONFIG_PATH": str(folder / "ejabberd.yml"), "EJABBERD_LOG_PATH": str(folder / "ejabberd.log"),
            "ERL_CRASH_DUMP_BYTES": "0",
        }  # fmt: skip
        self._processes.append(
            await asyncio.create_subprocess_exec(
                *command, cwd=folder, env=environment, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )
        )  # fmt: skip

    async def _listening(self, port: int) -> None:
        async with asyncio.timeout(60):
            while True:
                assert self._processes[-1].returncode is None, "the process has exited while it was starting"
                with socket.socket() as probe:
                    probe.setblocking(False)
                    try:
                        await asyncio.get_running_loop().sock_connect(probe, ("127.0.0.1", port))
                        return
                    except OSError:
                        await asyncio.sleep(0.05)

    async def kill(self, number: int) -> None:
        """Kill one node of the cluster."""
        process = self._processes[1 + number]
        process.kill()
        await process.wait()

    async def stop(self) -> None:
        """Kill every process that was started here."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._processes.clear()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()
