"""The environment that the instances of one node share."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Annotated, Any

from msgspec import Meta

from runtime.clock import Clock, Random
from runtime.contract.errors import CallboardError
from runtime.contract.messages import Struct
from runtime.durable.progress import Blocked, Progress, StreamStatus
from runtime.execution.deadlines import Deadlines
from runtime.identity import TokenSettings
from runtime.metrics import Metrics
from runtime.network.registry import Registry
from runtime.network.transport import Transport, TransportError
from runtime.repeats import Repeats, fault
from runtime.stacks import of_task
from runtime.telemetry import logger
from runtime.tracing import Tracing


class NodeSettings(Struct):
    """The behaviour of a node. Durations are in seconds."""

    request_timeout: Annotated[float, Meta(gt=0)] = 10.0
    """How long a request may take if its caller has no deadline."""
    transaction_timeout: Annotated[float, Meta(gt=0)] = 30.0
    """How long a transaction may take that no handler's deadline ends: in a timer, in `on_start`, or in a script."""
    undo_timeout: Annotated[float, Meta(gt=0)] = 5.0
    """How long each compensation may take."""
    drain_timeout: Annotated[float, Meta(ge=0)] = 20.0
    """How long a stopping instance may take to finish its running handlers."""
    heartbeat: Annotated[float, Meta(gt=0)] = 5.0
    """How often the heads of streams are broadcast again."""
    start_timeout: Annotated[float, Meta(ge=0)] = 60.0
    """How long a request in `on_start` waits for a service that has no instance yet. If none comes, `on_start` fails, and runs again after a pause."""
    restarts: Annotated[int, Meta(ge=0)] = 5
    """How often an instance may crash within a minute before the node gives up."""
    blocked_after: Annotated[float, Meta(ge=0)] = 0.0
    """How long a handler may block the event loop before the log names it, with the line; 0 turns the watch off. `callboard dev` turns it on."""
    deadlines: bool = True
    """Disabled under a debugger, so that stepping through a handler does not cancel it."""
    tokens: TokenSettings = TokenSettings()


class Environment:
    """What the instances of one node share: settings, time, random values, transport, registry, metrics, deadlines."""

    def __init__(self, node: str, transport: Transport, settings: NodeSettings, clock: Clock, random: Random) -> None:
        self.node = node
        self.transport = transport
        self.settings = settings
        self.clock = clock
        self.random = random
        self.metrics: Metrics = Metrics()
        self.repeats: Repeats = Repeats(clock)
        self.registry: Registry = Registry(clock, random, self._want)
        self.deadlines: Deadlines | None = Deadlines(clock) if settings.deadlines else None
        self.log: logging.Logger = logger("node")
        self.failed: asyncio.Event = asyncio.Event()
        """Set when the node has to stop."""
        self.failure: CallboardError | None = None
        """Why the node has to stop."""
        self.tracing: Tracing | None = None
        """Begins spans; None if there are none."""
        self.observer: Callable[[Any], None] | None = None
        """Called with every event that was committed, and every signal that was published."""
        self.drained: asyncio.Event = asyncio.Event()
        """Set when an operator lets the node finish its work and stop."""
        self._subscriptions: dict[tuple[str, str], Progress] = {}
        self._watching: dict[str | None, asyncio.Task[None]] = {}
        self._watched: set[str | None] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def fail(self, error: CallboardError) -> None:
        """Make the node stop in an orderly way. The first reason counts."""
        if self.failure is None:
            self.failure = error
            self.failed.set()

    def incident(
        self,
        key: Hashable,
        message: str,
        *args: object,
        log: logging.Logger | None = None,
        exc_info: BaseException | None = None,
    ) -> str:
        """Return the id of an incident, whose details are in the log. Equal failures within a minute are one incident.

        Args:
            key: identifies equal failures, by what comes from the code and not from a message.
            log: the log for it; by default, that of the node.
        """
        incident = self.repeats.tag(key)
        if incident is None:
            incident = self.random.hex(16)
            extra = {"incident": incident}
            message = f"incident %s: {message}"
            log = log or self.log
            self.repeats.log(log, logging.ERROR, key, message, incident, *args, exc_info=exc_info, extra=extra, tag=incident)
        return incident

    def add_subscription(self, service: str, publisher: str, progress: Progress) -> None:
        """Include a subscription in `blocked` and `streams`. That of an earlier instance of the service is replaced."""
        self._subscriptions[service, publisher] = progress

    def blocked(self) -> list[Blocked]:
        """Return the streams whose events are not applied on this node, with what each waits for."""
        return [found for progress in self._subscriptions.values() if (found := progress.blocked()) is not None]

    def streams(self) -> list[StreamStatus]:
        """Return the subscriptions of this node that lag behind, are blocked, or have dead letters."""
        return [found for progress in self._subscriptions.values() if (found := progress.status()) is not None]

    async def watch(self, service: str | None) -> None:
        """Keep the members of a service in the registry from now on; of every service, for None.

        When it returns, the registry contains those that the network knows.

        Raises:
            TransportError: if the transport refuses.
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
        if self.transport.settling:
            self.registry.will_be_complete(service, self.clock.monotonic() + self.transport.settling)

    def is_watched(self, service: str) -> bool:
        """Return whether the registry contains the members of a service."""
        return service in self._watched

    def _want(self, service: str) -> None:
        if None not in self._watching and service not in self._watching:
            self.spawn(self.watch(service))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in the background. A failure is logged."""
        task = self.clock.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            key = ("background", fault(error))
            self.repeats.log(self.log, logging.WARNING, key, "a background task failed: %r", error, exc_info=error)

    async def settle(self) -> None:
        """Cancel all background tasks, and wait until they have ended."""
        self.repeats.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, rest = await asyncio.wait(tasks, timeout=max(self.settings.drain_timeout, self.settings.undo_timeout))
            for task in rest:
                self.log.error("%s does not end although it was cancelled", of_task(task))
