"""The service: a class that owns its state and its database and handles messages."""

import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import msgspec

from runtime.clock import Clock, Random
from runtime.contract.errors import DefinitionError, ServiceError, StartError, UsageError
from runtime.contract.messages import Contract, Struct
from runtime.durable.stream import stream
from runtime.service.context import Context
from runtime.service.handlers import Handler, Timer, handler_of
from runtime.service.host import Host
from runtime.service.parts import Part, part_of
from runtime.storage.database import Database


class Definition(msgspec.Struct, frozen=True, eq=False):
    """What a service class declares, after all checks.

    Attributes:
        cls: the class.
        migrations: the folder of the SQL files of its database, or None.
    """

    cls: type[Any]
    contract: Contract
    calls: tuple[Contract, ...]
    requests: dict[str, Handler]
    events: dict[str, Handler]
    signals: dict[str, Handler]
    timers: tuple[Timer, ...]
    migrations: str | None

    @property
    def publishes_events(self) -> bool:
        """Whether its contract has events."""
        return any(spec.kind == "event" for spec in self.contract.messages.values())

    @property
    def needs_database(self) -> bool:
        """Whether it has migrations, events, or a handler that takes a transaction."""
        handlers = (*self.requests.values(), *self.events.values(), *self.signals.values())
        return self.migrations is not None or self.publishes_events or any(handler.takes_tx for handler in handlers)

    @property
    def needs(self) -> frozenset[str]:
        """The services that it calls, or whose events it subscribes to."""
        return frozenset({contract.name for contract in self.calls} | {name.partition(".")[0] for name in self.events})

    def events_of(self, publisher: str) -> dict[str, type[Any]]:
        """Return the classes of a publisher's events that it takes, by their full names."""
        return {name: handler.spec.cls for name, handler in self.events.items() if handler.spec.contract.name == publisher}

    def known_error(self, contract: str, code: str) -> type[ServiceError] | None:
        """Return an error class of the service's contract or of one that it calls, or None."""
        for known in (self.contract, *self.calls, stream):
            if known.name == contract and code in known.errors:
                return known.errors[code]
        return None


class Service:
    """The base class of services. One instance of the class is one running copy.

    A folder `migrations/` beside the module holds the ordered SQL files of its database.

    Args:
        settings: its settings. By default those that `Settings` has without any being set.

    Attributes:
        contract: the messages and errors that it publishes. Required.
        calls: the contracts whose services it may call.
        concurrency: how many messages it handles at once; 1 makes it a classic actor.
        capacity: how many more messages may wait; a further one is answered with `Overloaded`.
        version: the version that operators see.
        parts: classes that handle some of its messages; see `Part`.
        Settings: the struct of its own settings, if it has any. `callboard.toml` sets them in `[services.NAME.settings]`, and so
            do variables `CALLBOARD_SERVICES__NAME__SETTINGS__…`.
        settings: its settings, or None without `Settings`.
        name: the name of the service.
        clock: the node's clock.
        random: the node's random values.
        log: the service's logger.
    """

    contract: ClassVar[Contract]
    calls: ClassVar[tuple[Contract, ...]] = ()
    concurrency: ClassVar[int] = 64
    capacity: ClassVar[int] = 1024
    version: ClassVar[str] = "0"
    parts: ClassVar[tuple[type[Part[Any]], ...]] = ()
    Settings: ClassVar[type[Struct] | None] = None
    definition: ClassVar[Definition]

    settings: Any = None

    name: str
    clock: Clock
    random: Random
    log: logging.Logger
    _database: Database | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.definition = define(cls)

    def __init__(self, settings: Any = None) -> None:
        if settings is None and self.Settings is not None:
            needed = [field.name for field in msgspec.structs.fields(self.Settings) if field.required]
            if needed:
                name = type(self).__name__
                raise StartError(
                    f"{name} needs settings ({', '.join(needed)}): set them in callboard.toml, or give the node "
                    f"partial({name}, {self.Settings.__name__}(…))"
                )
            settings = self.Settings()
        self.settings = settings

    def attach(self, host: Host, database: Database | None) -> None:
        """Connect the service to its instance. The runtime calls this before `on_start`."""
        self.name, self.clock, self.random, self.log = host.name, host.clock, host.random, host.log
        self._database = database

    def method(self, handler: Handler | Timer) -> Callable[..., Awaitable[Any]]:
        """Return the bound method of a handler: the service's own, or that of a part."""
        owner = self if handler.part is None else part_of(self, handler.part)
        found: Callable[..., Awaitable[Any]] = getattr(owner, handler.name.rpartition(".")[2])
        return found

    @property
    def db(self) -> Database:
        """The service's own database."""
        if self._database is None:
            raise UsageError(
                f"{type(self).__name__} has no database: give it a folder migrations/, or its node a database for it"
            )
        return self._database

    async def on_start(self, ctx: Context) -> None:
        """Run before the first message, with the database open. A failure restarts the instance."""

    async def on_stop(self, ctx: Context) -> None:
        """Run after the last message: exactly once for every `on_start` that was entered, also after a crash."""


def define(cls: type[Service]) -> Definition:
    """Check a service class and return what it declares.

    Raises:
        DefinitionError: if anything is wrong; it names the class, the method, and the remedy.
    """
    contract = getattr(cls, "contract", None)
    if not isinstance(contract, Contract):
        raise DefinitionError(f"{cls.__qualname__}: set `contract = Contract('name')`, the messages that it publishes")
    if not isinstance(cls.calls, tuple) or not all(isinstance(called, Contract) for called in cls.calls):
        raise DefinitionError(
            f"{cls.__qualname__}: calls={cls.calls!r}: expected a tuple of contracts, as calls = (fleet, wallet)"
        )
    settings: Any = cls.Settings
    if settings is not None and not (isinstance(settings, type) and issubclass(settings, Struct)):
        raise DefinitionError(f"{cls.__qualname__}: Settings={settings!r}: expected a subclass of Struct")
    if settings is not None:
        try:
            msgspec.json.Decoder(settings)
        except TypeError as error:
            raise DefinitionError(f"{cls.__qualname__}: {settings.__name__} has a field that cannot be set: {error}") from None
        try:
            inspect.signature(cls).bind(None)
        except TypeError:
            raise DefinitionError(
                f"{cls.__qualname__}: its __init__ takes no settings: def __init__(self, settings: {settings.__name__}) -> None: "
                "super().__init__(settings)"
            ) from None
    for name, value, least in (("concurrency", cls.concurrency, 1), ("capacity", cls.capacity, 0)):
        if not isinstance(value, int) or value < least:
            raise DefinitionError(f"{cls.__qualname__}: {name}={value!r}: expected an integer of at least {least}")
    version: object = cls.version
    if not isinstance(version, str):
        raise DefinitionError(f"{cls.__qualname__}: version={version!r}: expected a text, such as {str(version)!r}")
    requests: dict[str, Handler] = {}
    events: dict[str, Handler] = {}
    signals: dict[str, Handler] = {}
    timers: list[Timer] = []
    for owner, name, attribute in _members(cls):
        try:
            handler = handler_of(owner, name, attribute)
        except DefinitionError as error:
            raise DefinitionError(error.text, attribute) from error
        if handler is not None and owner is not cls:
            handler = msgspec.structs.replace(handler, name=f"{owner.__name__}.{name}", part=owner)
        if isinstance(handler, Timer):
            timers.append(handler)
        elif handler is not None:
            group = {"request": requests, "event": events, "signal": signals}[handler.spec.kind]
            if handler.spec.full_name in group:
                other = group[handler.spec.full_name].name
                raise DefinitionError(
                    f"{cls.__qualname__}: {handler.spec.full_name} is handled twice, by {other} and {handler.name}: keep one"
                )
            group[handler.spec.full_name] = handler
    _check_routes(cls, requests)
    _check_complete(cls, contract, requests)
    return Definition(cls, contract, cls.calls, requests, events, signals, tuple(timers), _migrations(cls))


def _members(cls: type[Service]) -> Iterator[tuple[type[Any], str, Any]]:
    """Yield the attributes of a service class and of its parts: the class, the name, and the attribute."""
    parts: Any = cls.parts
    if not isinstance(parts, tuple) or not all(isinstance(part, type) and issubclass(part, Part) for part in cls.parts):
        raise DefinitionError(
            f"{cls.__qualname__}: parts={parts!r}: expected a tuple of subclasses of Part, as parts = (Reports,)"
        )
    for owner in dict.fromkeys((cls, *cls.parts)):
        yield from ((owner, name, attribute) for name, attribute in inspect.getmembers_static(owner))


def _migrations(cls: type[Service]) -> str | None:
    """Return the folder `migrations` beside the module of the class, or beside that of a base class."""
    for ancestor in cls.__mro__[: cls.__mro__.index(Service)]:
        try:
            folder = os.path.join(os.path.dirname(inspect.getfile(ancestor)), "migrations")
        except (TypeError, OSError):  # the class was defined at a prompt
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
        method, path = handler.http.shape
        other = routes.setdefault((method, path.replace("{*}", "{}")), handler.name)
        if other != handler.name:
            raise DefinitionError(
                f"{cls.__qualname__}: {handler.http.method} {handler.http.path} is the route of {other} and {handler.name}: change one"
            )
