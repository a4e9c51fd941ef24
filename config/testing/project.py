"""The project running in a test: its services, in the runtime of production, on a network in memory or on a mosquitto."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config import compose
from config.broker import PrivateBroker
from config.jwks import issuers
from config.load import load
from config.settings import DatabaseSettings, Settings
from config.testing.http import Client, SocketlessGateway, listed
from gateway.service import Gateway
from runtime import CallboardError, Clock, Node, Request, Service, UsageError
from runtime.contract.messages import spec_of
from runtime.issuers import Issuer, IssuerSettings
from runtime.node.factory import Factory
from runtime.sockets import is_listening
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import MovableClock, eventually
from transports.memory import MemoryNetwork, MemoryTransport
from transports.mqtt.settings import MqttSettings

R = TypeVar("R")
S = TypeVar("S", bound=Service)
M = TypeVar("M")

Kind = Literal["memory", "mqtt"]

_ISSUER = "callboard-test"
_LIFETIME = 600
_DRAIN = 1.0


class Project:
    """A running project. `running` makes it, and so does the fixture `project`.

    Attributes:
        nodes: the nodes that host its services: one in memory, or one for each service on a broker.
        client: an HTTP client of its gateway.
        clock: the clock of all nodes.
        messages: the events that were committed and the signals that were published, in order.
    """

    client: Client

    def __init__(self, clock: Clock, scheme: str) -> None:
        self.nodes: list[Node] = []
        self.clock: Clock = clock
        self.messages: list[Any] = []
        self.scheme: str = scheme
        self._key = Ed25519PrivateKey.generate()

    def service(self, cls: type[S]) -> S:
        """Return the running service of a class.

        Raises:
            UsageError: if there is none.
        """
        for node in self.nodes:
            found = node.service(cls)
            if found is not None:
                return found
        raise UsageError(f"{cls.__name__} is not running in this test")

    def published(self, kind: type[M]) -> list[M]:
        """Return the events or signals of one class that were published, in order: `assert project.published(RideStarted)`."""
        return [message for message in self.messages if isinstance(message, kind)]

    async def request(
        self, message: Request[R], *, user: str | None = None, roles: str | Sequence[str] = (), scopes: str | Sequence[str] = ()
    ) -> R:
        """Make a request as another service would, and return its reply.

        Args:
            message: the request.
            user: the id of the user whose token comes with it; None for no user.
            roles: the user's role, or several.
            scopes: the scopes of the token.

        Raises:
            ServiceError: the answer of the service, if it is one.
        """
        token = None if user is None else self.token(user, listed(roles), listed(scopes))
        definitions = [one.service.definition for node in self.nodes for one in node.supervised]
        known = dict.fromkeys(
            (spec_of(type(message)).contract, *(contract for one in definitions for contract in (one.contract, *one.calls)))
        )
        return await self.nodes[-1].client(Gateway.contract.name, tuple(known), token=token).request(message)

    def token(self, user: str, roles: Sequence[str] = (), scopes: Sequence[str] = ()) -> str:
        """Return an access token that every service of the project accepts."""
        now = int(self.clock.timestamp())
        claims = {
            "iss": _ISSUER, "aud": _ISSUER, "sub": user, "roles": list(roles), "scope": " ".join(scopes), "iat": now - 1, "exp": now + _LIFETIME - 1,
        }  # fmt: skip
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": _ISSUER})

    def issuer(self) -> Issuer:
        """Return the issuer of the tokens, which the nodes accept."""
        x = base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw()).decode().rstrip("=")

        async def keys() -> list[dict[str, Any]]:
            return [{"kty": "OKP", "crv": "Ed25519", "kid": _ISSUER, "x": x}]

        return Issuer(IssuerSettings(_ISSUER, _ISSUER, algorithms=("EdDSA",), max_lifetime=_LIFETIME), keys)


@asynccontextmanager
async def running(
    folder: Path,
    *,
    services: Sequence[str] = (),
    fakes: Sequence[type[Service]] = (),
    settings: Mapping[str, str] | None = None,
    transport: Kind = "memory",
    clock: Clock | None = None,
    file: Path | None = None,
) -> AsyncGenerator[Project, None]:
    """Run the project of the working directory until the block ends.

    Args:
        folder: an empty folder for the databases.
        services: the names of the services to run; by default all of them.
        fakes: classes that replace services, such as a `fake`, or a class with `replaced` resources. The replaced services do not run.
        settings: further settings, by the names of their environment variables. Those of the process have no effect.
        transport: `memory` runs all services on one node, `mqtt` each on its own, with a private mosquitto between them.
        clock: the clock of all nodes. A `MovableClock` moves while the block lasts.
        file: the project file, if it is not `callboard.toml` or `pyproject.toml` here.

    Raises:
        CallboardError: if the project cannot run.
    """
    if transport == "mqtt" and isinstance(clock, MovableClock):
        raise UsageError("a movable clock is for transport='memory': the time of a broker cannot be moved")
    loaded = load(file, dict(settings or {})).settings
    replace = msgspec.structs.replace
    chosen = replace(
        loaded,
        database=DatabaseSettings(str(folder), durable=False),
        node=replace(loaded.node, drain_timeout=min(loaded.node.drain_timeout, _DRAIN)),
    )
    project = Project(clock or Clock(), chosen.identity.scheme)
    gateway = SocketlessGateway(replace(chosen.gateway, expects=()), None, chosen.identity, compose.error_renderer(chosen))
    factories = _factories(chosen, services, fakes)
    async with AsyncExitStack() as stack:
        if isinstance(clock, MovableClock):
            await stack.enter_async_context(clock)
        start = _in_memory if transport == "memory" else partial(_on_mosquitto, folder=folder)
        await start(stack, project, chosen, {**factories, gateway.contract.name: lambda: gateway})
        project.client = await stack.enter_async_context(Client(gateway, project.token, project.scheme))
        for node in project.nodes:
            await node.registry.wait_for(*factories)
        yield project


def _factories(settings: Settings, services: Sequence[str], fakes: Sequence[type[Service]]) -> dict[str, Factory]:
    """Return what makes the services and the fakes, by name, in the order of starting."""
    faked: dict[str, Factory] = {fake.contract.name: _faked(settings, fake) for fake in fakes}
    names = [name for name in compose.selected(settings, services) if name not in faked and name != Gateway.contract.name]
    return {**faked, **({name: compose.factory(settings, name) for name in names})}


def _faked(settings: Settings, fake: type[Service]) -> Factory:
    """Return the factory of a class that replaces a service. It gets the settings of that service, if it takes any."""
    return fake if fake.Settings is None else partial(fake, compose.own_settings(settings, fake.contract.name))


def _node(settings: Settings, project: Project, factories: Sequence[Factory], transport: Any) -> Node:
    node = Node(
        list(factories),
        transport,
        name="test",
        databases=SqliteFolder(Path(settings.database.folder), durable=False),
        settings=settings.node,
        clock=project.clock,
        issuers=[*issuers(settings), project.issuer()],
    )
    node.environment.observer = project.messages.append
    project.nodes.append(node)
    return node


async def _in_memory(stack: AsyncExitStack, project: Project, settings: Settings, factories: Mapping[str, Factory]) -> None:
    transport = MemoryTransport(MemoryNetwork(), settings.transport.memory)
    await stack.enter_async_context(_node(settings, project, list(factories.values()), transport))


async def _on_mosquitto(
    stack: AsyncExitStack, project: Project, settings: Settings, factories: Mapping[str, Factory], *, folder: Path
) -> None:
    from transports.mqtt.transport import MqttTransport

    broker = PrivateBroker(folder)
    made = [factory() for factory in factories.values()]
    credentials = broker.prepare([service.definition for service in made], "test")
    await stack.enter_async_context(_broker_running(broker, credentials.url))
    starting: list[Node] = []
    for name, factory in factories.items():
        mqtt = MqttSettings(
            url=credentials.url, namespace=credentials.namespace, username=name, password=credentials.services[name]
        )
        starting.append(_node(settings, project, [factory], MqttTransport(mqtt)))
    await asyncio.gather(*(stack.enter_async_context(node) for node in starting))


@asynccontextmanager
async def _broker_running(broker: PrivateBroker, url: str) -> AsyncGenerator[None, None]:
    """Run a private broker until the block ends."""
    port = int(url.rpartition(":")[2])
    process = await asyncio.create_subprocess_exec(
        *broker.command(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )

    async def listens() -> bool:
        if process.returncode is not None:
            raise CallboardError(f"mosquitto has ended with the status {process.returncode}")
        return await is_listening("127.0.0.1", port)

    try:
        await eventually(listens, "the broker listens")
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
