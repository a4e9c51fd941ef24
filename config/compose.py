"""The composition root: which services run, on which transport, with which databases."""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from config.settings import Settings
from gateway.service import Gateway
from runtime import CallboardError, Database, Node, Service, Transport
from runtime.network import Address, Manifest
from runtime.service.describe import describe
from runtime.service.service import Definition
from services.auth.service import Auth
from services.devices.service import Devices
from services.fleet.service import Fleet
from services.notices.service import Notices
from services.rides.service import Rides
from services.wallet.service import Wallet
from transports.memory import MemoryTransport

Factory = Callable[[], Service]


class UnknownService(CallboardError):
    """There is no service of this name."""


def catalogue(settings: Settings) -> dict[str, Factory]:
    """Every service that can be run, by its contract's name; the gateway last, for it starts when the others are there.

    Raises:
        UnknownService: a class that `services` names cannot be imported, or is no service.
    """
    found: dict[str, Factory] = {
        "auth": partial(Auth, settings.auth),
        "wallet": partial(Wallet, settings.wallet),
        "fleet": partial(Fleet, settings.fleet),
        "rides": Rides,
        "notices": Notices,
        "devices": partial(Devices, settings.devices),
    }
    for place in settings.services:
        cls = _imported(place)
        name = cls.contract.name
        if name in found or name in ("gateway", "runtime"):
            raise UnknownService(f"services: {place!r} has the contract {name!r}, which is taken: choose another name")
        found[name] = cls
    found["gateway"] = partial(Gateway, settings.gateway)
    return found


def _imported(place: str) -> type[Service]:
    module, colon, name = place.partition(":")
    if not colon:
        raise UnknownService(f"services: {place!r}: expected package.module:Class")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` would: services stand in the working folder
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UnknownService(f"services: {place!r} cannot be imported: {error}") from error
    if not isinstance(found, type) or not issubclass(found, Service):
        raise UnknownService(f"services: {place!r} is no Service class")
    return found


def chosen(settings: Settings, names: Sequence[str]) -> dict[str, Factory]:
    """The services asked for, in starting order; all of them if none is.

    Raises:
        UnknownService: a name is not in the catalogue.
    """
    known = catalogue(settings)
    for name in names:
        if name not in known:
            raise UnknownService(f"no service is called {name!r}: choose from {', '.join(known)}")
    return {name: factory for name, factory in known.items() if not names or name in names}


def node(settings: Settings, names: Sequence[str] = (), *, name: str = "node") -> Node:
    """A node with the services asked for."""
    factories = list(chosen(settings, names).values())
    return Node(factories, transport(settings), name=name, databases=databases(settings), settings=settings.node)


def transport(settings: Settings) -> Transport:
    """The transport that the settings choose."""
    chosen = settings.transport
    if chosen.kind == "memory":
        return MemoryTransport(settings=chosen.memory)
    if chosen.kind == "http":
        from transports.http.transport import HttpTransport

        return HttpTransport(chosen.http)
    from transports.mqtt.transport import MqttTransport

    if chosen.kind == "mqtt":
        return MqttTransport(chosen.mqtt)
    from transports.http.transport import HttpTransport
    from transports.http_mqtt import HttpMqttTransport

    return HttpMqttTransport(HttpTransport(chosen.http), MqttTransport(chosen.mqtt))


def databases(settings: Settings) -> Callable[[str], Database]:
    """Gives each service the database of its own."""

    def database(service: str) -> Database:
        from runtime.storage.sqlite import SqliteFolder

        return SqliteFolder(Path(settings.database.folder), durable=settings.database.durable)(service)

    return database


def definitions(settings: Settings, names: Sequence[str] = ()) -> list[Definition]:
    """What the services declare, without running any."""
    return [factory().definition for factory in chosen(settings, names).values()]


def manifests(settings: Settings, names: Sequence[str] = ()) -> list[Manifest]:
    """What the services would announce, without running any."""
    services = [factory() for factory in chosen(settings, names).values()]
    return [describe(type(service), Address(service.definition.contract.name, "-"), "-") for service in services]
