"""The composition root: which services run, on which transport, with which databases."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from config.settings import Settings
from gateway.service import Gateway
from runtime import CallboardError, Database, Node, Service, Transport
from runtime.describe import describe
from runtime.envelope import Address
from runtime.manifest import Manifest
from services.auth.service import Auth
from services.wallet.service import Wallet
from transports.memory import MemoryTransport

CATALOGUE: dict[str, Callable[[Settings], Callable[[], Service]]] = {
    "auth": lambda settings: partial(Auth, settings.auth),
    "wallet": lambda _: Wallet,
    "gateway": lambda settings: partial(Gateway, settings.gateway),
}
"""Every service that can be run, and how it is made from the settings. The gateway comes last: it starts when the others are there."""


class UnknownService(CallboardError):
    """There is no service of this name."""


def chosen(names: Sequence[str]) -> list[str]:
    """The catalogue's names of the services asked for, in starting order; all of them if none is.

    Raises:
        UnknownService: a name is not in the catalogue.
    """
    for name in names:
        if name not in CATALOGUE:
            raise UnknownService(f"no service is called {name!r}: choose from {', '.join(CATALOGUE)}")
    return [name for name in CATALOGUE if not names or name in names]


def node(settings: Settings, names: Sequence[str] = (), *, name: str = "node") -> Node:
    """A node with the services asked for."""
    factories = [CATALOGUE[service](settings) for service in chosen(names)]
    return Node(factories, transport(settings), name=name, databases=databases(settings), settings=settings.node)


def transport(settings: Settings) -> Transport:
    return MemoryTransport(settings=settings.transport.memory)


def databases(settings: Settings) -> Callable[[str], Database]:
    """Gives each service the file of its own."""
    folder = Path(settings.database.folder)

    def database(service: str) -> Database:
        from runtime.storage.sqlite import SqliteDatabase

        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CallboardError(
                f"{folder}: cannot be made ({error.strerror}): choose another folder with CALLBOARD_DATABASE__FOLDER"
            ) from error
        return SqliteDatabase(folder / f"{service}.sqlite", durable=settings.database.durable)

    return database


def manifests(settings: Settings, names: Sequence[str] = ()) -> list[Manifest]:
    """What the services would announce, without running any."""
    services = [CATALOGUE[name](settings)() for name in chosen(names)]
    return [describe(type(service), Address(service.definition.contract.name, "-"), "-") for service in services]
