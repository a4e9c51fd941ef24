"""The node: the runtime of one process, which hosts instances of services on a transport."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from runtime.clock import Clock, Random
from runtime.contract.errors import DefinitionError
from runtime.contract.messages import Contract
from runtime.durable.progress import Blocked, StreamStatus
from runtime.execution.caller import Caller
from runtime.execution.environment import Environment, NodeSettings
from runtime.execution.instance import Instance
from runtime.identity import Verifier
from runtime.issuers import Issuer
from runtime.metrics import Metrics
from runtime.network.envelope import Envelope
from runtime.network.registry import Registry
from runtime.network.transport import Transport
from runtime.node import descriptors
from runtime.node.clock_watch import ClockWatch
from runtime.node.factory import Factory, make
from runtime.node.inbound import Inbound
from runtime.node.observation import Observation, Observe
from runtime.node.supervisor import Supervised
from runtime.node.token_refresh import TokenRefresher
from runtime.node.watchdog import Watchdog
from runtime.service.context import Context
from runtime.service.service import Definition, Service
from runtime.storage.database import Database
from runtime.tasks import finish
from runtime.tracing import Tracing

if TYPE_CHECKING:
    from runtime.otel import Spans


S = TypeVar("S", bound=Service)

Databases = Callable[[str], Database]
"""Returns the database of a service, by the service's name."""


class Node:
    """Hosts services. `async with Node(…)` starts them, and drains and stops them when the block ends.

    Args:
        services: their classes, or callables that make them. They are called again when an instance restarts.
        transport: carries envelopes to other nodes. The node opens and closes it.
        name: the node's name. Its id is the name plus a nonce drawn at each start.
        databases: returns the database of each service that needs one.
        settings: how the node behaves.
        clock: the node's time.
        random: the node's random values.
        issuers: who issues access tokens beside the auth service.

    Raises:
        DefinitionError: if two services have the same contract or route, or if a service needs a database and none is given.
        CallboardError: when it starts, if the transport or a database cannot be opened.

    The start ends once every service is ready. One whose `on_start` calls a service that is not there yet waits for it.
    """

    def __init__(
        self,
        services: Sequence[Factory],
        transport: Transport,
        *,
        name: str = "node",
        databases: Databases | None = None,
        settings: NodeSettings | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        issuers: Sequence[Issuer] = (),
        spans: "Spans | None" = None,
    ) -> None:
        clock = clock or Clock()
        random = random or Random(clock)
        settings = settings or NodeSettings()
        self.id: str = f"{name}-{random.hex(12)}"
        self.environment: Environment = Environment(self.id, transport, settings, clock, random)
        if spans is not None:
            from runtime.otel import OtelTracing

            self.environment.tracing = OtelTracing(spans, self.id, random)
        self.caller: Caller = Caller(self.environment)
        self.inbound: Inbound = Inbound(self.environment, self.caller)
        self.verifier: Verifier = Verifier(settings.tokens, clock, self.environment.metrics, self._ask_auth, issuers)
        self._hosts: list[Instance] = []
        self._databases = databases
        refresher: Factory = partial(TokenRefresher, self.verifier, settings.tokens)
        self.supervised: list[Supervised] = [
            self._supervise(refresher, announced=False),
            *(self._supervise(factory) for factory in services),
        ]
        self._running: dict[str, asyncio.Task[None]] = {}
        classes = [type(supervised.service) for supervised in self.supervised]
        self._clock_watch: ClockWatch | None = None
        blocked_after = settings.blocked_after
        self._watchdog = Watchdog(classes, blocked_after, self.environment.log) if blocked_after else None
        self._auth_client = self.client("runtime", TokenRefresher.calls)
        self._observation = Observation(self.environment, self._trace)
        self._seen: set[str] = set()
        self.registry.watch(self._note_services)
        check_together([supervised.service.definition for supervised in self.supervised])

    def __repr__(self) -> str:
        return f"<Node {self.id}: {', '.join(s.name for s in self.supervised[1:])}>"

    def service(self, cls: type[S]) -> S | None:
        """Return the running service of a class on this node, or None."""
        return next((one.service for one in self.supervised if isinstance(one.service, cls)), None)

    @property
    def registry(self) -> Registry:
        """The live instances, as this node sees them."""
        return self.environment.registry

    @property
    def metrics(self) -> Metrics:
        """The metrics of this node."""
        return self.environment.metrics

    def _supervise(self, factory: Factory, *, announced: bool = True) -> Supervised:
        service = make(factory)
        database = None
        if service.definition.needs_database:
            if self._databases is None:
                raise DefinitionError(f"{type(service).__name__} keeps state: give its node databases=…", type(service))
            database = self._databases(service.definition.contract.name)
        return Supervised(factory, service, database, self, announced=announced)

    async def __aenter__(self) -> Self:
        await self.environment.transport.open(self.id, self.inbound)
        self._clock_watch = ClockWatch(self.environment.clock, self.environment.metrics, self.environment.log)
        self.metrics.gauge("process_open_fds", descriptors.in_use)
        self.metrics.gauge("process_max_fds", descriptors.limit)
        self.metrics.gauge("link_up", lambda: self.environment.transport.connected)
        self.environment.spawn(descriptors.watch_descriptors(self.environment))
        try:
            for supervised in in_start_order(self.supervised):
                self._running[supervised.name] = asyncio.create_task(supervised.run(), name=supervised.name)
                await self._until(supervised, supervised.ready, supervised.waiting)
            for supervised in self.supervised:
                await self._until(supervised, supervised.ready)
            if self._watchdog is not None:
                self._watchdog.start()  # only now: nobody waits for an on_start that takes its time to import something
        except BaseException:
            await finish(self.stop())
            raise
        return self

    async def _until(self, supervised: Supervised, *events: asyncio.Event) -> None:
        """Wait until one of the events is set. If the service has ended before, raise its error."""
        task = self._running[supervised.name]
        waiting = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait((task, *waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        if task.done():
            task.result()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await finish(self.stop())

    async def wait(self) -> None:
        """Wait until the node has to stop, and raise the reason. It never returns.

        Raises:
            Crashed: if a service crashed too often.
            TransportError: if the transport has ended for good, for example because another node has taken this one's place.
            HandlerAborted: if a handler raised SystemExit or KeyboardInterrupt.
        """
        failed = asyncio.create_task(self.environment.failed.wait())
        try:
            done, _ = await asyncio.wait((*self._running.values(), failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            failed.cancel()
        if self.environment.failure is not None:
            raise self.environment.failure
        for task in done:
            task.result()

    def waits_for(self) -> list[str]:
        """Return what this node waits for before it is ready: the network, its own services, and services that they need."""
        missing = [] if self.environment.transport.connected else ["network"]
        missing += [one.name for one in self.supervised if not one.ready.is_set()]
        own = {one.name for one in self.supervised}
        needed = {name for one in self.supervised if one.announced for name in one.service.definition.needs}
        return missing + sorted(needed - own - self._seen)

    def blocked(self) -> list[Blocked]:
        """Return the streams whose events are not applied on this node, with what each waits for."""
        return self.environment.blocked()

    def streams(self) -> list[StreamStatus]:
        """Return the subscriptions of this node that lag behind, are blocked, or have dead letters."""
        return self.environment.streams()

    async def drained(self) -> None:
        """Wait until an operator lets the node finish its work and stop (`callboard drain`)."""
        await self.environment.drained.wait()

    def _note_services(self) -> None:
        self._seen.update(member.manifest.service for member in self.registry)

    @property
    def crashed(self) -> bool:
        """Whether a service has ended without being stopped, so that the node cannot continue."""
        return any(task.done() for task in self._running.values())

    async def stop(self) -> None:
        """Drain and stop the services, the last started first, and leave the network. Calling it twice is harmless."""
        self.registry.close()
        for name, task in reversed(self._running.items()):
            next(supervised for supervised in self.supervised if supervised.name == name).stop()
            await asyncio.wait((task,))
            if not task.cancelled() and (error := task.exception()) is not None:
                self.environment.log.debug("%s had failed: %r", name, error)
        self._running.clear()
        await self.inbound.cancel_all()
        await self.caller.transfers.close_all()
        await self.environment.settle()
        await self.environment.transport.close()
        self._stop_watching()

    def _stop_watching(self) -> None:
        self._observation.end()
        if self._clock_watch is not None:
            self._clock_watch.stop()
        if self._watchdog is not None:
            self._watchdog.stop()

    async def crash(self) -> None:
        """End immediately, as if the process were killed: nothing is drained, withdrawn, or committed. For tests."""
        for supervised in self.supervised:
            supervised.crash()
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._running.clear()
        await self.inbound.cancel_all()
        await self.caller.transfers.close_all()
        await self.environment.settle()
        self._stop_watching()

    # Contexts outside handlers

    def client(self, name: str, calls: Sequence[Contract], *, token: str | None = None) -> Context:
        """Return a context that makes requests outside any handler, as the service `name`: for tests, scripts, and tools.

        Args:
            calls: the contracts whose services it may call.
            token: the access token of a user, which its requests carry.
        """
        service = type("Client", (Service,), {"contract": Contract(name), "calls": tuple(calls)})()
        instance = Instance(service, self.environment, self.caller, self.verifier, None)
        self._hosts.append(instance)
        for target in self.inbound.instances.values():
            instance.call_locally(target)
        ctx = instance.context()
        if token is not None:
            ctx.envelope = Envelope("signal", instance.new_id(), "client", token=token)
        return ctx

    async def _ask_auth(self, request: Any) -> Any:
        return await self._auth_client.request(request, timeout=max(self.environment.settings.tokens.refresh_seconds, 1.0))

    # Instances on this node

    def link(self, instance: Instance) -> None:
        """Deliver what arrives for the instance, and connect it with the others on this node."""
        instance.tracing = self.environment.tracing  # it may have changed while the service started
        instance.add_console(Observe, self._observation.answer)
        self.inbound.instances[instance.name] = instance
        self.caller.local[instance.name] = instance.endpoints
        self.caller.routes[instance.name] = instance.routes
        self._hosts.append(instance)
        for host in self._hosts:
            host.call_locally(instance)
            if self.inbound.instances.get(host.name) is host:
                instance.call_locally(host)

    def _trace(self, tracing: Tracing | None) -> None:
        """Let all services begin their spans with this from now on."""
        self.environment.tracing = tracing
        for host in self._hosts:
            host.tracing = tracing
        for host in self._hosts:  # a call in this process is made in another way while somebody traces it
            for instance in self.inbound.instances.values():
                if self.caller.local.get(instance.name) is instance.endpoints:
                    host.call_locally(instance)

    def stop_local_calls(self, instance: Instance) -> None:
        """Send requests for this service to other nodes from now on."""
        if self.caller.local.get(instance.name) is instance.endpoints:
            del self.caller.local[instance.name], self.caller.routes[instance.name]
        for host in self._hosts:
            host.stop_calling_locally(instance)

    async def cut_off(self, instance: Instance) -> None:
        """Cancel the requests that the instance is handling for other nodes, and wait until they have ended, within limits."""
        await self.inbound.cut_off(instance.name, self.environment.settings.undo_timeout)

    def unlink(self, instance: Instance) -> None:
        """Deliver nothing to the instance any more."""
        self.stop_local_calls(instance)
        if instance in self._hosts:
            self._hosts.remove(instance)
        if self.inbound.instances.get(instance.name) is instance:
            del self.inbound.instances[instance.name]


def in_start_order(supervised: Sequence[Supervised]) -> list[Supervised]:
    """Return services so that each comes after those that it calls. In a cycle, the given order counts."""
    by_name = {one.name: one for one in supervised}
    ordered: dict[str, Supervised] = {}
    entered: set[str] = set()

    def visit(one: Supervised) -> None:
        if one.name in entered:
            return
        entered.add(one.name)
        for contract in one.service.definition.calls:
            if contract.name in by_name:
                visit(by_name[contract.name])
        ordered[one.name] = one

    for one in supervised:
        visit(one)
    return list(ordered.values())


def check_together(definitions: Sequence[Definition]) -> None:
    """Check what only shows when services share a node: names and routes.

    Raises:
        DefinitionError: if two services have the same name or route.
    """
    names: set[str] = set()
    routes: dict[tuple[str, str], str] = {}
    for definition in definitions:
        name = definition.contract.name
        if name in names:
            raise DefinitionError(f"two services have the contract {name!r}: one node hosts one of each", definition.cls)
        names.add(name)
        for handler in definition.requests.values():
            if handler.http is None:
                continue
            other = routes.setdefault(handler.http.shape, name)
            if other != name:
                raise DefinitionError(
                    f"{name}.{handler.name}: the route {handler.http.method} {handler.http.path} is taken by {other}: choose another path",
                    handler.function,
                )
