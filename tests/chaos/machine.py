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
from tests.chaos.planted import plant
from tests.postgres import Postgres
from tests.system.process import Callboard
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
    """

    def __init__(self, name: str, folder: Path, link: Proxy, environment: Mapping[str, str]) -> None:
        self.name = name
        self.link = link
        self.clock = folder / "clock"
        self.clock.write_text("0")
        self._folder = folder
        self._environment = environment
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
            async with Callboard(self._folder, "run", self.name, **self._environment) as running:
                self._running = running
                await running.process.wait()
            self.output += running.output
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End the process for good."""
        self._stopping = True
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)


class Machine:
    """Everything that runs.

    Attributes:
        folder: where the databases are, or the file `postgres.url`.
        url: the URL of the gateway.
        members: the processes of the services.
        broker: the broker; None where services speak HTTP.
        postgres: the server; None with files.
        database: the link to PostgreSQL.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.members: list[Member] = []
        self.broker: Broker | None = None
        self.postgres: Postgres | None = None
        self.database: Proxy | None = None

    async def repair(self) -> None:
        """End all faults that last."""
        for member in self.members:
            member.signal(signal.SIGCONT)
            member.link.thaw()
            member.link.rate = None
            member.link.cut()
            member.clock.write_text("0")
        if self.database is not None:
            self.database.thaw()
            self.database.rate = None

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
        data = folder / "data"
        data.mkdir(parents=True)
        built = Machine(data, f"http://127.0.0.1:{port}")
        common = {
            **_SHORT,
            "CALLBOARD_DATABASE__FOLDER": str(data),
            "CALLBOARD_TRANSPORT__KIND": kind,
            "CALLBOARD_GATEWAY__PORT": str(port),
        }
        if engine == "postgres":
            built.postgres = Postgres("max_connections=400", "shared_buffers=32MB")
            stack.callback(built.postgres.stop)
            built.postgres.start()
            url = built.postgres.new_database()
            (data / "postgres.url").write_text(url)
            built.database = await stack.enter_async_context(Proxy(built.postgres.port))
            common["CALLBOARD_DATABASE__URL"] = url.replace(f":{built.postgres.port}/", f":{built.database.port}/")
        if kind == "mqtt":
            built.broker = Broker(folder)
            await built.broker.start()
            stack.push_async_callback(built.broker.stop)
        names = [*(name for name in SERVICES for _ in range(replicas if engine == "postgres" else 1)), "gateway"]
        addresses: dict[str, list[str]] = {}
        ports = [any_free_port() for _ in names]
        links = [
            await stack.enter_async_context(Proxy(ports[number] if built.broker is None else built.broker.port))
            for number in range(len(names))
        ]
        for number, name in enumerate(names):
            if name != "gateway":
                addresses.setdefault(name, []).append(f"http://127.0.0.1:{links[number].port}")
        private, public = peer_keys(sorted(set(names)))
        for number, name in enumerate(names):
            own = folder / f"{name}-{number}"
            own.mkdir()
            plant(own, bug)
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
