"""The whole reference system behind its gateway, in this process, on a free port."""

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
from tests.system.process import Callboard
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport
from transports.mqtt.settings import MqttSettings

S = TypeVar("S", bound=Service)

PASSWORD = "correct horse battery"
QUICK = HashSettings(memory_kib=64, iterations=1, lanes=1)
USERS = (
    SeedUser("rider@example.com", "rider", PASSWORD),
    SeedUser("operator@example.com", "operator", PASSWORD),
    SeedUser("admin@example.com", "admin", PASSWORD),
)


class System:
    """A running system and a client that knows its address. `process` is that of `callboard up`, if it plays there."""

    def __init__(self, nodes: Sequence[Node], client: httpx.AsyncClient, folder: Path) -> None:
        self.nodes = nodes
        self.process: Callboard | None = None
        self.client = client
        self.folder = folder
        self.url = str(client.base_url)

    @property
    def node(self) -> Node:
        """The gateway's."""
        return self.nodes[-1]

    def service(self, cls: type[S]) -> S:
        """The running service of a class."""
        return next(found for node in self.nodes if (found := node.service(cls)) is not None)

    async def log_in(self, email: str = "rider@example.com", password: str = PASSWORD) -> dict[str, Any]:
        answer = await self.client.post("/sessions", json={"email": email, "password": password})
        assert answer.status_code == 201, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def bearer(self, email: str = "rider@example.com") -> dict[str, str]:
        """Header fields of a user who has just logged in."""
        return {"Authorization": f"Bearer {(await self.log_in(email))['access_token']}"}


def settings(folder: Path, *, zero_copy: bool = False, auth: dict[str, Any] | None = None, **gateway: Any) -> Settings:
    return Settings(
        database=DatabaseSettings(folder=str(folder), durable=False),
        transport=TransportSettings(memory=MemorySettings(zero_copy=zero_copy)),
        gateway=GatewaySettings(port=0, **gateway),
        auth=msgspec.structs.replace(AuthSettings(users=USERS, hashing=QUICK), **(auth or {})),
        devices=DeviceSettings(count=0),
        node=NodeSettings(drain_timeout=1),
    )


@asynccontextmanager
async def open_system(chosen: Settings, *, apart: bool = False, clock: Clock | None = None) -> AsyncGenerator[System, None]:
    """Runs the whole system on one node, or each service on a node of its own."""
    factories = list(compose.chosen(chosen, ()).values())
    network = MemoryNetwork()
    scooters = HttpPeers(list(compose.catalogue(chosen)))

    def transport() -> Transport:
        if chosen.transport.kind == "memory":
            return MemoryTransport(network, chosen.transport.memory)
        return compose.transport(
            msgspec.structs.replace(chosen, transport=msgspec.structs.replace(chosen.transport, http=scooters.next()))
        )

    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                Node(
                    group, transport(),
                    databases=compose.databases(chosen), settings=chosen.node, clock=clock,
                )
            )
            for group in ([[factory] for factory in factories] if apart else [factories])
        ]  # fmt: skip
        gateway = nodes[-1].service(Gateway)
        assert gateway is not None
        await nodes[-1].registry.wait_for("auth", "wallet", "fleet", "rides", "notices")
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=20))
        yield System(nodes, client, Path(chosen.database.folder))


IN_PROCESS = ("serialized", "zero-copy", "apart", "mqtt", "mqtt-apart", "http-apart", "http+mqtt-apart")
"""One node of the in-memory transport, with encoding and without; the same on a broker; each service on a node of its own, speaking MQTT, HTTP, or both."""
WITH_SIGNALS = tuple(name for name in IN_PROCESS if name != "http-apart")
DEPLOYMENTS = (*IN_PROCESS, "mqtt-processes")
"""And each service in a process of its own, as `callboard up` runs them."""


_NETWORKED = ("mqtt", "http", "http+mqtt")


@asynccontextmanager
async def open_deployment(topology: str, folder: Path, *, clock: Clock | None = None) -> AsyncGenerator[System, None]:
    """Runs the whole system in one of the topologies. Processes have a clock of their own."""
    if topology == "mqtt-processes":
        async with up(folder) as system:
            yield system
        return
    chosen = settings(folder, zero_copy=topology == "zero-copy")
    async with AsyncExitStack() as stack:
        transport = msgspec.convert(
            {"kind": kind if (kind := topology.removesuffix("-apart")) in _NETWORKED else "memory"}, TransportSettings
        )
        if "mqtt" in transport.kind:
            broker = await stack.enter_async_context(Broker(folder))
            transport = msgspec.structs.replace(transport, mqtt=MqttSettings(url=broker.url))
        if transport.kind != "memory":
            chosen = msgspec.structs.replace(chosen, transport=transport)
        yield await stack.enter_async_context(open_system(chosen, apart=topology.endswith("apart"), clock=clock))


@asynccontextmanager
async def up(folder: Path, *arguments: str, **environment: str) -> AsyncGenerator[System, None]:
    """Runs `callboard up`, with the users of every other system, and no scooters."""
    given = {"CALLBOARD_DEV__PASSWORD": PASSWORD, "CALLBOARD_DEVICES__COUNT": "0", "CALLBOARD_DATABASE__DURABLE": "false"}
    async with Callboard(folder, "up", *arguments, **(given | environment)) as running:
        await running.says("Stop with Ctrl-C")
        async with httpx.AsyncClient(base_url=running.url, timeout=20) as client:
            system = System([], client, folder / "data")
            system.process = running
            yield system
        assert await running.ends(signal.SIGINT) == 0, running.output
