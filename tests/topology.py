"""The stages on which the same test plays: one node or several, with and without encoding."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from runtime import Clock, Context, Contract, Database, ManualClock, Node, NodeSettings, Service
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from services.fleet.service import Fleet
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

TOPOLOGIES = ("one-node-zero-copy", "one-node-serialized", "apart-zero-copy", "apart-serialized")

S = TypeVar("S", bound=Service)

Factory = Callable[[], Service]


class QuickClock(ManualClock):
    """The time of day moves when a test says so; timers and pauses come twenty times as often."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 20)


async def silence(clock: ManualClock, fleet: Fleet, seconds: float) -> None:
    """Time passes, in steps that the fleet does not take for a pause of its own."""
    while seconds > 0:
        step = min(seconds, 9.0)
        clock.advance(timedelta(seconds=step))
        seconds -= step
        await eventually(
            lambda: fleet.looked_at >= clock.now() and fleet.heard_at > clock.now() - timedelta(seconds=3),
            "the fleet looks around, and hears itself",
        )


class Topology:
    """Runs services on one node (`one-node`), or each on a node of its own (`apart`)."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.apart = kind.startswith("apart")
        self.zero_copy = kind.endswith("zero-copy")
        self.folder = folder
        self.nodes: list[Node] = []
        self.clock = Clock()
        self.database: Callable[[Database, str], Database] = lambda database, service: database
        """Wraps each service's database."""
        self._network = MemoryNetwork()
        self._groups: dict[Node, tuple[list[Factory], dict[str, Any]]] = {}
        self._stack = AsyncExitStack()

    async def play(self, *services: Factory, **settings: Any) -> None:
        """Starts the services, and waits until every node sees all of them."""
        for group in [[service] for service in services] if self.apart else [list(services)]:
            await self._enter(group, settings)
        await self._all_seen()

    async def _enter(self, group: list[Factory], settings: dict[str, Any]) -> None:
        node = await self._stack.enter_async_context(self._node(group, settings))
        self.nodes.append(node)
        self._groups[node] = (group, settings)

    async def _all_seen(self) -> None:
        names = [supervised.name for node in self.nodes for supervised in node.supervised[1:]]
        for node in self.nodes:
            await node.registry.wait_for(*names)

    def _node(self, services: Sequence[Factory], settings: dict[str, Any]) -> Node:
        transport = MemoryTransport(self._network, MemorySettings(zero_copy=self.zero_copy))
        folder = SqliteFolder(self.folder, durable=False)
        databases = lambda service: self.database(folder(service), service)  # noqa: E731
        return Node(services, transport, databases=databases, settings=NodeSettings(**settings), clock=self.clock)

    async def crash(self, service: str) -> None:
        """Ends the node that hosts a service as kill -9 would, and starts it anew."""
        node = self.node_of(service)
        transport = node.environment.transport
        assert isinstance(transport, MemoryTransport)
        transport.crash()
        await node.crash()
        self.nodes.remove(node)
        await self._enter(*self._groups.pop(node))
        await self._all_seen()

    async def client(self, *calls: Contract, name: str = "test", token: str | None = None, **settings: Any) -> Context:
        """A context that asks these contracts' services: on the same node, or on one of its own."""
        if self.apart:
            node = await self._stack.enter_async_context(self._node([], settings))
            names = {supervised.name for other in self.nodes for supervised in other.supervised[1:]}
            await node.registry.wait_for(*names)
        else:
            node = self.nodes[0]
        return node.client(name, calls, token=token)

    def node_of(self, service: str) -> Node:
        """The node that hosts a service."""
        return next(node for node in self.nodes if any(one.name == service for one in node.supervised))

    def service(self, cls: type[S]) -> S:
        """The running service of a class."""
        return next(found for node in self.nodes if (found := node.service(cls)) is not None)

    async def close(self) -> None:
        await self._stack.aclose()


__all__ = ["TOPOLOGIES", "QuickClock", "Topology", "eventually", "silence"]
