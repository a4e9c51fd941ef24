"""The composition root: build nodes from settings, with their services, transport, and databases."""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from config.load import current
from config.packages import conflict_hint
from config.settings import Settings
from gateway.service import Gateway
from runtime import CallboardError, Database, Node, Service, StartError, Transport
from runtime.network import Address, Manifest
from runtime.node.factory import Factory, make
from runtime.service.describe import describe
from runtime.service.service import Definition
from runtime.source import innermost, missing_variable, place
from services.auth.service import Auth
from services.devices.service import Devices
from services.fleet.service import Fleet
from services.notices.service import Notices
from services.rides.service import Rides
from services.wallet.service import Wallet
from transports.memory import MemoryTransport

if TYPE_CHECKING:
    from transports.http.transport import HttpTransport
    from transports.mqtt.transport import MqttTransport


class UnknownService(CallboardError):
    """A service that does not exist, cannot be found, or has the name of another service."""


class BrokenService(CallboardError):
    """A service whose module fails when it is imported."""


def catalogue(settings: Settings) -> dict[str, Factory]:
    """Return a factory for every service that can run, by the name of its contract.

    The order is the order of starting. The gateway comes last because it depends on the other services.

    Raises:
        UnknownService: if a class named in the setting `services` cannot be found, is not a service, or has a name that is in use.
        BrokenService: if its module fails when it is imported.
        DefinitionError: if it is defined wrongly.
    """
    found: dict[str, Factory] = {
        "auth": partial(Auth, settings.auth),
        "wallet": partial(Wallet, settings.wallet),
        "fleet": partial(Fleet, settings.fleet),
        "rides": Rides,
        "notices": Notices,
        "devices": partial(Devices, settings.devices),
    }
    for path in settings.services:
        cls = _import_service(path)
        name = cls.contract.name
        if name in found or name in ("gateway", "runtime"):
            raise UnknownService(
                f"services: {path!r} has the contract {name!r}, which another service already uses: choose another name"
            )
        found[name] = cls
    found["gateway"] = partial(Gateway, settings.gateway, Path(settings.database.folder) / "gateway.routes.json")
    return found


def _import_service(path: str) -> type[Service]:
    module, colon, name = path.partition(":")
    if not colon:
        raise UnknownService(f"services: {path!r}: expected package.module:Class")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's services are in the working directory
    try:
        found: object = getattr(importlib.import_module(module), name)
    except CallboardError:
        raise
    except (Exception, SystemExit) as error:
        raise _import_error(path, error) from error
    if not isinstance(found, type) or not issubclass(found, Service):
        raise UnknownService(f"services: {path!r} is not a subclass of Service")
    return found


def _import_error(path: str, error: Exception | SystemExit) -> CallboardError:
    """Return the error for a service that cannot be imported: the fault, its place, and the remedy."""
    module, _, name = path.partition(":")
    subject = f"services: {path!r} cannot be imported"
    hint = conflict_hint(error)
    if hint is not None:
        return UnknownService(f"{subject}: {hint}")
    if isinstance(error, ModuleNotFoundError) and error.name is not None and f"{module}.".startswith(f"{error.name}."):
        return UnknownService(
            f"{subject}: there is no module {error.name} in {Path.cwd()} or on the path: correct the setting, or start in the folder that contains {module.partition('.')[0]}"
        )
    if isinstance(error, AttributeError) and error.obj is sys.modules.get(module):
        return UnknownService(f"{subject}: {module} has no {name}: correct the setting")
    missing = missing_variable(error)
    if missing is not None:
        return StartError(f"{subject}: {missing}")
    if isinstance(error, SyntaxError):
        where: str | None = place(error.filename or module, error.lineno or 0)
        return BrokenService(f"{subject}: {where}: {type(error).__name__}: {error.msg}")
    where = innermost(error.__traceback__) or module
    if isinstance(error, SystemExit):
        return BrokenService(
            f"{subject}: {where}: the module ends the process (sys.exit) when it is imported: move that into a function, or below "
            'if __name__ == "__main__"'
        )
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return BrokenService(f"{subject}: {where}: there is no module {error.name}: install its package, or correct the import")
    return BrokenService(f"{subject}: {where}: {type(error).__name__}: {error}")


def chosen(settings: Settings, names: Sequence[str]) -> dict[str, Factory]:
    """Return the factories of the named services in the order of starting, or of all services if no name is given.

    Raises:
        UnknownService: if no service has one of the names.
    """
    known = catalogue(settings)
    for name in names:
        if name not in known:
            raise UnknownService(f"no service is called {name!r}: choose from {', '.join(known)}")
    return {name: factory for name, factory in known.items() if not names or name in names}


def stateful(settings: Settings, names: Sequence[str]) -> list[str]:
    """Return those of the named services, or of all services, that have a database."""
    return [definition.contract.name for definition in definitions(settings, names) if definition.needs_database]


def node(settings: Settings, names: Sequence[str] = (), *, name: str = "node") -> Node:
    """Return a node that hosts the named services, or all services if no name is given."""
    factories = list(chosen(with_route_owners(settings, names), names).values())
    return Node(factories, transport(settings), name=name, databases=databases(settings), settings=settings.node)


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

    These are the services that run beside the gateway, in its process or under the same command. What the settings say counts more.
    """
    owners = [
        f"{handler.http.method} {handler.http.path}={name}"
        for name, factory in chosen(settings, names).items()
        for handler in _class(factory).definition.requests.values()
        if handler.http is not None
    ]
    replace = msgspec.structs.replace
    return replace(settings, gateway=replace(settings.gateway, owners=(*owners, *settings.gateway.owners)))


def stream_readers(settings: Settings) -> dict[str, set[str]]:
    """Return the services that may read the stream of each service: its subscribers, and the gateway for the console."""
    known = {name: _class(factory).definition for name, factory in catalogue(settings).items()}
    readers = {name: {Gateway.contract.name} for name in known}
    for name, definition in known.items():
        for event in definition.events:
            readers.setdefault(event.partition(".")[0], set()).add(name)
    return readers


def _class(factory: Factory) -> type[Service]:
    """Return the class of a service without making one, because that may need settings which this process does not have."""
    found = factory.func if isinstance(factory, partial) else factory
    assert isinstance(found, type)
    return found


def databases(settings: Settings) -> Callable[[str], Database]:
    """Return a function that returns the database of a service, given the name of the service."""

    def database(service: str) -> Database:
        from runtime.storage.sqlite import SqliteFolder

        return SqliteFolder(Path(settings.database.folder), durable=settings.database.durable)(service)

    return database


def definitions(settings: Settings, names: Sequence[str] = ()) -> list[Definition]:
    """Return the definitions of the named services without running them."""
    return [make(factory).definition for factory in chosen(settings, names).values()]


def expected(settings: Settings, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the services that a gateway has to wait for: the configured ones, or those of the named services that have routes."""
    with_routes = [manifest.service for manifest in manifests(settings, names) if any(info.http for info in manifest.requests)]
    return settings.gateway.expects or tuple(with_routes)


def manifests(settings: Settings, names: Sequence[str] = ()) -> list[Manifest]:
    """Return the manifests that the named services would announce, without running them."""
    services = [make(factory) for factory in chosen(settings, names).values()]
    return [describe(type(service), Address(service.definition.contract.name, "-"), "-") for service in services]


def warn_if_hashing_is_weak(node: Node, settings: Settings) -> None:
    """Warn once a node runs whose auth service hashes passwords so cheaply that stolen hashes can be guessed."""
    if settings.auth.hashing.weak and node.service(Auth) is not None:
        node.environment.log.warning(
            "auth.hashing is so cheap that stolen hashes can be guessed quickly: remove it for the default cost"
        )
