"""The topologies in which the same test runs: one node or several, with and without encoding."""

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

TOPOLOGIES = ("one-node-zero-copy", "one-node-serialized", "separate-nodes-zero-copy", "separate-nodes-serialized")

S = TypeVar("S", bound=Service)

Factory = Callable[[], Service]


_PATIENT = {"request_timeout": 60.0}
"""A slow machine must not fail a test that is about something else."""


class QuickClock(ManualClock):
    """A clock whose time of day moves only when a test advances it, and whose sleeps take a twentieth of their time."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 20)


async def advance_in_steps(clock: ManualClock, fleet: Fleet, seconds: float) -> None:
    """Advance the clock by `seconds`, in steps short enough that the fleet does not mistake them for a pause of its process."""
    while seconds > 0:
        step = min(seconds, 9.0)
        clock.advance(timedelta(seconds=step))
        seconds -= step
        await eventually(
            lambda: fleet.looked_at >= clock.steady() and fleet.heard_at > clock.steady() - 3,
            "the fleet has looked for silent scooters and has heard its own signal",
        )


class Topology:
    """Runs services together on one node (`one-node-…`), or each on its own node (`separate-nodes-…`).

    Attributes:
        nodes: The nodes that host services.
        clock: The clock of every node that starts later.
        wrap_database: Called with each service's database and the service's name; the service uses the database it returns.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.separate_nodes = kind.startswith("separate-nodes")
        self.zero_copy = kind.endswith("zero-copy")
        self.folder = folder
        self.nodes: list[Node] = []
        self.clock = Clock()
        self.wrap_database: Callable[[Database, str], Database] = lambda database, service: database
        self._network = MemoryNetwork()
        self._groups: dict[Node, tuple[list[Factory], dict[str, Any]]] = {}
        self._stack = AsyncExitStack()

    async def start(self, *services: Factory, **settings: Any) -> None:
        """Start the services and wait until every node knows all of them."""
        for group in [[service] for service in services] if self.separate_nodes else [list(services)]:
            await self._start_node(group, settings)
        await self._wait_until_all_known()

    async def _start_node(self, group: list[Factory], settings: dict[str, Any]) -> None:
        node = await self._stack.enter_async_context(self._node(group, settings))
        self.nodes.append(node)
        self._groups[node] = (group, settings)

    async def _wait_until_all_known(self) -> None:
        names = [supervised.name for node in self.nodes for supervised in node.supervised[1:]]
        for node in self.nodes:
            await node.registry.wait_for(*names)

    def _node(self, services: Sequence[Factory], settings: dict[str, Any]) -> Node:
        transport = MemoryTransport(self._network, MemorySettings(zero_copy=self.zero_copy))
        folder = SqliteFolder(self.folder, durable=False)
        databases = lambda service: self.wrap_database(folder(service), service)  # noqa: E731
        return Node(services, transport, databases=databases, settings=NodeSettings(**(_PATIENT | settings)), clock=self.clock)

    async def crash_and_restart(self, service: str) -> None:
        """End the node that hosts a service as `kill -9` would, and start it again."""
        node = self.node_of(service)
        transport = node.environment.transport
        assert isinstance(transport, MemoryTransport)
        transport.crash()
        await node.crash()
        self.nodes.remove(node)
        await self._start_node(*self._groups.pop(node))
        await self._wait_until_all_known()

    async def client(self, *calls: Contract, name: str = "test", token: str | None = None, **settings: Any) -> Context:
        """Return a context for requests to these contracts, on the same node or on a separate one."""
        if self.separate_nodes:
            node = await self._stack.enter_async_context(self._node([], settings))
            names = {supervised.name for other in self.nodes for supervised in other.supervised[1:]}
            await node.registry.wait_for(*names)
        else:
            node = self.nodes[0]
        return node.client(name, calls, token=token)

    def node_of(self, service: str) -> Node:
        """Return the node that hosts a service."""
        return next(node for node in self.nodes if any(supervised.name == service for supervised in node.supervised))

    def service(self, cls: type[S]) -> S:
        """Return the running service of a class."""
        return next(found for node in self.nodes if (found := node.service(cls)) is not None)

    async def close(self) -> None:
        await self._stack.aclose()


__all__ = ["TOPOLOGIES", "QuickClock", "Topology", "advance_in_steps", "eventually"]
