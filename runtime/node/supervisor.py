"""The supervisor: starts a node's instances, keeps them running, and ends them in good order.

A crash in a timer or a lifecycle hook restarts that instance alone, with backoff; past its budget the node gives up. A
crash in a handler fails that message only.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

from runtime.contract.errors import CallboardError, DefinitionError, ServiceError, StartError
from runtime.durable.subscription import is_transient
from runtime.execution.caller import Caller
from runtime.execution.environment import Environment
from runtime.execution.instance import Instance
from runtime.identity import Verifier
from runtime.network.envelope import Topic
from runtime.node.inbound import Inbound
from runtime.service.describe import describe
from runtime.service.handlers import Timer
from runtime.service.service import Service
from runtime.storage.database import Database, DatabaseError
from runtime.tasks import finish

Factory = Callable[[], Service]
"""Makes a service: its class, or a partial of it. Called again for every restart."""

_WINDOW = 60.0
_HOUSEKEEPING = 60.0


class Crashed(CallboardError):
    """An instance failed too often; the node cannot go on."""


class NodeHost(Protocol):
    """The node, as its supervised services see it."""

    environment: Environment
    caller: Caller
    verifier: Verifier
    inbound: Inbound

    def link(self, instance: Instance) -> None: ...
    def close_door(self, instance: Instance) -> None: ...
    def unlink(self, instance: Instance) -> None: ...


class Supervised:
    """One service of a node, through its restarts. What is not `announced` is the node's own, and nobody else's business."""

    def __init__(
        self, factory: Factory, first: Service, database: Database | None, house: NodeHost, *, announced: bool = True
    ) -> None:
        self.service = first
        self.name = self.service.definition.contract.name
        self.ready = asyncio.Event()
        """Set while an instance is there and takes messages."""
        self._factory = factory
        self._database = database
        self._house = house
        self.announced = announced
        self._crashes: deque[float] = deque()
        self._stopping = asyncio.Event()
        self._crashing = False

    def __repr__(self) -> str:
        return f"<Supervised {self.name} [{'READY' if self.ready.is_set() else 'DOWN'}] crashes={len(self._crashes)}>"

    async def run(self) -> None:
        """Runs instances of the service, one after the other, until told to stop.

        Raises:
            Crashed: the restart budget is spent.
            CallboardError: the service cannot start: its database or its definition is wrong, or what it needs is taken.
        """
        try:
            if self._database is not None:
                await self._open_database(self._database)
            while not self._stopping.is_set():
                try:
                    await self._run_instance()
                except Exception as error:
                    first = _first(error)
                    if isinstance(first, (DefinitionError, StartError)):
                        raise first from None
                    await self._crashed(first)
                    self.service = self._factory()
        finally:
            if self._database is not None:
                await finish(self._database.close())

    async def _crashed(self, error: BaseException) -> None:
        environment = self._house.environment
        now = environment.clock.monotonic()
        self._crashes.append(now)
        while self._crashes[0] < now - _WINDOW:
            self._crashes.popleft()
        environment.metrics.count("instance_restarts_total", service=self.name)
        environment.log.error("%s crashed (%d times within a minute): %r", self.name, len(self._crashes), error, exc_info=error)
        if self._stopping.is_set():
            return
        if len(self._crashes) > environment.settings.restarts:
            raise Crashed(f"{self.name} crashed {len(self._crashes)} times within a minute, the last time by {error!r}")
        await self._unless_stopping(environment.clock.sleep(environment.random.jitter(min(0.1 * 2 ** len(self._crashes), 10.0))))

    async def _unless_stopping(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits something, but no longer than until it is time to stop."""
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(work)
            stopping = tasks.create_task(self._stopping.wait())
            await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            stopping.cancel()

    def stop(self) -> None:
        """Lets the instance finish what it has begun; then `run` returns."""
        self._stopping.set()

    def crash(self) -> None:
        """Lets nothing be finished or withdrawn when `run` is cancelled. For tests."""
        self._crashing = True

    async def _open_database(self, database: Database) -> None:
        from pathlib import Path

        from runtime.storage.migrations import SCHEMA, migrate

        await database.open()
        await migrate(database, SCHEMA, "callboard")
        if self.service.definition.migrations is not None:
            await migrate(database, Path(self.service.definition.migrations), self.name)

    async def _run_instance(self) -> None:
        house, service = self._house, self.service
        instance = Instance(service, house.environment, house.caller, house.verifier, self._database)
        service.attach(instance, self._database)
        if instance.stream is not None:
            await instance.stream.open()
        await self._unless_stopping(service.on_start(instance.context()))
        if self._stopping.is_set():
            return
        async with asyncio.TaskGroup() as tasks:
            try:
                await self._unless_stopping(self._join(instance))
                running = [tasks.create_task(self._repeat(instance, timer)) for timer in instance.definition.timers]
                running += [tasks.create_task(subscription.run()) for subscription in instance.subscriptions.values()]
                if instance.stream is not None:
                    running.append(tasks.create_task(self._keep_house(instance)))
                self.ready.set()
                await self._stopping.wait()
            finally:
                self.ready.clear()
                if self._crashing:
                    self._house.unlink(instance)
                else:
                    await finish(self._leave(instance))
            for task in running:
                task.cancel()
        await service.on_stop(instance.context())

    async def _join(self, instance: Instance) -> None:
        """Opens the instance to the others: it knows whom it calls, it listens, then it is announced."""
        transport = self._house.environment.transport
        if self.announced:
            await self._know_others(instance)
        self._house.link(instance)
        if self.announced:
            await transport.listen(self.name)
        if transport.capabilities.signals:
            for endpoint in instance.listeners.values():
                spec = endpoint.handler.spec
                if spec.kind == "signal":
                    await transport.subscribe(
                        Topic("signal", spec.contract.name, spec.name), self.name, broadcast=endpoint.handler.broadcast
                    )
        for publisher in instance.subscriptions:
            await transport.subscribe(Topic("stream", publisher), self.name, broadcast=True)
        if self.announced:
            await transport.announce(describe(type(self.service), instance.address, instance.id))

    async def _know_others(self, instance: Instance) -> None:
        called = set(instance.definition.needs)
        if self._database is not None:
            called.add(self.name)  # whether another instance, which has claimed a request, is still there
        for service in called:
            await self._house.environment.watch(service)

    async def _leave(self, instance: Instance) -> None:
        """Withdraws the instance, and lets it finish what it has begun."""
        environment = self._house.environment
        self._house.close_door(instance)
        await environment.transport.withdraw(instance.address)
        try:
            async with asyncio.timeout(environment.settings.drain_timeout):
                await instance.mailbox.drain()
        except TimeoutError:
            instance.log.warning("%s was still busy after %g s", self.name, environment.settings.drain_timeout)
        self._house.unlink(instance)

    async def _repeat(self, instance: Instance, timer: Timer) -> None:
        method = getattr(instance.service, timer.name)
        while True:
            await self._house.environment.clock.sleep(timer.seconds)
            try:
                await method(instance.context())
            except (ServiceError, DatabaseError) as error:
                if not is_transient(error):
                    raise
                instance.log.warning("%s.%s failed, and is tried again in %g s: %s", self.name, timer.name, timer.seconds, error)

    async def _keep_house(self, instance: Instance) -> None:
        """Tells the stream's head again and again, and now and then deletes what need not be kept."""
        environment = self._house.environment
        assert instance.stream is not None
        housekeeping = environment.clock.monotonic() + environment.random.jitter(_HOUSEKEEPING)
        while True:
            await environment.clock.sleep(environment.random.jitter(environment.settings.heartbeat))
            try:
                if instance.definition.publishes_events:
                    await instance.broadcast_head(await instance.stream.head())
                if environment.clock.monotonic() >= housekeeping:
                    housekeeping = environment.clock.monotonic() + environment.random.jitter(_HOUSEKEEPING)
                    await instance.prune()
            except DatabaseError as error:
                instance.log.warning("housekeeping failed, and is tried again: %s", error)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
