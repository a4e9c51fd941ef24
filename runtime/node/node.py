"""The node: one process's runtime, hosting instances of services on a transport."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from runtime.clock import Clock, Random
from runtime.contract.access import ANYONE
from runtime.contract.errors import DefinitionError
from runtime.contract.messages import Contract
from runtime.execution.caller import Caller
from runtime.execution.environment import Environment, NodeSettings
from runtime.execution.instance import Instance
from runtime.execution.local import LocalRoute
from runtime.identity import Verifier
from runtime.network.envelope import Envelope
from runtime.network.registry import Registry
from runtime.network.transport import Transport
from runtime.node.inbound import Inbound
from runtime.node.supervisor import Factory, Supervised
from runtime.node.token_refresh import TokenRefresher
from runtime.service.context import Context
from runtime.service.handlers import Handler
from runtime.service.service import Definition, Service
from runtime.storage.database import Database
from runtime.tasks import finish
from runtime.telemetry import Metrics

S = TypeVar("S", bound=Service)

Databases = Callable[[str], Database]
"""Gives a service's own database by the service's name."""


class Node:
    """Hosts services. `async with Node(…)` starts them and, at its end, drains and stops them.

    Args:
        services: their classes, or callables that make them; called again when an instance is restarted.
        transport: what carries envelopes to other nodes. The node opens and closes it.
        name: the node's name; its id is that and a nonce drawn at each start.
        databases: gives the database of each service that needs one.

    Raises:
        DefinitionError: two services have one contract or one route, or a service needs a database and none is given.
        CallboardError: at the start: the transport or a database cannot be opened.
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
    ) -> None:
        clock = clock or Clock()
        random = random or Random(clock)
        settings = settings or NodeSettings()
        self.id = f"{name}-{random.hex(12)}"
        self.environment = Environment(self.id, transport, settings, clock, random)
        self.caller = Caller(self.environment)
        self.inbound = Inbound(self.environment, self.caller)
        self.verifier = Verifier(settings.tokens, clock, self.environment.metrics, self._ask_auth)
        self._hosts: list[Instance] = []
        self._databases = databases
        watch: Factory = partial(TokenRefresher, self.verifier, settings.tokens)
        self.supervised = [self._supervise(watch, announced=False), *(self._supervise(factory) for factory in services)]
        self._running: dict[str, asyncio.Task[None]] = {}
        self._asker = self.client("runtime", TokenRefresher.calls)
        self._seen: set[str] = set()
        self.registry.watch(self._look)
        check_together([supervised.service.definition for supervised in self.supervised])

    def __repr__(self) -> str:
        return f"<Node {self.id}: {', '.join(s.name for s in self.supervised[1:])}>"

    def service(self, cls: type[S]) -> S | None:
        """The running service of a class on this node, if there is one."""
        return next((one.service for one in self.supervised if isinstance(one.service, cls)), None)

    @property
    def registry(self) -> Registry:
        """The live instances as this node sees them."""
        return self.environment.registry

    @property
    def metrics(self) -> Metrics:
        """What this node counts."""
        return self.environment.metrics

    def _supervise(self, factory: Factory, *, announced: bool = True) -> Supervised:
        service = factory()
        database = None
        if service.definition.needs_database:
            if self._databases is None:
                raise DefinitionError(f"{type(service).__name__} keeps state: give its node databases=…")
            database = self._databases(service.definition.contract.name)
        return Supervised(factory, service, database, self, announced=announced)

    async def __aenter__(self) -> Self:
        await self.environment.transport.open(self.id, self.inbound)
        try:
            for supervised in in_start_order(self.supervised):
                self._running[supervised.name] = task = asyncio.create_task(supervised.run(), name=supervised.name)
                ready = asyncio.create_task(supervised.ready.wait())
                await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
                ready.cancel()
                if task.done():
                    task.result()
        except BaseException:
            await finish(self.stop())
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await finish(self.stop())

    async def wait(self) -> None:
        """Returns never by itself.

        Raises:
            Crashed: a service failed too often.
            TransportError: the transport has ended for good, as when another node has taken this one's place.
        """
        broken = asyncio.create_task(self.inbound.broken.wait())
        try:
            done, _ = await asyncio.wait((*self._running.values(), broken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            broken.cancel()
        if self.inbound.failure is not None:
            raise self.inbound.failure
        for task in done:
            task.result()

    def waits_for(self) -> list[str]:
        """What is missing before this node is ready: its network, its own services, those they need and have not met yet."""
        missing = [] if self.environment.transport.connected else ["network"]
        missing += [one.name for one in self.supervised if not one.ready.is_set()]
        own = {one.name for one in self.supervised}
        needed = {name for one in self.supervised if one.announced for name in one.service.definition.needs}
        return missing + sorted(needed - own - self._seen)

    def _look(self) -> None:
        self._seen.update(member.manifest.service for member in self.registry)

    @property
    def crashed(self) -> bool:
        """Whether a service has ended by itself: the node cannot go on."""
        return any(task.done() for task in self._running.values())

    async def stop(self) -> None:
        """Drains and stops the services, the last started first, and leaves the network. Calling it twice is harmless."""
        for name, task in reversed(self._running.items()):
            next(supervised for supervised in self.supervised if supervised.name == name).stop()
            await asyncio.wait((task,))
            if not task.cancelled() and (error := task.exception()) is not None:
                self.environment.log.debug("%s had failed: %r", name, error)
        self._running.clear()
        await self.inbound.cancel_all()
        await self.environment.settle()
        await self.environment.transport.close()

    async def crash(self) -> None:
        """Ends at once, as a killed process would: nothing is drained, withdrawn or committed. For tests."""
        for supervised in self.supervised:
            supervised.crash()
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._running.clear()
        await self.inbound.cancel_all()
        await self.environment.settle()

    # Contexts from outside of handlers

    def client(self, name: str, calls: Sequence[Contract], *, token: str | None = None) -> Context:
        """A context to make requests from outside of any handler, as the service `name`: for tests, scripts and tools.

        Args:
            calls: the contracts whose services it may ask.
            token: a user's access token that its requests carry.
        """
        service = type("Client", (Service,), {"contract": Contract(name), "calls": tuple(calls)})()
        instance = Instance(service, self.environment, self.caller, self.verifier, None)
        self._hosts.append(instance)
        for target in self.inbound.instances.values():
            self._link_one(instance, target)
        ctx = instance.context()
        if token is not None:
            ctx.envelope = Envelope("signal", instance.new_id(), "client", token=token)
        return ctx

    async def _ask_auth(self, request: Any) -> Any:
        return await self._asker.request(request, timeout=max(self.environment.settings.tokens.refresh_seconds, 1.0))

    # Ways between instances on this node

    def link(self, instance: Instance) -> None:
        """Opens an instance to what comes, and lays the ways between it and the others here."""
        self.inbound.instances[instance.name] = instance
        self.caller.local[instance.name] = instance
        self._hosts.append(instance)
        for host in self._hosts:
            self._link_one(host, instance)
            self._link_one(instance, host)

    def close_door(self, instance: Instance) -> None:
        """Sends what is asked on this node to other nodes' instances, if there are any."""
        if self.caller.local.get(instance.name) is instance:
            del self.caller.local[instance.name]
        for host in self._hosts:
            for cls in [cls for cls, route in host.local.items() if route.host is instance]:
                del host.local[cls]

    def unlink(self, instance: Instance) -> None:
        """Closes an instance."""
        self.close_door(instance)
        self._hosts.remove(instance)
        if self.inbound.instances.get(instance.name) is instance:
            del self.inbound.instances[instance.name]

    def _link_one(self, host: Instance, target: Instance) -> None:
        if self.inbound.instances.get(target.name) is not target:
            return
        if target.definition.contract.name not in {
            contract.name for contract in (*host.definition.calls, host.definition.contract)
        }:
            return
        for endpoint in target.endpoints.values():
            if _is_plain(endpoint.handler):
                host.local[endpoint.handler.spec.cls] = LocalRoute(
                    target, endpoint, host.definition.known_error,
                    zero_copy=self.environment.transport.zero_copy, deadlines=self.environment.settings.deadlines,
                )  # fmt: skip


def _is_plain(handler: Handler) -> bool:
    """Whether a handler needs nothing that the quick way leaves out."""
    return not handler.takes_tx and handler.key is None and (handler.allow == ANYONE or handler.allow.every_service)


def in_start_order(supervised: Sequence[Supervised]) -> list[Supervised]:
    """Those that are called come before those that call them; in a circle, the given order stands."""
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
    """Checks what only shows when services stand together: names and routes.

    Raises:
        DefinitionError: two have the same.
    """
    names: set[str] = set()
    routes: dict[tuple[str, str], str] = {}
    for definition in definitions:
        name = definition.contract.name
        if name in names:
            raise DefinitionError(f"two services have the contract {name!r}: one node hosts one of each")
        names.add(name)
        for handler in definition.requests.values():
            if handler.http is None:
                continue
            shape = "/".join("{}" if part.startswith("{") else part for part in handler.http.path.split("/"))
            other = routes.setdefault((handler.http.method, shape), name)
            if other != name:
                raise DefinitionError(
                    f"{name}.{handler.name}: the route {handler.http.method} {handler.http.path} is taken by {other}: choose another path"
                )
