"""The supervisor: starts the instances of a node, keeps them running, and stops them in an orderly way.

A crash in a timer or a lifecycle hook restarts that instance alone, with backoff. After too many crashes within a minute the
node stops. A crash in a handler fails only its message. A service that is not there yet is not a crash: `on_start` waits for it.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, cast

from runtime.contract.errors import CallboardError, DefinitionError, ServiceError, StartError, UsageError
from runtime.durable.leases import TimerLease
from runtime.execution.caller import Caller
from runtime.execution.endpoint import HookEndpoint, TimerEndpoint
from runtime.execution.environment import Environment
from runtime.execution.failures import HandlerAborted
from runtime.execution.instance import Instance
from runtime.identity import Verifier
from runtime.network.envelope import Topic
from runtime.node.dependencies import Dependencies
from runtime.node.factory import Factory, make
from runtime.node.timers import repeat
from runtime.service.describe import describe
from runtime.service.resources import open_resources
from runtime.service.service import Service
from runtime.source import innermost, missing_variable
from runtime.stacks import of_methods
from runtime.storage.database import Database, DatabaseError, MissingTable, StatementError
from runtime.tasks import Backoff, abandonable, finish

_WINDOW = 60.0
"""The seconds after which a crash no longer counts."""
_HOUSEKEEPING = 60.0
"""The seconds between prunings of a database."""
_RESTART = Backoff(0.1, 10.0)


class Crashed(CallboardError):
    """An instance crashed too often; the node cannot continue."""


class NodeHost(Protocol):
    """What an instance needs of the node that hosts it."""

    environment: Environment
    supervised: "list[Supervised]"
    caller: Caller
    verifier: Verifier

    def link(self, instance: Instance) -> None:
        """Deliver what arrives for the instance, and connect it with the others on this node."""

    def stop_local_calls(self, instance: Instance) -> None:
        """Send requests for this service to other nodes from now on."""

    async def cut_off(self, instance: Instance) -> None:
        """Cancel the requests that the instance is handling for other nodes."""

    def unlink(self, instance: Instance) -> None:
        """Deliver nothing to the instance any more."""


class SupervisorState(Enum):
    """What a supervised service is doing."""

    NEW = "NEW"
    """`run` has not been called."""
    STARTING = "STARTING"
    """Its database is opened and migrated, and `on_start` runs."""
    WAITING = "WAITING"
    """It needs another service to start, which has no instance yet or does not answer."""
    READY = "READY"
    """An instance is live and handles messages."""
    DRAINING = "DRAINING"
    """The instance has withdrawn, and finishes its running handlers."""
    BACKING_OFF = "BACKING_OFF"
    """An instance has crashed; the next one starts after a pause."""
    STOPPED = "STOPPED"
    """`run` has ended."""


class Supervised:
    """One service of a node, across its restarts.

    Args:
        factory: makes the service.
        first: the service for the first instance.
        database: the service's database, or None.
        host: the node.
        announced: whether other nodes learn about the instance. The runtime's own service is not announced.
    """

    def __init__(
        self, factory: Factory, first: Service, database: Database | None, host: NodeHost, *, announced: bool = True
    ) -> None:
        self.service: Service = first
        self.name: str = self.service.definition.contract.name
        self.ready: asyncio.Event = asyncio.Event()
        """Set while an instance is live and handles messages."""
        self.waiting: asyncio.Event = asyncio.Event()
        """Set while it waits for another service, which may be the next one to start on this node."""
        self._factory = factory
        self._database = database
        self._host = host
        self.announced: bool = announced
        self._state = SupervisorState.NEW
        self._crashes: deque[float] = deque()
        self._failed_starts = 0
        self.dependencies: Dependencies = Dependencies(
            self.name,
            host.environment,
            host.caller,
            lambda: (one.dependencies for one in host.supervised),
            lambda waits: self._enter(SupervisorState.WAITING if waits else SupervisorState.STARTING),
        )
        self._stopping = asyncio.Event()
        self._killed = False

    def __repr__(self) -> str:
        return f"<Supervised {self.name} [{self._state.value}] crashes={len(self._crashes)}>"

    def _enter(self, state: SupervisorState) -> None:
        self._state = state
        for event, of in ((self.ready, SupervisorState.READY), (self.waiting, SupervisorState.WAITING)):
            if state is of:
                event.set()
            else:
                event.clear()

    async def run(self) -> None:
        """Run instances of the service, one after another, until `stop` is called.

        Raises:
            Crashed: if the restart budget is spent.
            CallboardError: if the service cannot start: its database or its definition is wrong, or a resource is taken.
        """
        try:
            if self._database is not None:
                self._enter(SupervisorState.STARTING)
                await self._open_database(self._database)
            while not self._stopping.is_set():
                self._enter(SupervisorState.STARTING)
                try:
                    await self._run_instance()
                except Exception as error:
                    first = _root_cause(error)
                    if isinstance(first, DefinitionError | StartError):
                        raise first from None
                    remedy = missing_variable(first) or (str(first) if isinstance(first, MissingTable) else None)
                    if remedy is not None:
                        raise StartError(f"{self.name}: {remedy}") from first
                    if _is_starting(self._state) and (isinstance(first, UsageError) or type(first) is StatementError):
                        where = innermost(first.__traceback__)  # it would fail again
                        raise DefinitionError(f"{self.name}: {first}", None if where is None else Path(where)) from first
                    if _is_starting(self._state) and isinstance(first, ServiceError) and first.retryable:
                        await self._handle_failed_start(first)
                    else:
                        await self._handle_crash(first)
                    self.service = make(self._factory)
        finally:
            self._enter(SupervisorState.STOPPED)
            if self._database is not None:
                await finish(self._database.close())

    async def _handle_crash(self, error: BaseException) -> None:
        environment = self._host.environment
        now = environment.clock.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - _WINDOW:
            self._crashes.popleft()
        environment.metrics.count("instance_restarts_total", service=self.name)
        environment.log.error("%s crashed (%d times within a minute): %r", self.name, len(self._crashes), error, exc_info=error)
        if environment.failed.is_set():
            raise error
        if self._stopping.is_set():
            return
        if len(self._crashes) > environment.settings.restarts:
            raise Crashed(f"{self.name} crashed {len(self._crashes)} times within a minute, the last time by {error!r}")
        self._enter(SupervisorState.BACKING_OFF)
        await self._unless_stopping(environment.clock.sleep(_RESTART.delay(len(self._crashes), environment.random)))

    async def _handle_failed_start(self, error: ServiceError) -> None:
        """Pause before `on_start` runs again, because a service that it called is not there or cannot answer yet."""
        environment = self._host.environment
        self._failed_starts += 1
        pause = _RESTART.delay(self._failed_starts, environment.random)
        environment.log.warning("%s cannot start yet, and tries again in %.1f s: %s", self.name, pause, error)
        environment.metrics.count("failed_starts_total", service=self.name)
        self._enter(SupervisorState.WAITING)
        await self._unless_stopping(environment.clock.sleep(pause))

    async def _unless_stopping(self, work: Coroutine[Any, Any, Any]) -> None:
        """Await a coroutine. Cancel it when `stop` is called."""
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(work)
            stopping = tasks.create_task(self._stopping.wait())
            await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            stopping.cancel()

    def stop(self) -> None:
        """Let the instance finish its running handlers; then `run` returns."""
        self._stopping.set()

    def crash(self) -> None:
        """When `run` is cancelled, neither drain nor withdraw, as if the process were killed. For tests."""
        self._killed = True

    async def _open_database(self, database: Database) -> None:
        from runtime.storage.migrations import SCHEMA, migrate

        await database.open()
        await migrate(database, SCHEMA, "callboard")
        if self.service.definition.migrations is not None:
            await migrate(database, Path(self.service.definition.migrations), self.name)

    async def _run_instance(self) -> None:
        host, service = self._host, self.service
        instance = Instance(service, host.environment, host.caller, host.verifier, self._database)
        service.attach(instance, self._database)
        if instance.stream is not None:
            await instance.stream.open()
        stack = AsyncExitStack()
        try:
            await self._open_resources(service, stack)
            if not self._stopping.is_set():
                await self._run_hooks(instance)
        finally:
            await stack.aclose()  # a resource learns nothing of a crash

    async def _open_resources(self, service: Service, stack: AsyncExitStack) -> None:
        """Open what a service needs. Cancel it when `stop` is called. They are closed by the same task, as anyio's scopes demand."""
        limit = asyncio.timeout(None)

        def cancel(_: "asyncio.Task[Any]") -> None:
            limit.reschedule(0)

        stopping = asyncio.create_task(self._stopping.wait())
        stopping.add_done_callback(cancel)
        try:
            async with limit:
                try:
                    await open_resources(service, stack)
                finally:
                    stopping.remove_done_callback(cancel)
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            stopping.cancel()

    async def _run_hooks(self, instance: Instance) -> None:
        """Run an instance from `on_start` to `on_stop`."""
        on_stop = instance.hook("on_stop")
        try:
            instance.before_request = self.dependencies.wait_for
            await self._unless_stopping(instance.hook("on_start").enter(instance.context(), None))
            instance.before_request = None
            if not self._stopping.is_set():
                await self._serve(instance)
        except BaseException:  # a cancellation, too: `on_stop` is due for every `on_start` that was entered
            if not self._killed:
                await finish(self._stop_unfinished(instance, on_stop))
            raise
        if _is_starting(self._state):
            await self._stop_unfinished(instance, on_stop)
        else:
            await on_stop.enter(instance.context(), None)

    async def _stop_unfinished(self, instance: Instance, on_stop: HookEndpoint) -> None:
        """Run `on_stop` after a crash or a start that was cut short. Its failure is only logged."""
        try:
            await on_stop.enter(instance.context(), None)
        except Exception as error:
            instance.log.error("%s failed after a start or a run that was cut short: %r", on_stop.title, error, exc_info=error)

    async def _serve(self, instance: Instance) -> None:
        """Handle messages until `stop` is called, or until one of its tasks crashes."""
        timers: list[asyncio.Task[None]] = []
        running: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as tasks:
            try:
                await self._unless_stopping(self._join(instance))
                timers = [tasks.create_task(self._repeat(instance, *timer)) for timer in instance.timers]
                running = [
                    tasks.create_task(self._cancellable(instance, f"the subscription to {publisher}", subscription.run()))
                    for publisher, subscription in instance.subscriptions.items()
                ]
                if instance.compensations is not None:
                    running.append(tasks.create_task(instance.compensations.run()))
                if instance.stream is not None:
                    running.append(tasks.create_task(self._maintain_stream(instance)))
                self._enter(SupervisorState.READY)
                self._failed_starts = 0
                await self._stopping.wait()
            finally:
                self._enter(SupervisorState.DRAINING)
                if self._killed:
                    self._host.unlink(instance)
                else:
                    await finish(self._leave(instance))  # it waits for the runs of timers, too
                for task in timers:
                    task.cancel()
            for task in running:
                task.cancel()

    async def _join(self, instance: Instance) -> None:
        """Discover the instances that this one calls, listen for messages, and announce the instance."""
        transport = self._host.environment.transport
        if self.announced:
            await self._discover(instance)
        self._host.link(instance)
        if self.announced:
            await transport.listen(self.name)
        if transport.capabilities.signals:
            for endpoint in instance.signals.values():
                spec = endpoint.handler.spec
                await transport.subscribe(
                    Topic("signal", spec.contract.name, spec.name), self.name, broadcast=endpoint.handler.broadcast
                )
        for publisher in instance.subscriptions:
            await transport.subscribe(Topic("stream", publisher), self.name, broadcast=True)
        if self.announced:
            await transport.announce(describe(type(self.service), instance.address, instance.id))

    async def _discover(self, instance: Instance) -> None:
        called = set(instance.definition.needs)
        if self._database is not None:
            called.add(self.name)  # to see whether another instance that has claimed a `once` request is still live
        for service in called:
            await self._host.environment.watch(service)

    async def _leave(self, instance: Instance) -> None:
        """Withdraw the instance, and let it finish its running handlers and their compensations."""
        environment = self._host.environment
        self._host.stop_local_calls(instance)
        await environment.transport.withdraw(instance.address)
        try:
            async with asyncio.timeout(environment.settings.drain_timeout):
                await instance.mailbox.drain()
                await instance.failures.settled()
                await self._host.caller.transfers.drain(self.name)
        except TimeoutError:
            busy = ", ".join(of_methods(type(instance.service))) or f"{instance.mailbox.running} handlers"
            instance.log.warning(
                "%s was still busy after %g s, and is cut off: %s", self.name, environment.settings.drain_timeout, busy
            )
            await self._host.cut_off(instance)
            await instance.failures.cut_off()
        self._host.unlink(instance)

    async def _repeat(self, instance: Instance, endpoint: TimerEndpoint, seconds: float, lease: TimerLease | None) -> None:
        await self._cancellable(instance, endpoint.title, repeat(instance, endpoint, seconds, lease, self._stopping))

    async def _cancellable(self, instance: Instance, title: str, work: Coroutine[Any, Any, None]) -> None:
        """Await a coroutine that runs handlers. One that does not end when it is cancelled is left behind, and reported."""

        def report() -> None:
            doing = ", ".join(of_methods(type(instance.service)))
            instance.log.error(
                "%s does not end although it was cancelled: %s", title, doing or "it runs no method of the service"
            )

        await abandonable(work, self._host.environment.settings.undo_timeout, report)

    async def _maintain_stream(self, instance: Instance) -> None:
        """Broadcast the head of the stream periodically, and prune the database now and then."""
        environment = self._host.environment
        assert instance.stream is not None
        assert instance.events is not None
        next_pruning = environment.clock.monotonic() + environment.random.jitter(_HOUSEKEEPING)
        while True:
            await environment.clock.sleep(environment.random.jitter(environment.settings.heartbeat))
            try:
                if instance.definition.publishes_events:
                    await instance.events.broadcast_head(await instance.stream.head())
                if environment.clock.monotonic() >= next_pruning:
                    next_pruning = environment.clock.monotonic() + environment.random.jitter(_HOUSEKEEPING)
                    await instance.prune()
            except DatabaseError as error:
                instance.log.warning("housekeeping failed, and is tried again: %s", error)


def _is_starting(state: SupervisorState) -> bool:
    """Return whether `on_start` has not returned yet."""
    return state in (SupervisorState.STARTING, SupervisorState.WAITING)


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error in a group, or the error itself. A handler that stopped the node comes before all others."""
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        error = next((one for one in group.exceptions if isinstance(one, HandlerAborted)), group.exceptions[0])
    return error
