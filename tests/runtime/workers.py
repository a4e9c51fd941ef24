"""Workers that reply with their names: for the tests of which instance receives a request."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from runtime import ANYONE, Context, Contract, Node, Request, Service, ServiceError, handles
from runtime.testing import eventually
from transports.memory import MemoryNetwork, MemoryTransport

worker = Contract("worker")


@worker.message
class WhoReplies(Request[str]):
    """Returns the name of the worker that replies."""

    number: int = 0


@worker.message
class KeyedWhoReplies(Request[str]):
    """The same, with one request at a time per customer."""

    customer: str


@worker.message
class Hang(Request[None]):
    """Waits until the test opens the gate."""


@worker.message
class SlowWhoReplies(Request[str]):
    """Waits until the test opens the gate, then returns the name of the worker."""


class Worker(Service):
    """Replies with its name, unless it is broken.

    Attributes:
        broken: Whether `WhoReplies` fails.
        gate: Lets waiting requests continue.
        hanging: How many requests have started to wait.
    """

    contract = worker
    concurrency = 64
    capacity = 0

    def __init__(self, node_name: str) -> None:
        self.node_name = node_name
        self.broken = False
        self.gate = asyncio.Event()
        self.hanging = 0

    @handles(allow=ANYONE, idempotent=True, http="GET /workers/{number}")
    async def who_replies(self, message: WhoReplies, ctx: Context) -> str:
        if self.broken:
            raise RuntimeError("broken")
        return self.node_name

    @handles(allow=ANYONE, key="customer", http="POST /orders")
    async def keyed_who_replies(self, message: KeyedWhoReplies, ctx: Context) -> str:
        return self.node_name

    @handles(allow=ANYONE, idempotent=True)
    async def slow_who_replies(self, message: SlowWhoReplies, ctx: Context) -> str:
        self.hanging += 1
        await self.gate.wait()
        return self.node_name

    @handles(allow=ANYONE)
    async def hang(self, message: Hang, ctx: Context) -> None:
        self.hanging += 1
        await self.gate.wait()


class Workers:
    """Workers, each on a separate node, and another node that calls them."""

    def __init__(self, workers: dict[str, Worker], nodes: dict[str, Node], caller: Node) -> None:
        self.workers = workers
        self.nodes = nodes
        self.caller = caller
        self.ctx = caller.client("caller", (worker,))

    async def replies(self, count: int) -> Counter[str]:
        """Make `count` requests and count the replies by worker, and the failures by error code."""
        counts: Counter[str] = Counter()
        for number in range(count):
            try:
                counts[await self.ctx.request(WhoReplies(number))] += 1
            except ServiceError as error:
                counts[error.code] += 1
        return counts


@asynccontextmanager
async def start_workers(*names: str) -> AsyncGenerator[Workers, None]:
    network = MemoryNetwork()
    workers = {name: Worker(name) for name in names}
    nodes = {name: Node([partial(workers.__getitem__, name)], MemoryTransport(network), name=name) for name in names}
    async with Node([], MemoryTransport(network), name="caller") as caller:
        for node in nodes.values():
            await node.__aenter__()
        try:
            await eventually(lambda: len(caller.registry.members("worker")) == len(names), "the caller knows all workers")
            yield Workers(workers, nodes, caller)
        finally:
            for each in workers.values():
                each.gate.set()
            for node in nodes.values():
                await node.stop()
