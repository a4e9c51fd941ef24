"""The composition root: build nodes from settings, with their services, transport, and databases."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from config.jwks import issuers
from config.load import FIELDS, Given, Loaded, Setting, current
from config.project import UnknownService, import_class, import_service
from config.settings import ServiceSettings, Settings
from config.values import Field, MissingSetting, SettingsError, Values, fields_of, variable_name
from gateway.console.access import ConsoleSource
from gateway.errors import ErrorRenderer
from gateway.service import Gateway
from runtime import CallboardError, Database, Node, Service, StartError, Struct, Transport, UsageError
from runtime.contract.schema import Schemas
from runtime.network import Address, Manifest
from runtime.node.factory import Factory
from runtime.service.describe import describe
from runtime.service.service import Definition
from runtime.storage.postgres_url import PostgresUrl
from transports.memory import MemoryTransport

if TYPE_CHECKING:
    from runtime.otel import Spans
    from transports.http.transport import HttpTransport
    from transports.mqtt.transport import MqttTransport


class NoProject(CallboardError):
    """There are no services to run here."""


def catalogue(settings: Settings) -> dict[str, type[Service]]:
    """Return the class of every service that can run, by the name of its contract, in the order of starting.

    The gateway comes last because it depends on the other services.

    Raises:
        UnknownService: if the class of a service cannot be found, is not a service, or has another name.
        BrokenService: if its module fails when it is imported.
        DefinitionError: if it is defined wrongly.
    """
    found = {name: cls for name, (_, cls) in _services(settings).items()}
    return {**found, Gateway.contract.name: Gateway}


def _services(settings: Settings) -> dict[str, tuple[str, type[Service]]]:
    """Return the key of each service's entry and its class, by the name of its contract."""
    found: dict[str, tuple[str, type[Service]]] = {}
    for key, entry in settings.services.items():
        listed = ":" in key
        where = "services" if listed else f"services.{key}"
        cls = import_service(entry.class_, where if listed else f"{where}.class")
        name = cls.contract.name
        if name in ("gateway", "runtime"):
            raise UnknownService(f"{where}: {entry.class_!r} has the contract {name!r}, which is Callboard's: rename it")
        if not listed and name.replace("-", "_") != key.replace("-", "_"):
            raise UnknownService(f"{where}: {entry.class_!r} has the contract {name!r}: call this table [services.{name}]")
        if name in found and found[name][1] is cls:
            continue  # the file and the environment name the same class
        if name in found:
            raise UnknownService(
                f"{where}: {entry.class_!r} has the contract {name!r}, which another service already uses: choose another name"
            )
        found[name] = key, cls
    names = {name.replace("-", "_") for name in found}
    for entry in settings.services.values():
        for variable, (name, *_) in entry.settings.candidates.items() if isinstance(entry.settings, Given) else ():
            if name not in names:
                raise SettingsError(f"{variable}: unknown setting: there is neither a section nor a service {name}")
    return found


def selected(settings: Settings, names: Sequence[str]) -> dict[str, type[Service]]:
    """Return the classes of the named services in the order of starting, or of all services if no name is given.

    Raises:
        NoProject: if the settings name no services, and no name is given or one of them is not the gateway's.
        UnknownService: if no service has one of the names.
    """
    known = catalogue(settings)
    if not settings.services and list(names) != [Gateway.contract.name]:
        raise NoProject(
            f"no project here: nothing in {Path.cwd()} lists services (callboard.toml, as [services.rides] with "
            'class = "rides.service:Rides"): begin one with `callboard new NAME`, or start in its folder, or in the repository'
        )
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UnknownService(f"no service is called {name!r}: {hint}choose from {', '.join(known)}")
    return {name: cls for name, cls in known.items() if not names or name in names}


def chosen(settings: Settings, names: Sequence[str]) -> dict[str, Factory]:
    """Return factories for the named services in the order of starting, or for all services if no name is given.

    Raises:
        SettingsError: if a setting of such a service is unknown, missing, or has the wrong type.
        CallboardError: like `selected`.
    """
    return {name: factory(settings, name) for name in selected(settings, names)}


def factory(settings: Settings, name: str) -> Factory:
    """Return what makes a service. Raises like `chosen`."""
    cls = catalogue(settings)[name]
    if cls is Gateway:
        return _gateway(settings, None)
    own = own_settings(settings, name)
    return cls if own is None else partial(cls, own)


def _gateway(settings: Settings, console: ConsoleSource | None) -> Factory:
    owners = Path(settings.database.folder) / "gateway.routes.json"
    return partial(Gateway, settings.gateway, owners, settings.identity, error_renderer(settings), console=console)


def error_renderer(settings: Settings) -> ErrorRenderer | None:
    """Return what makes the bodies of responses to errors; None for problem documents.

    Raises:
        CallboardError: if the class cannot be found, cannot be made without arguments, or does not say what it returns.
    """
    path = settings.gateway.errors
    if not path:
        return None
    setting = "gateway.errors"
    cls = import_class(path, setting, ErrorRenderer)
    try:
        made: ErrorRenderer = cls()
    except TypeError as error:
        raise CallboardError(
            f"{setting}: {path!r}: {error}: expected a class that is made without arguments, with a method render"
        ) from None
    made.schema(Schemas("errors"))
    return made


def own_values(settings: Settings, name: str) -> Values | None:
    """Return what is set of a service's own settings, or None if they were made in Python."""
    key, cls = _services(settings)[name]
    own = settings.services[key].settings
    given = Given(key) if own is None else own
    return given.values(name, cls.Settings) if isinstance(given, Given) else None


def own_settings(settings: Settings, name: str) -> Any:
    """Return the own settings of a service; None if it has none.

    Raises:
        SettingsError: if one is unknown, missing, or has the wrong type.
    """
    values = own_values(settings, name)
    key, cls = _services(settings)[name]
    own = settings.services[key].settings if values is None else values.converted()
    return None if cls.Settings is None else own


def rows(loaded: Loaded, running: Settings | None = None) -> Iterator[Setting]:
    """Yield every setting with its value and source, those of the services included.

    Args:
        loaded: the settings, with where each was set.
        running: those that `callboard dev` made of them. It is the source of what differs.
    """
    settings = loaded.settings
    running = running or settings

    def row(field: Field, given: Any, used: Any, sources: Mapping[str, str], unset: str = "default") -> Setting:
        source = sources.get(field.name, unset) if given == used else "callboard dev"
        return Setting(field.name, used, source, field.secret)

    for field in FIELDS.values():
        if not field.is_section:
            read = attrgetter(field.attribute)
            yield row(field, read(settings), read(running), loaded.sources)
    for key, entry in settings.services.items():
        for field in fields_of(ServiceSettings, f"services.{key}.").values():
            if not field.is_section and field.attribute != "settings":
                value = attrgetter(field.attribute)(entry)
                yield row(field, value, value, loaded.sources)
    for name in catalogue(settings):
        if name == Gateway.contract.name or (values := own_values(settings, name)) is None:
            continue
        try:
            own = values.converted()
        except MissingSetting:
            own = None
        used = own if own is None or running is settings else own_settings(running, name)
        for field in values.fields.values():
            if not field.is_section:
                read = attrgetter(field.attribute)
                value = values.given(field) if own is None else read(own)
                unset = "not set" if field.default is msgspec.NODEFAULT else "default"
                yield row(field, value, value if used is None else read(used), values.sources, unset)


def with_own_settings(settings: Settings, name: str, own: Struct) -> Settings:
    """Return the settings with other ones for a service."""
    key, _ = _services(settings)[name]
    replace = msgspec.structs.replace
    return replace(settings, services={**settings.services, key: replace(settings.services[key], settings=own)})


def replicas(settings: Settings, name: str) -> int:
    """Return in how many processes `callboard up` runs a service."""
    found = _services(settings).get(name)
    return 1 if found is None else settings.services[found[0]].replicas


def stateful(settings: Settings, names: Sequence[str]) -> list[str]:
    """Return those of the named services, or of all services, that have a database file, which one process has to itself."""
    chosen = selected(settings, names).items()
    return [name for name, cls in chosen if cls.definition.needs_database and database_url(settings, name) is None]


def node(
    settings: Settings,
    names: Sequence[str] = (),
    *,
    name: str = "node",
    spans: "Spans | None" = None,
    console: ConsoleSource | None = None,
) -> Node:
    """Return a node that hosts the named services, or all services if no name is given.

    Args:
        name: what its id begins with.
        spans: sends what it does to a collector.
        console: what the console shows beside the running system.
    """
    owned = with_route_owners(settings, names)
    factories = chosen(owned, names)
    if Gateway.contract.name in factories:
        factories[Gateway.contract.name] = _gateway(owned, console)
    return Node(
        list(factories.values()),
        transport(settings),
        name=name,
        databases=databases(settings),
        settings=settings.node,
        issuers=issuers(settings),
        spans=spans,
    )


def transport(settings: Settings) -> Transport:
    """Return the transport that the settings select."""
    chosen = settings.transport
    if chosen.kind == "memory":
        return MemoryTransport(settings=chosen.memory)
    if chosen.kind == "http":
        return _http(settings)
    if chosen.kind == "mqtt":
        return _mqtt(settings)
    from transports.http_mqtt import HttpMqttTransport

    return HttpMqttTransport(_http(settings), _mqtt(settings))


def _mqtt(settings: Settings) -> "MqttTransport":
    from transports.mqtt.transport import MqttTransport

    mqtt = settings.transport.mqtt
    return MqttTransport(mqtt, password=current("transport.mqtt.password", mqtt.password))


def _http(settings: Settings) -> "HttpTransport":
    from transports.http.transport import HttpTransport

    http = settings.transport.http
    return HttpTransport(
        http,
        readers=stream_readers(settings),
        key=current("transport.http.key", http.key),
        peer_keys=current("transport.http.peer_keys", http.peer_keys),
    )


def with_route_owners(settings: Settings, names: Sequence[str] = ()) -> Settings:
    """Return the settings with the named services as the owners of the routes that their classes declare.

    These are the services that run beside the gateway, in its process or under the same command. The settings take precedence.
    """
    owners = [
        f"{handler.http.method} {handler.http.path}={name}"
        for name, cls in selected(settings, names).items()
        for handler in cls.definition.requests.values()
        if handler.http is not None
    ]
    replace = msgspec.structs.replace
    return replace(settings, gateway=replace(settings.gateway, owners=(*owners, *settings.gateway.owners)))


def stream_readers(settings: Settings) -> dict[str, set[str]]:
    """Return the services that may read the stream of each service: its subscribers, and the gateway for the console."""
    known = catalogue(settings)
    readers = {name: {Gateway.contract.name} for name in known}
    for name, cls in known.items():
        for event in cls.definition.events:
            readers.setdefault(event.partition(".")[0], set()).add(name)
    return readers


def databases(settings: Settings) -> Callable[[str], Database]:
    """Return a function that returns the database of a service, given the name of the service."""

    def database(service: str) -> Database:
        url = database_url(settings, service)
        if url is not None:
            return _postgres(settings, service, url)
        from runtime.storage.sqlite import SqliteFolder

        file = database_file(settings, service)
        return SqliteFolder(file.parent, durable=settings.database.durable)(file.stem)

    return database


def _postgres(settings: Settings, service: str, url: str) -> Database:
    try:
        from runtime.storage.postgres import PostgresDatabase
    except ImportError as error:
        raise StartError(
            f"the database of {service} is on PostgreSQL, which needs the extra callboard[postgres]: {error}"
        ) from None
    return PostgresDatabase(url, service, pooled=settings.database.pooled)


def database_file(settings: Settings, service: str) -> Path:
    """Return the file of a service's database, if it has one."""
    given = _own_database(settings, service)
    return Path(settings.database.folder) / f"{service}.sqlite" if given is None else Path(given)


def database_url(settings: Settings, service: str) -> str | None:
    """Return the URL of a service's database; None if it is a file.

    Raises:
        SettingsError: if it cannot be one of PostgreSQL. The text does not contain it.
    """
    given = _own_database(settings, service)
    url = settings.database.url if given is None else given if "://" in given else None
    if url is not None:
        try:
            PostgresUrl(url)
        except UsageError as error:
            raise SettingsError(f"{database_variable(settings, service)}: {error}") from None
    return url


def database_variable(settings: Settings, service: str) -> str:
    """Return the variable that says where a service's database is."""
    found = _services(settings).get(service)
    own = None if found is None else found[0]
    if own is None or settings.services[own].database is None:
        return variable_name("database.url")
    return variable_name(f"services.{own}.database")


def _own_database(settings: Settings, service: str) -> str | None:
    found = _services(settings).get(service)
    return None if found is None else settings.services[found[0]].database


def definitions(settings: Settings, names: Sequence[str] = ()) -> list[Definition]:
    """Return the definitions of the named services, or of all services, without making any."""
    return [cls.definition for cls in selected(settings, names).values()]


def expected(settings: Settings, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the services that a gateway has to wait for: the configured ones, or those of the named services that have routes."""
    with_routes = [manifest.service for manifest in manifests(settings, names) if any(info.http for info in manifest.requests)]
    return settings.gateway.expects or tuple(with_routes)


def manifests(settings: Settings, names: Sequence[str] = ()) -> list[Manifest]:
    """Return the manifests that the named services would announce, without making any."""
    return [describe(cls, Address(name, "-"), "-") for name, cls in selected(settings, names).items()]
