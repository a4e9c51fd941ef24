"""Fills the table in docs/brokers.md: starts each broker that packages offer, and runs the conformance kit on it.

`make brokers` runs it, outside CI. Debian's and npm's brokers are unpacked into a temporary folder, so that none of them is started by
the system.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

from runtime import StartError, Transport
from runtime.network import TransportError
from runtime.sockets import any_free_port
from runtime.testing import ConformanceError, Kit, RecordingReceiver
from tests.broker import Broker
from tests.ejabberd import Ejabberd
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

BEGIN, END = "<!-- filled by `make brokers` -->", "<!-- end of what `make brokers` fills -->"
_PATIENCE = 8.0
"""Seconds for a node to connect, or to report why it cannot."""
_AEDES = """
const { Aedes } = require('aedes');
Aedes.createBroker().then((broker) => require('net').createServer(broker.handle).listen(Number(process.argv[2]), '127.0.0.1'));
"""
_AMQTT = """
import asyncio, sys
from amqtt.broker import Broker
async def main():
    listeners = {"default": {"type": "tcp", "bind": f"127.0.0.1:{sys.argv[1]}"}}
    await Broker({"listeners": listeners, "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}}).start()
    await asyncio.Event().wait()
asyncio.run(main())
"""
_RABBITMQ = """listeners.tcp.local = 127.0.0.1:{amqp}
mqtt.listeners.tcp.1 = 127.0.0.1:{port}
mqtt.allow_anonymous = true
"""


class Row(NamedTuple):
    """One broker's row of the table."""

    broker: str
    passed: str
    said: str


class Candidate(NamedTuple):
    """A broker to try: its name and version, and how it is started."""

    name: Callable[[], str]
    start: Callable[[Path], "AbstractAsyncContextManager[list[MqttSettings]]"]


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def _debian(package: str) -> str:
    """Return the version of a Debian package."""
    shown = _run("apt-cache", "policy", package)
    found = re.search(r"Candidate: (\S+)", shown)
    assert found is not None, shown
    return f"{package} {found[1].partition('-')[0]}"


@asynccontextmanager
async def _process(port: int, *command: str, cwd: Path, **environment: str) -> AsyncGenerator[None, None]:
    """Run a broker until the block ends, which begins when it listens on a port."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=os.environ | environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(120):
            while True:
                assert process.returncode is None, f"{command[0]} has exited while it was starting"
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                await asyncio.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group: a script and what it has started
        await process.wait()


def _settings(port: int) -> list[MqttSettings]:
    return [MqttSettings(url=f"mqtt://127.0.0.1:{port}")]


@asynccontextmanager
async def _mosquitto(folder: Path) -> AsyncGenerator[list[MqttSettings], None]:
    async with Broker(folder) as broker:
        yield [MqttSettings(url=broker.url)]


@asynccontextmanager
async def _ejabberd(folder: Path) -> AsyncGenerator[list[MqttSettings], None]:
    async with Ejabberd(folder) as broker:
        yield [broker.settings()]


@asynccontextmanager
async def _two_ejabberds(folder: Path) -> AsyncGenerator[list[MqttSettings], None]:
    async with Ejabberd(folder, 2) as broker:
        yield [MqttSettings(urls=(url,), username="conformance@localhost", password="any", heartbeat=1.0) for url in broker.urls]


@asynccontextmanager
async def _rabbitmq(folder: Path) -> AsyncGenerator[list[MqttSettings], None]:
    port, amqp, distribution, mapper = (any_free_port() for _ in range(4))
    _unpack("rabbitmq-server", folder)
    (folder / "rabbitmq.conf").write_text(_RABBITMQ.format(port=port, amqp=amqp), encoding="utf-8")
    (folder / "plugins").write_text("[rabbitmq_mqtt].", encoding="utf-8")
    mapping = {"ERL_EPMD_PORT": str(mapper), "ERL_EPMD_ADDRESS": "127.0.0.1"}
    server = next(folder.glob("usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server"))
    async with (
        _process(mapper, "epmd", "-port", str(mapper), cwd=folder, **mapping),
        _process(
            port, str(server), cwd=folder, **mapping, HOME=str(folder), RABBITMQ_NODENAME="brokers@localhost",
            RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq.conf"), RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "plugins"),
            RABBITMQ_MNESIA_BASE=str(folder / "mnesia"), RABBITMQ_LOG_BASE=str(folder / "log"),
            RABBITMQ_PID_FILE=str(folder / "pid"), RABBITMQ_DIST_PORT=str(distribution),
        ),
    ):  # fmt: skip
        yield _settings(port)


@asynccontextmanager
async def _nats(folder: Path) -> AsyncGenerator[list[MqttSettings], None]:
    port, client_port = any_free_port(), any_free_port()
    _unpack("nats-server", folder)
    (folder / "nats.conf").write_text(
        f'server_name: "brokers"\nhost: 127.0.0.1\nport: {client_port}\njetstream {{ store_dir: "{folder}/store" }}\n'
        f"mqtt {{ host: 127.0.0.1, port: {port} }}\n",
        encoding="utf-8",
    )
    async with _process(port, str(next(folder.glob("usr/*/nats-server"))), "-c", "nats.conf", cwd=folder):
        yield _settings(port)


@asynccontextmanager
async def _aedes(folder: Path) -> AsyncGenerator[list[MqttSettings], None]:
    port = any_free_port()
    (folder / "broker.js").write_text(_AEDES, encoding="utf-8")
    _run("npm", "install", "--silent", "--prefix", str(folder), "aedes@1.2.0", cwd=folder)
    async with _process(port, "node", "broker.js", str(port), cwd=folder):
        yield _settings(port)


@asynccontextmanager
async def _amqtt(folder: Path) -> AsyncGenerator[list[MqttSettings], None]:
    port = any_free_port()
    (folder / "broker.py").write_text(_AMQTT, encoding="utf-8")
    _run(sys.executable, "-m", "venv", str(folder / "venv"))
    _run(str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "amqtt==0.12.1")
    async with _process(port, str(folder / "venv" / "bin" / "python"), "broker.py", str(port), cwd=folder):
        yield _settings(port)


def _unpack(package: str, folder: Path) -> None:
    """Unpack a Debian package into a folder. The libraries that it needs have been installed by `make brokers`."""
    folder.chmod(0o755)  # apt downloads as a user of its own
    _run("apt-get", "download", package, cwd=folder)
    _run("dpkg-deb", "-x", str(next(folder.glob(f"{package}*.deb"))), str(folder))


CANDIDATES = (
    Candidate(lambda: _debian("mosquitto"), _mosquitto),
    Candidate(lambda: _debian("ejabberd"), _ejabberd),
    Candidate(lambda: f"{_debian('ejabberd')}, two nodes", _two_ejabberds),
    Candidate(lambda: _debian("rabbitmq-server"), _rabbitmq),
    Candidate(lambda: _debian("nats-server"), _nats),
    Candidate(lambda: "aedes 1.2.0", _aedes),
    Candidate(lambda: "amqtt 0.12.1", _amqtt),
)


async def crash(transport: Transport) -> None:
    assert isinstance(transport, MqttTransport)
    transport.crash()


async def try_broker(name: str, settings: list[MqttSettings]) -> Row:
    """Connect to a broker, and run every case of the conformance kit on it if that succeeds.

    Args:
        settings: The settings of the nodes, which take turns.
    """
    used = MqttTransport(settings[0])
    url = settings[0].brokers[0]
    try:
        async with asyncio.timeout(_PATIENCE):
            await used.open("table", RecordingReceiver())
    except TimeoutError:
        return Row(name, "refused", f"`{_without_port(used.attempts.last_error, url)}` (the node keeps trying)")
    except (StartError, TransportError) as error:
        return Row(name, "refused", f"`{_without_port(str(error), url)}` (the node ends with status 2)")
    said = used.link.limits.restrictions()
    await used.close()
    failed: list[str] = []
    for case in Kit.cases():
        turns = count()
        own = [_in_namespace(each, case) for each in settings]

        def node(turns: "count[int]" = turns, own: list[MqttSettings] = own) -> MqttTransport:
            return MqttTransport(own[next(turns) % len(own)])

        try:
            await Kit(node, crash).run(case)
        except (ConformanceError, TransportError) as error:
            print(f"  {name}: {error}", flush=True)
            failed.append(case)
    passed = f"{len(Kit.cases()) - len(failed)} of {len(Kit.cases())}"
    return Row(name, passed, "; ".join(([f"fails: {', '.join(failed)}"] if failed else []) + said) or "everything works")


def _in_namespace(settings: MqttSettings, namespace: str) -> MqttSettings:
    fields = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return MqttSettings(**(fields | {"namespace": namespace}))


def _without_port(said: str, url: str) -> str:
    return said.replace(url, "mqtt://broker:1883")


async def table(names: list[str]) -> list[Row]:
    """Try the brokers whose names contain one of these; all without any."""
    rows: list[Row] = []
    for candidate in CANDIDATES:
        name = candidate.name()
        if names and not any(wanted in name for wanted in names):
            continue
        print(name, flush=True)
        folder = Path(tempfile.mkdtemp(prefix="brokers-"))
        try:
            async with candidate.start(folder) as settings:
                rows.append(await try_broker(name, settings))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"  {rows[-1].passed}: {rows[-1].said}", flush=True)
    return rows


def fill(page: Path, rows: list[Row]) -> None:
    """Write the table into a page, between its two marks."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = [
        "| broker | cases of the kit | what a node says |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    filled = asyncio.run(table(sys.argv[2:]))
    if not sys.argv[2:]:
        fill(Path(sys.argv[1]), filled)
