"""Two releases of one service, which run at the same time on any transport: for the tests of deployments and roll-backs."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from runtime import (
    ANYONE,
    Context,
    Contract,
    InstanceLost,
    Node,
    NodeSettings,
    Request,
    Service,
    Signal,
    Transport,
    handles,
    subscribes,
)
from runtime.network import Address
from runtime.testing import eventually
from tests.broker import Broker
from tests.http_peers import InterchangeablePeers
from transports.http.transport import HttpTransport
from transports.http_mqtt import HttpMqttTransport
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

TRANSPORTS = ("memory", "zero-copy", "mqtt", "http", "http+mqtt")

old = Contract("shelf")
new = Contract("shelf")
bell = Contract("bell")


@bell.message
class Rung(Signal):
    """Both releases hear it."""


@bell.message
class Struck(Signal):
    """Only the new release hears it."""


@old.message
class Find(Request[str]):
    """Every release has it. The old one serves it at `GET /books/{id}`, the new one at `GET /shelf/books/{title}`."""

    id: str


@old.message
class ListAll(Request[str]):
    """The old release serves `GET /books` by it."""


@old.message
class Discard(Request[str]):
    """The new release has it no more."""


@old.message
class Lend(Request[str]):
    """The old release serves it with status 200, to everybody."""

    title: str


@old.message
class Count(Request[str]):
    """It may not be repeated in the old release."""


class FindNew(Request[str]):
    title: str = ""
    id: str = ""


FindNew.__name__ = FindNew.__qualname__ = "Find"
new.message(FindNew)


@new.message
class ListPage(Request[str]):
    """The new release serves `GET /books` by it."""


@new.message
class Reserve(Request[str]):
    """Only the new release has it."""

    title: str


class LendNew(Request[str]):
    """The new release serves it with status 201."""

    title: str
    weeks: int = 2


LendNew.__name__ = LendNew.__qualname__ = "Lend"
new.message(LendNew)


class CountNew(Request[str]):
    """It may be repeated in the new release."""


CountNew.__name__ = CountNew.__qualname__ = "Count"
new.message(CountNew)


class _Shelf:
    """What the tests look at and set in both releases."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.counted = 0
        self.fails = self.hangs = False


class OldShelf(_Shelf, Service):
    contract = old
    calls = (bell,)
    version = "1.9"

    @handles(allow=ANYONE, http="GET /books/{id}")
    async def find(self, message: Find, ctx: Context) -> str:
        return f"old {message.id}"

    @handles(allow=ANYONE, http="GET /books")
    async def list_all(self, message: ListAll, ctx: Context) -> str:
        return "old list"

    @handles(allow=ANYONE, http="DELETE /books", idempotent=True)
    async def discard(self, message: Discard, ctx: Context) -> str:
        return "old discard"

    @handles(allow=ANYONE, http="POST /loans/{title}", status=200)
    async def lend(self, message: Lend, ctx: Context) -> str:
        return "old loan"

    @handles(allow=ANYONE)
    async def count(self, message: Count, ctx: Context) -> str:
        self.counted += 1
        return "old count"

    @subscribes
    async def on_rung(self, signal: Rung, ctx: Context) -> None:
        self.heard.append("rung")


class NewShelf(_Shelf, Service):
    contract = new
    calls = (bell,)
    version = "1.10"

    @handles(allow=ANYONE, http="GET /shelf/books/{title}")
    async def find(self, message: FindNew, ctx: Context) -> str:
        return f"new {message.title or message.id}"

    @handles(allow=ANYONE, http="GET /books")
    async def list_page(self, message: ListPage, ctx: Context) -> str:
        return "new list"

    @handles(allow=ANYONE, http="POST /reservations/{title}", status=201, idempotent=True)
    async def reserve(self, message: Reserve, ctx: Context) -> str:
        return f"new {message.title}"

    @handles(allow=ANYONE, http="POST /loans/{title}", status=201)
    async def lend(self, message: LendNew, ctx: Context) -> str:
        return "new loan"

    @handles(allow=ANYONE, idempotent=True)
    async def count(self, message: CountNew, ctx: Context) -> str:
        self.counted += 1
        if self.fails:
            raise InstanceLost("shelf")
        if self.hangs:
            await asyncio.Event().wait()
        return "new count"

    @subscribes
    async def on_rung(self, signal: Rung, ctx: Context) -> None:
        self.heard.append("rung")

    @subscribes
    async def on_struck(self, signal: Struck, ctx: Context) -> None:
        self.heard.append("struck")


Release = type[OldShelf] | type[NewShelf]


class Deployment:
    """Instances of both releases, each on a separate node, and the node that calls them."""

    def __init__(self, kind: str, stack: AsyncExitStack, broker: Broker | None) -> None:
        self.kind = kind
        self.caller: Node
        self.shelves: list[OldShelf | NewShelf] = []
        self._nodes: dict[Release, list[Node]] = {OldShelf: [], NewShelf: []}
        self._network = MemoryNetwork()
        self._peers = InterchangeablePeers(("shelf", "caller", "gateway", "auth"), size=4)
        self._broker = broker
        self._stack = stack

    def transport(self) -> Transport:
        if self.kind in ("memory", "zero-copy"):
            return MemoryTransport(self._network, MemorySettings(zero_copy=self.kind == "zero-copy"))
        if self.kind == "http":
            return HttpTransport(self._peers.settings())
        assert self._broker is not None
        mqtt = MqttTransport(MqttSettings(url=self._broker.url))
        return mqtt if self.kind == "mqtt" else HttpMqttTransport(HttpTransport(self._peers.settings()), mqtt)

    async def open(self, *services: Any) -> None:
        """Start the node that calls."""
        node = Node(services, self.transport(), name="caller", settings=NodeSettings(drain_timeout=1))
        self.caller = await self._stack.enter_async_context(node)

    async def start(self, *releases: Release) -> None:
        """Start an instance of each release, one after another, and wait until the caller knows it."""
        for release in releases:
            shelf = release()
            node = Node([lambda shelf=shelf: shelf], self.transport(), settings=NodeSettings(drain_timeout=1))  # type: ignore[misc]
            self._nodes[release].append(await self._stack.enter_async_context(node))
            self.shelves.append(shelf)
            await self._settled()

    async def stop(self, release: Release) -> None:
        """Stop the instances of a release, and wait until the caller has noticed."""
        while self._nodes[release]:
            await self._nodes[release].pop().stop()
        self.shelves = [shelf for shelf in self.shelves if not isinstance(shelf, release)]
        await self._settled()

    async def _settled(self) -> None:
        await self.caller.environment.watch("shelf")
        await eventually(lambda: len(self.caller.registry.members("shelf")) == len(self.shelves), "the caller knows who is live")

    def address_of(self, shelf: OldShelf | NewShelf) -> Address:
        """Return the address of an instance."""
        nodes = (node for nodes in self._nodes.values() for node in nodes)
        return next(Address("shelf", node.id) for node in nodes if node.service(type(shelf)) is shelf)

    def client(self, contract: Contract) -> Context:
        """Return a context in which requests of a release of the contract are made."""
        return self.caller.client("caller", (contract, bell))

    async def answers(self, request: Request[str], contract: Contract, count: int = 12) -> set[str]:
        """Return the different replies to a request that is made several times."""
        ctx = self.client(contract)
        return set(await asyncio.gather(*(ctx.request(request, timeout=5) for _ in range(count))))


@asynccontextmanager
async def deployment(kind: str, folder: Path, *services: Any) -> AsyncGenerator[Deployment, None]:
    """Run a node that calls, over a transport. The services run on it."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(folder)) if "mqtt" in kind else None
        opened = Deployment(kind, stack, broker)
        await opened.open(*services)
        yield opened
