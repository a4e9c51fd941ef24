"""What the instances of one node share: settings, time and random, transport, registry, counters."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Annotated, Any

from msgspec import Meta

from runtime.clock import Clock, Random
from runtime.contract.messages import Struct
from runtime.identity import TokenSettings
from runtime.network.registry import Registry
from runtime.network.transport import Transport, TransportError
from runtime.telemetry import Metrics


class NodeSettings(Struct):
    """How a node behaves. Durations are in seconds."""

    request_timeout: Annotated[float, Meta(gt=0)] = 10.0
    """How long a request may take when its caller has no deadline itself."""
    undo_timeout: Annotated[float, Meta(gt=0)] = 5.0
    """How long each compensation may take."""
    drain_timeout: Annotated[float, Meta(ge=0)] = 20.0
    """How long a stopping instance may finish what it has begun."""
    heartbeat: Annotated[float, Meta(gt=0)] = 5.0
    """How often heads of streams are told again."""
    restarts: Annotated[int, Meta(ge=0)] = 5
    """How often an instance may crash within a minute before the node gives up."""
    deadlines: bool = True
    """Off under a debugger: stepping must not cancel what is stepped."""
    tokens: TokenSettings = TokenSettings()


class Environment:
    """One node's shared parts."""

    def __init__(self, node: str, transport: Transport, settings: NodeSettings, clock: Clock, random: Random) -> None:
        self.node = node
        self.transport = transport
        self.settings = settings
        self.clock = clock
        self.random = random
        self.metrics = Metrics()
        self.registry = Registry(clock, random, self._want)
        self.log = logging.getLogger("callboard.node")
        self._watching: dict[str | None, asyncio.Task[None]] = {}
        self._watched: set[str | None] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def watch(self, service: str | None) -> None:
        """Has the registry know a service's members (every service's, for None); returns when those that are there are known.

        Raises:
            TransportError: the transport refuses.
        """
        task = self._watching.get(None) or self._watching.get(service)
        if task is None:
            task = self._watching[service] = self.spawn(self.transport.watch(service))
        try:
            await asyncio.shield(task)
        except TransportError:
            if self._watching.get(service) is task:
                del self._watching[service]
            raise
        self._watched.add(service)

    def is_watched(self, service: str) -> bool:
        """Whether the registry knows a service's members."""
        return service in self._watched

    def _want(self, service: str) -> None:
        if None not in self._watching and service not in self._watching:
            self.spawn(self.watch(service))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs something in the background, kept and logged if it fails."""
        task = self.clock.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.warning("a background task failed: %r", error, exc_info=error)

    async def settle(self) -> None:
        """Cancels what still runs in the background, and waits for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
