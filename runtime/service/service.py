"""The service: a class that owns its state and its database, and handles messages."""

import inspect
import logging
import os
from typing import Any, ClassVar, Protocol

import msgspec

from runtime.clock import Clock, Random
from runtime.contract.errors import DefinitionError, ServiceError, UsageError
from runtime.contract.messages import Contract
from runtime.durable.stream import stream
from runtime.service.context import Context
from runtime.service.handlers import Handler, Timer, handler_of
from runtime.storage.database import Database


class ServiceHost(Protocol):
    """The instance, as its service sees it."""

    name: str
    clock: Clock
    random: Random
    log: logging.Logger


class Definition(msgspec.Struct, frozen=True, eq=False):
    """What a service class says of itself, checked."""

    contract: Contract
    calls: tuple[Contract, ...]
    requests: dict[str, Handler]
    events: dict[str, Handler]
    signals: dict[str, Handler]
    timers: tuple[Timer, ...]
    migrations: str | None
    """The folder of its database's SQL files."""

    @property
    def publishes_events(self) -> bool:
        return any(spec.kind == "event" for spec in self.contract.messages.values())

    @property
    def needs_database(self) -> bool:
        handlers = (*self.requests.values(), *self.events.values(), *self.signals.values())
        return self.migrations is not None or self.publishes_events or any(handler.takes_tx for handler in handlers)

    @property
    def needs(self) -> frozenset[str]:
        """The services that it asks, or whose events it takes."""
        return frozenset({contract.name for contract in self.calls} | {name.partition(".")[0] for name in self.events})

    def known_error(self, contract: str, code: str) -> type[ServiceError] | None:
        """The error class that this service imports: of its own contract and of those it calls."""
        for known in (self.contract, *self.calls, stream):
            if known.name == contract and code in known.errors:
                return known.errors[code]
        return None


class Service:
    """Base of services. One instance of the class is one running copy.

    Class attributes:
        contract: the messages and errors that it publishes. Required.
        calls: the contracts whose services it may ask.
        concurrency: how many messages it handles at once; 1 makes it a classic actor.
        capacity: how many more may wait; a further one is answered `Overloaded`.
        version: what the operator sees.

    A folder `migrations/` beside the module holds its database's ordered SQL files.
    """

    contract: ClassVar[Contract]
    calls: ClassVar[tuple[Contract, ...]] = ()
    concurrency: ClassVar[int] = 64
    capacity: ClassVar[int] = 1024
    version: ClassVar[str] = "0"
    definition: ClassVar[Definition]

    name: str
    clock: Clock
    random: Random
    log: logging.Logger
    _database: Database | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.definition = define(cls)

    def attach(self, host: "ServiceHost", database: Database | None) -> None:
        """Gives the service what its node has for it; the runtime calls this before `on_start`."""
        self.name, self.clock, self.random, self.log = host.name, host.clock, host.random, host.log
        self._database = database

    @property
    def db(self) -> Database:
        """The service's own database."""
        if self._database is None:
            raise UsageError(
                f"{type(self).__name__} has no database: give it a folder migrations/, or its node a database for it"
            )
        return self._database

    async def on_start(self, ctx: Context) -> None:
        """Runs before the first message; the database is there. Failing restarts the instance."""

    async def on_stop(self, ctx: Context) -> None:
        """Runs after the last message."""


def define(cls: type[Service]) -> Definition:
    """Checks a service class.

    Raises:
        DefinitionError: naming class, method and remedy.
    """
    contract = getattr(cls, "contract", None)
    if not isinstance(contract, Contract):
        raise DefinitionError(f"{cls.__qualname__}: set `contract = Contract('name')`, the messages that it publishes")
    if not isinstance(cls.calls, tuple) or not all(isinstance(called, Contract) for called in cls.calls):
        raise DefinitionError(
            f"{cls.__qualname__}: calls={cls.calls!r}: expected a tuple of contracts, as calls = (fleet, wallet)"
        )
    for name, value, least in (("concurrency", cls.concurrency, 1), ("capacity", cls.capacity, 0)):
        if not isinstance(value, int) or value < least:
            raise DefinitionError(f"{cls.__qualname__}: {name}={value!r}: expected an integer of at least {least}")
    requests: dict[str, Handler] = {}
    events: dict[str, Handler] = {}
    signals: dict[str, Handler] = {}
    timers: list[Timer] = []
    for name, attribute in inspect.getmembers_static(cls):
        handler = handler_of(cls, name, attribute)
        if isinstance(handler, Timer):
            timers.append(handler)
        elif handler is not None:
            group = {"request": requests, "event": events, "signal": signals}[handler.spec.kind]
            if handler.spec.full_name in group:
                other = group[handler.spec.full_name].name
                raise DefinitionError(
                    f"{cls.__qualname__}: {handler.spec.full_name} is handled twice, by {other} and {name}: keep one"
                )
            group[handler.spec.full_name] = handler
    _check_routes(cls, requests)
    _check_complete(cls, contract, requests)
    return Definition(contract, cls.calls, requests, events, signals, tuple(timers), _migrations(cls))


def _migrations(cls: type[Service]) -> str | None:
    """The folder beside the class's module, or beside that of the service it derives from."""
    for ancestor in cls.__mro__[: cls.__mro__.index(Service)]:
        try:
            folder = os.path.join(os.path.dirname(inspect.getfile(ancestor)), "migrations")
        except (TypeError, OSError):  # defined at a prompt
            continue
        if os.path.isdir(folder):
            return folder
    return None


def _check_complete(cls: type[Service], contract: Contract, requests: dict[str, Handler]) -> None:
    for spec in contract.messages.values():
        if spec.kind == "request" and spec.full_name not in requests:
            raise DefinitionError(
                f"{cls.__qualname__}: nobody handles {spec.full_name}: add `@handles(allow=…) async def …(self, message: {spec.name}, …)`"
            )
    for full_name, handler in requests.items():
        if handler.spec.contract.name != contract.name:
            raise DefinitionError(
                f"{cls.__qualname__}.{handler.name}: {full_name} belongs to the contract {handler.spec.contract.name!r}, not to this service's {contract.name!r}"
            )


def _check_routes(cls: type[Service], requests: dict[str, Handler]) -> None:
    routes: dict[tuple[str, str], str] = {}
    for handler in requests.values():
        if handler.http is None:
            continue
        shape = "/".join("{}" if segment.startswith("{") else segment for segment in handler.http.path.split("/"))
        other = routes.setdefault((handler.http.method, shape), handler.name)
        if other != handler.name:
            raise DefinitionError(
                f"{cls.__qualname__}: {handler.http.method} {handler.http.path} is the route of {other} and {handler.name}: change one"
            )
