"""Services behind a gateway, in one process and apart, on every transport."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node, NodeSettings, Service
from runtime.network import Transport
from runtime.testing import FakeAuth
from tests.broker import Broker
from tests.http_peers import InterchangeablePeers
from transports.http.transport import HttpTransport
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

KINDS = (
    "one-node-zero-copy",
    pytest.param("one-node-serialized", marks=pytest.mark.long),
    pytest.param("apart-zero-copy", marks=pytest.mark.long),
    "apart",
    "mqtt",
    "http",
)


class Deployed(NamedTuple):
    """A gateway with services behind it.

    Attributes:
        client: sends requests to the gateway.
        nodes: the node of each service, or the only one; the last one has the gateway.
    """

    client: httpx.AsyncClient
    nodes: list[Node]
    gateway: Gateway


@asynccontextmanager
async def behind_gateway(
    kind: str, folder: Path, *services: Callable[[], Service], settings: dict[str, Any] | None = None, **node: Any
) -> AsyncGenerator[Deployed, None]:
    """Run services and a gateway: together for `one-node-…`, and otherwise each on its own node.

    Args:
        settings: of the gateway.
        node: settings of the nodes.
    """
    gateway = Gateway(GatewaySettings(port=0, **(settings or {})))
    factories: Sequence[Callable[[], Service]] = (FakeAuth, *services, lambda: gateway)
    names = [factory().definition.contract.name for factory in factories[:-1]] + ["gateway"]
    groups = [list(factories)] if kind.startswith("one-node") else [[factory] for factory in factories]
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        if kind == "mqtt":
            broker = await stack.enter_async_context(Broker(folder))
            mqtt = MqttSettings(url=broker.url)
        peers = InterchangeablePeers(names, size=len(groups))
        nodes: list[Node] = []
        for group in groups:
            transport: Transport
            if kind == "mqtt":
                transport = MqttTransport(mqtt)
            elif kind == "http":
                transport = HttpTransport(peers.settings())
            else:
                transport = MemoryTransport(network, MemorySettings(zero_copy=kind.endswith("zero-copy")))
            made = Node(group, transport, settings=NodeSettings(drain_timeout=1, **node))
            nodes.append(await stack.enter_async_context(made))
        await nodes[-1].registry.wait_for(*names[:-1])
        url = f"http://127.0.0.1:{gateway.port}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20, verify=False))
        yield Deployed(client, nodes, gateway)
