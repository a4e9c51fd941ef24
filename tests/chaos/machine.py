"""The machine of one run: a broker, perhaps PostgreSQL, and processes whose links and clocks can be made to fail."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx

from config.provision import peer_keys
from runtime.sockets import any_free_port
from tests.broker import Broker
from tests.chaos.cluster import Cluster
from tests.chaos.disk import Disk, mounted
from tests.chaos.newer import write_newer
from tests.chaos.planted import plant
from tests.system.process import Callboard, command
from tests.transports.proxy import Proxy

SERVICES = ("auth", "wallet", "fleet", "rides", "notices")
_SHORT = {
    "CALLBOARD_WALLET__HOLD_SECONDS": "6",
    "CALLBOARD_FLEET__RESERVATION_SECONDS": "6",
    "CALLBOARD_FLEET__SILENT_SECONDS": "36000",
    "CALLBOARD_AUTH__ACCESS_SECONDS": "900",
    "CALLBOARD_GATEWAY__EXPECTS": ",".join(SERVICES),
    "CALLBOARD_GATEWAY__LOGIN_RATE": "0",
    "CALLBOARD_GATEWAY__REQUEST_TIMEOUT": "10",
    "CALLBOARD_LOG__LEVEL": "error",
    "CALLBOARD_AUTH__USERS": '[{"email":"operator@example.com","role":"operator","password":"correct horse battery"}]',
}


class Member:
    """A process that is started again whenever it has ended.

    Attributes:
        name: the service.
        link: its link to the broker, or the link of others to it, where services speak HTTP.
        clock: the file with the seconds by which its clock is wrong.
        is_newer: whether it is started in a newer version.
    """

    def __init__(self, name: str, folder: Path, link: Proxy, environment: Mapping[str, str]) -> None:
        self.name = name
        self.link = link
        self.clock = folder / "clock"
        self.clock.write_text("0")
        self.is_newer = False
        self._folder = folder
        self._environment = environment
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._is_held = asyncio.Event()
        self._stopping = False
        self._running: Callboard | None = None
        self.output = ""

    def __repr__(self) -> str:
        return self._folder.name

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is running."""
        if self._running is not None and self._running.process.returncode is None:
            with suppress(ProcessLookupError):
                self._running.process.send_signal(number)

    async def run(self) -> None:
        """Keep the process running until `stop` is called."""
        while not self._stopping:
            folder = self._folder / "newer" if self.is_newer else self._folder
            async with Callboard(folder, "run", self.name, **self._environment) as running:
                self._running = running
                await running.process.wait()
            self.output += running.output
            await asyncio.sleep(0.1)
            while not self._may_run.is_set():
                self._is_held.set()
                await self._may_run.wait()
                self._is_held.clear()

    async def hold(self) -> None:
        """End the process, and keep it from being started."""
        self._may_run.clear()
        while not self._is_held.is_set():
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
            await asyncio.sleep(0.1)

    def release(self) -> None:
        """Let it be started again."""
        self._may_run.set()

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run a command of the operator with the settings of the process."""
        return await command(self._folder, *arguments, **self._environment)

    async def stop(self) -> None:
        """End the process for good."""
        self._stopping = True
        self.release()
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)


def mend(link: Proxy) -> None:
    """End all faults of a link that last."""
    link.thaw()
    link.rate, link.delay, link.twice = None, 0.0, False


class Machine:
    """Everything that runs.

    Attributes:
        folder: where the databases are, or, after the repair, the file `postgres.url`.
        url: the URL of the gateway.
        members: the processes of the services.
        broker: the broker; None where services speak HTTP.
        cluster: the servers of PostgreSQL; None with files.
        disk: the disk of all databases.
    """

    def __init__(self, folder: Path, url: str, disk: Disk) -> None:
        self.folder = folder
        self.disk = disk
        self.url = url
        self.members: list[Member] = []
        self.broker: Broker | None = None
        self.cluster: Cluster | None = None

    async def repair(self) -> None:
        """End all faults that last."""
        self.disk.free()
        if self.cluster is not None:
            await asyncio.to_thread(self.cluster.start)
            mend(self.cluster.link)
            (self.folder / "postgres.url").write_text(self.cluster.url)
        for member in self.members:
            member.signal(signal.SIGCONT)
            member.release()
            mend(member.link)
            member.link.cut()
            member.clock.write_text("0")

    async def until_ready(self) -> None:
        """Wait until the gateway knows every service."""
        async with httpx.AsyncClient(base_url=self.url, verify=False) as client, asyncio.timeout(90):
            while True:
                with suppress(httpx.HTTPError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.1)


@asynccontextmanager
async def machine(folder: Path, engine: str, kind: str, replicas: int, bug: str = "") -> AsyncGenerator[Machine, None]:
    """Start everything. It ends with the `async with` block.

    Args:
        engine: `sqlite` or `postgres`.
        kind: the transport, `mqtt` or `http`.
        replicas: the instances of each service on PostgreSQL.
        bug: a planted bug, see `planted.py`.
    """
    async with AsyncExitStack() as stack:
        port = any_free_port()
        disk = stack.enter_context(mounted())
        data = disk.folder
        built = Machine(data, f"http://127.0.0.1:{port}", disk)
        common = {
            **_SHORT,
            "CALLBOARD_DATABASE__FOLDER": str(data),
            "CALLBOARD_TRANSPORT__KIND": kind,
            "CALLBOARD_GATEWAY__PORT": str(port),
        }
        if engine == "postgres":
            built.cluster = await asyncio.to_thread(Cluster, data)
            stack.callback(built.cluster.stop)
            await stack.enter_async_context(built.cluster.link)
            common["CALLBOARD_DATABASE__URL"] = built.cluster.services_url
        if kind == "mqtt":
            built.broker = Broker(folder)
            await built.broker.start()
            stack.push_async_callback(built.broker.stop)
        names = [*(name for name in SERVICES for _ in range(replicas if engine == "postgres" else 1)), "gateway"]
        addresses: dict[str, list[str]] = {}
        ports = [any_free_port() for _ in names]
        links = [
            await stack.enter_async_context(Proxy(ports[number]) if built.broker is None else Proxy(built.broker.port, mqtt=True))
            for number in range(len(names))
        ]
        for number, name in enumerate(names):
            if name != "gateway":
                addresses.setdefault(name, []).append(f"http://127.0.0.1:{links[number].port}")
        newer = write_newer(folder)
        private, public = peer_keys(sorted(set(names)))
        for number, name in enumerate(names):
            own = folder / f"{name}-{number}"
            for version in (own, own / "newer"):
                version.mkdir()
                plant(version, own / "clock", bug)
            (own / "newer" / "services").symlink_to(newer)
            environment = dict(common)
            if kind == "mqtt":
                environment["CALLBOARD_TRANSPORT__MQTT__URL"] = links[number].url
            else:
                peers = [f"{service}={address}" for service, found in addresses.items() for address in found]
                environment |= {
                    "CALLBOARD_TRANSPORT__HTTP__PORT": str(ports[number]), "CALLBOARD_TRANSPORT__HTTP__PEERS": ",".join(peers),
                    "CALLBOARD_TRANSPORT__HTTP__KEY": private[name], "CALLBOARD_TRANSPORT__HTTP__PEER_KEYS": public,
                }  # fmt: skip
            built.members.append(Member(name, own, links[number], environment))
        running = [asyncio.create_task(member.run()) for member in built.members]
        try:
            await built.until_ready()
            yield built
        finally:
            for member in built.members:
                await member.stop()
            _, left = await asyncio.wait(running, timeout=20)
            for task in left:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
