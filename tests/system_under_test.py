"""The whole reference system behind its gateway, on a free port."""

import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from config import compose
from config.settings import DatabaseSettings, Settings, TransportSettings
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Clock, Node, NodeSettings, Service, Transport
from services.auth.passwords import HashSettings
from services.auth.service import AuthSettings, SeedUser
from services.devices.service import DeviceSettings
from tests.broker import Broker
from tests.http_peers import HttpPeers
from tests.postgres import shared_postgres
from tests.project import rental
from tests.system.process import Callboard
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport
from transports.mqtt.settings import MqttSettings

S = TypeVar("S", bound=Service)

PASSWORD = "correct horse battery"
FAST_HASHING = HashSettings(memory_kib=64, iterations=1, lanes=1)
USERS = (
    SeedUser("rider@example.com", "rider", PASSWORD),
    SeedUser("operator@example.com", "operator", PASSWORD),
    SeedUser("admin@example.com", "admin", PASSWORD),
)


class System:
    """A running system.

    Attributes:
        nodes: The nodes in this process; the gateway's is the last.
        process: The process of `callboard up`, if the system runs there.
        client: An HTTP client whose base URL is the gateway's.
        folder: The folder of the databases.
        url: The gateway's base URL.
    """

    def __init__(self, nodes: Sequence[Node], client: httpx.AsyncClient, folder: Path) -> None:
        self.nodes = nodes
        self.process: Callboard | None = None
        self.client = client
        self.folder = folder
        self.url = str(client.base_url)

    @property
    def node(self) -> Node:
        """The node that hosts the gateway."""
        return self.nodes[-1]

    def service(self, cls: type[S]) -> S:
        """Return the running service of a class."""
        return next(found for node in self.nodes if (found := node.service(cls)) is not None)

    async def log_in(self, email: str = "rider@example.com", password: str = PASSWORD) -> dict[str, Any]:
        response = await self.client.post("/sessions", json={"email": email, "password": password})
        assert response.status_code == 201, response.text
        tokens: dict[str, Any] = response.json()
        return tokens

    async def bearer(self, email: str = "rider@example.com") -> dict[str, str]:
        """Log in and return the header fields that authenticate the user."""
        return {"Authorization": f"Bearer {(await self.log_in(email))['access_token']}"}


def settings(folder: Path, *, zero_copy: bool = False, auth: dict[str, Any] | None = None, **gateway: Any) -> Settings:
    return rental(
        own={
            "auth": msgspec.structs.replace(AuthSettings(users=USERS, hashing=FAST_HASHING), **(auth or {})),
            "devices": DeviceSettings(count=0),
        },
        database=DatabaseSettings(folder=str(folder), durable=False),
        transport=TransportSettings(memory=MemorySettings(zero_copy=zero_copy)),
        gateway=GatewaySettings(**{"port": 0, "request_timeout": 120.0, **gateway}),
        node=NodeSettings(drain_timeout=1, request_timeout=60),  # a slow machine must not fail a test of something else
    )


def on_postgres(folder: Path) -> DatabaseSettings:
    """Return settings for a new database on PostgreSQL, whose URL `consistency.query` finds in the folder."""
    url = shared_postgres().new_database()
    (folder / "postgres.url").write_text(url, encoding="utf-8")
    return DatabaseSettings(folder=str(folder), durable=False, url=url)


@asynccontextmanager
async def open_system(
    settings: Settings, *, separate_nodes: bool = False, replicas: int = 1, clock: Clock | None = None
) -> AsyncGenerator[System, None]:
    """Run the whole system on one node, or each service on separate nodes, with several replicas of all but the gateway."""
    factories = list(compose.chosen(settings, ()).values())
    network = MemoryNetwork()
    peers = HttpPeers(list(compose.catalogue(settings)))

    def transport() -> Transport:
        if settings.transport.kind == "memory":
            return MemoryTransport(network, settings.transport.memory)
        return compose.transport(
            msgspec.structs.replace(settings, transport=msgspec.structs.replace(settings.transport, http=peers.next_settings()))
        )

    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                Node(
                    group, transport(),
                    databases=compose.databases(settings), settings=settings.node, clock=clock,
                )
            )
            for group in (
                [*[[factory] for factory in factories[:-1] for _ in range(replicas)], factories[-1:]]
                if separate_nodes
                else [factories]
            )
        ]  # fmt: skip
        gateway = nodes[-1].service(Gateway)
        assert gateway is not None
        await nodes[-1].registry.wait_for("auth", "wallet", "fleet", "rides", "notices")
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=20, verify=False)
        )
        yield System(nodes, client, Path(settings.database.folder))


IN_PROCESS = (
    "serialized",
    "zero-copy",
    "postgres-separate-nodes",
    "mqtt",
    "mqtt-separate-nodes",
    "http-separate-nodes",
    "http+mqtt-separate-nodes",
)
"""The deployments in this process.

One node on the in-memory transport, with encoding and without; each service on a separate node of that transport, with its
database on PostgreSQL; one node on a broker; and each service on a separate node that speaks MQTT, HTTP, or both.
"""
WITH_SIGNALS = tuple(name for name in IN_PROCESS if name != "http-separate-nodes")
"""The deployments in this process whose transport carries signals."""
DEPLOYMENTS = (*IN_PROCESS, "mqtt-processes")
"""Those in this process, and one with each service in a separate process, as `callboard up` runs them."""


_NETWORKED = ("mqtt", "http", "http+mqtt")


@asynccontextmanager
async def open_deployment(name: str, folder: Path, *, clock: Clock | None = None) -> AsyncGenerator[System, None]:
    """Run the whole system in one of the deployments. Separate processes do not use `clock`."""
    if name == "mqtt-processes":
        async with callboard_up(folder) as system:
            yield system
        return
    chosen = settings(folder, zero_copy=name == "zero-copy")
    if name.startswith("postgres"):
        chosen = msgspec.structs.replace(chosen, database=on_postgres(folder))
    async with AsyncExitStack() as stack:
        transport = msgspec.convert(
            {"kind": kind if (kind := name.removesuffix("-separate-nodes")) in _NETWORKED else "memory"}, TransportSettings
        )
        if "mqtt" in transport.kind:
            broker = await stack.enter_async_context(Broker(folder))
            transport = msgspec.structs.replace(transport, mqtt=MqttSettings(url=broker.url))
        if transport.kind != "memory":
            chosen = msgspec.structs.replace(chosen, transport=transport)
        separate_nodes = name.endswith("separate-nodes")
        yield await stack.enter_async_context(open_system(chosen, separate_nodes=separate_nodes, clock=clock))


@asynccontextmanager
async def callboard_up(folder: Path, *arguments: str, **environment: str) -> AsyncGenerator[System, None]:
    """Run `callboard up` with the same users as in the other deployments, and without scooters."""
    defaults = {"CALLBOARD_DEV__PASSWORD": PASSWORD, "CALLBOARD_DEVICES__COUNT": "0", "CALLBOARD_DATABASE__DURABLE": "false"}
    async with Callboard(folder, "up", *arguments, **(defaults | environment)) as running:
        await running.says("Stop with Ctrl-C")
        async with httpx.AsyncClient(base_url=running.url, timeout=20, verify=False) as client:
            system = System([], client, folder / "data")
            system.process = running
            yield system
        assert await running.ends(signal.SIGINT) == 0, running.output
