"""The frame of the conformance kit: how a case runs, and the nodes that it uses."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from runtime.execution.environment import NodeSettings
from runtime.network.transport import Capabilities, Transport
from runtime.node.node import Node
from runtime.service.context import Context
from runtime.testing.expectations import WAIT, ConformanceError, eventually
from runtime.testing.peer import Peer, kit

TransportFactory = Callable[[], Transport]
"""Makes a transport."""
Crash = Callable[[Transport], Awaitable[None]]
"""Ends a transport without a goodbye, as if its process were killed."""


class KitBase:
    """What the cases of the conformance kit share. Each case is a method whose name begins with `case_`.

    Args:
        factory: makes transports that can reach each other.
        crash: ends a transport without a goodbye, as if its process were killed; None leaves out the cases that need it.
    """

    def __init__(self, factory: TransportFactory, crash: Crash | None = None) -> None:
        self.factory = factory
        self.crash = crash
        self.capabilities: Capabilities = factory().capabilities

    @classmethod
    def cases(cls) -> list[str]:
        """Return the names of all cases."""
        return sorted(name.removeprefix("case_") for name in dir(cls) if name.startswith("case_"))

    async def run(self, case: str) -> None:
        """Run one case.

        Raises:
            ConformanceError: if the transport fails it.
        """
        try:
            async with asyncio.timeout(WAIT * 3):
                await getattr(self, f"case_{case}")()
        except ConformanceError as error:
            raise ConformanceError(f"{case}: {error}") from error
        except TimeoutError:
            raise ConformanceError(f"{case}: hangs") from None

    @asynccontextmanager
    async def nodes(
        self, *names: str, service: type[Peer] = Peer, **settings: Any
    ) -> AsyncGenerator[list[tuple[Node, Peer]], None]:
        """Start nodes with a `Peer` each, and wait until they see each other."""
        opened: list[tuple[Node, Peer]] = []
        try:
            for name in names:
                peer = service(name)
                node = Node([partial(_same, peer)], self.factory(), name=name, settings=NodeSettings(**settings))
                await node.__aenter__()
                opened.append((node, peer))
            for node, _ in opened:
                await eventually(partial(_sees, node, len(names)), "every node sees every other")
            yield opened
        finally:
            for node, _ in reversed(opened):
                await node.stop()

    @asynccontextmanager
    async def asker(self, *, see: int = 1, **settings: Any) -> AsyncGenerator[tuple[Node, Context], None]:
        """Start a node without the service. Yield it, and a context of the service `asker` on it."""
        async with Node([], self.factory(), name="asker", settings=NodeSettings(**settings)) as node:
            await eventually(lambda: len(node.registry.members("conformance")) >= see, "the asker sees the peers")
            yield node, node.client("asker", (kit,))


def _same(peer: Peer) -> Peer:
    return peer


def _sees(node: Node, count: int) -> bool:
    return len(node.registry.members("conformance")) == count
