"""Every entrance into a handler, for tests that run the same cases through all of them."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from runtime import (
    ANYONE,
    Context,
    Contract,
    Event,
    Node,
    NodeSettings,
    Request,
    Service,
    ServiceError,
    Signal,
    Struct,
    Transaction,
    every,
    handles,
    services,
    subscribes,
)
from runtime.node.proxy import Proxy
from runtime.storage.sqlite import SqliteFolder
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

CALLED = (
    "local plain",
    "local plain serialized",
    "local zero-copy",
    "local serialized",
    "network",
    "gateway local",
    "gateway remote",
)
"""Entrances with a caller that waits for a reply. Anyone may make the plain request; the others are authorized."""
UNATTENDED = ("signal", "event", "timer", "on_start")
"""Entrances without a caller."""

source = Contract("source")
probe = Contract("probe")


class Done(Struct):
    """A reply."""

    text: str


@source.message
class Publish(Request[None]):
    """Publish `Happened`."""


@source.message
class Happened(Event):
    """An event for the probe."""


@probe.message
class Do(Request[Done]):
    """A request to the probe."""


@probe.message
class DoPlainly(Request[Done]):
    """The same request, which anyone may make."""


@probe.message
class Ping(Signal):
    """A signal for the probe."""


@probe.message
class Declined(ServiceError):
    """The probe declines."""

    code, status = "declined", 409
    reason: str


Act = Callable[[], Awaitable[Any]]


class Script:
    """What the probe's handler does at each message, in order; afterwards it succeeds."""

    def __init__(self, entrance: str) -> None:
        self.entrance = entrance
        self.acts: deque[Act] = deque()
        self.begun = 0
        self.succeeded = 0
        self.cancelled = 0
        self.stopped = 0

    async def run(self) -> Any:
        self.begun += 1
        act = self.acts.popleft() if self.acts else None
        try:
            reply = Done("ok") if act is None else await act()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.succeeded += 1
        return reply


class Source(Service):
    contract = source

    @handles(allow=ANYONE)
    async def publish(self, message: Publish, ctx: Context, tx: Transaction) -> None:
        await tx.publish(Happened())


class Probe(Service):
    contract = probe
    calls = (source,)
    concurrency = 1
    capacity = 0

    def __init__(self, script: Script) -> None:
        self.script = script

    @handles(allow=services("test"), raises=(Declined,))
    async def do(self, message: Do, ctx: Context) -> Done:
        reply: Done = await self.script.run()
        return reply

    @handles(allow=ANYONE, raises=(Declined,))
    async def do_plainly(self, message: DoPlainly, ctx: Context) -> Done:
        reply: Done = await self.script.run()
        return reply

    @subscribes(allow=services("test"))
    async def on_ping(self, signal: Ping, ctx: Context) -> None:
        await self.script.run()

    @subscribes(attempts=1)
    async def on_happened(self, event: Happened, ctx: Context, tx: Transaction) -> None:
        await self.script.run()

    @every(seconds=0.01)
    async def tick(self, ctx: Context) -> None:
        if self.script.entrance == "timer":
            await self.script.run()

    async def on_start(self, ctx: Context) -> None:
        if self.script.entrance == "on_start":
            await self.script.run()

    async def on_stop(self, ctx: Context) -> None:
        self.script.stopped += 1


class Entrance:
    """One way to send a message to the probe."""

    def __init__(self, kind: str, script: Script, node: Node, ctx: Context) -> None:
        self.kind = kind
        self.script = script
        self.node = node
        self._ctx = ctx

    async def send(self, timeout: float | None = None) -> Any:
        """Send one message, and return the reply where there is a caller."""
        if self.kind == "signal":
            return await self._ctx.publish(Ping())
        if self.kind == "event":
            return await self._ctx.request(Publish())
        if self.kind in ("timer", "on_start"):
            return None  # the node sends these itself
        if self.kind.startswith("gateway"):
            proxy = Proxy(self._ctx)
            ctx = proxy.context("id", None, None, 10 if timeout is None else timeout)
            return msgspec.json.decode(await proxy.ask(ctx, "probe", "probe.Do", b"{}"), type=Done)
        if self.kind.startswith("local plain"):
            if timeout is None:
                return await self._ctx.request(DoPlainly())
            deadline = asyncio.get_running_loop().time() + timeout
            return await msgspec.structs.replace(self._ctx, fixed_deadline=deadline).request(DoPlainly())
        return await self._ctx.request(Do(), timeout=timeout)


@asynccontextmanager
async def opened(kind: str, folder: Path, *acts: Act, **settings: Any) -> AsyncGenerator[Entrance, None]:
    """Start the probe with a script, and what is needed to send messages to it."""
    network, script = MemoryNetwork(), Script(kind)
    script.acts.extend(acts)
    chosen = NodeSettings(**settings)
    remote = kind in ("network", "gateway remote")

    def transport() -> MemoryTransport:
        return MemoryTransport(network, MemorySettings(zero_copy=kind in ("local plain", "local zero-copy")))

    async with AsyncExitStack() as stack:
        node = Node([Source, partial(Probe, script)], transport(), databases=SqliteFolder(folder, durable=False), settings=chosen)
        await stack.enter_async_context(node)
        caller = await stack.enter_async_context(Node([], transport(), name="caller", settings=chosen)) if remote else node
        await caller.registry.wait_for("probe", "source")
        yield Entrance(kind, script, node, caller.client("test", (probe, source)))


async def decline() -> None:
    raise Declined("no")


async def fail() -> None:
    raise ValueError("a mistake")


async def stray_cancellation() -> None:
    raise asyncio.CancelledError


async def cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def fail_in_a_group() -> None:
    raise BaseExceptionGroup("of a task group", [asyncio.CancelledError()])


async def fail_strangely() -> None:
    raise BaseException("no Exception")


async def close_itself() -> None:
    raise GeneratorExit


async def leave() -> None:
    raise SystemExit(3)


async def hang() -> None:
    await asyncio.Event().wait()


async def reply_wrongly() -> Any:
    return "a string"
