"""The one way into a handler: the same cases through every entrance."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    DeadlineExceeded,
    Event,
    HandlerAborted,
    InstanceLost,
    InternalError,
    Node,
    NodeSettings,
    Overloaded,
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
from runtime.testing import eventually
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

CALLED = ("local zero-copy", "local serialized", "network", "gateway local", "gateway remote")
"""Entrances with a caller that waits for a reply."""
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

    @handles(allow=ANYONE, raises=(Declined,))
    async def do(self, message: Do, ctx: Context) -> Done:
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
        return await self._ctx.request(Do(), timeout=timeout)


@asynccontextmanager
async def opened(kind: str, folder: Path, *acts: Act, **settings: Any) -> AsyncGenerator[Entrance, None]:
    """Start the probe with a script, and what is needed to send messages to it."""
    network, script = MemoryNetwork(), Script(kind)
    script.acts.extend(acts)
    chosen = NodeSettings(**settings)
    remote = kind in ("network", "gateway remote")

    def transport() -> MemoryTransport:
        return MemoryTransport(network, MemorySettings(zero_copy=kind == "local zero-copy"))

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


async def leave() -> None:
    raise SystemExit(3)


async def hang() -> None:
    await asyncio.Event().wait()


async def reply_wrongly() -> Any:
    return "a string"


@pytest.mark.parametrize("kind", CALLED)
async def test_the_caller_receives_the_reply(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as entrance:
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("kind", CALLED)
async def test_a_service_error_is_the_answer(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, decline) as entrance:
        with pytest.raises(ServiceError) as raised:
            await entrance.send()
        assert (raised.value.code, raised.value.status) == ("declined", 409)
        if not kind.startswith("gateway"):
            assert raised.value == Declined("no")
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("act", [fail, stray_cancellation])
@pytest.mark.parametrize("kind", CALLED)
async def test_any_other_error_is_an_incident(kind: str, act: Act, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, act) as entrance:
        with pytest.raises(InternalError):
            await entrance.send()
        assert entrance.node.metrics.value("incidents_total", service="probe") == 1
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("act", [decline, fail, stray_cancellation])
@pytest.mark.parametrize("kind", UNATTENDED)
async def test_without_a_caller_the_next_message_is_handled_after_a_failure(kind: str, act: Act, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, act) as entrance:
        await entrance.send()
        await eventually(lambda: not entrance.script.acts, "the first message is handled")
        await entrance.send()
        await eventually(lambda: entrance.script.succeeded, "the next one is handled, too")
        counter = {"signal": "signals_failed_total", "event": "dead_letters_total"}.get(kind, "instance_restarts_total")
        labels = {"service": "probe", "publisher": "source"} if kind == "event" else {"service": "probe"}
        await eventually(lambda: entrance.node.metrics.value(counter, **labels) == 1, "the failure is counted once")


@pytest.mark.parametrize("kind", CALLED)
async def test_system_exit_is_an_incident_and_then_stops_the_node(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, leave) as entrance:
        with pytest.raises(InternalError):
            await entrance.send()
        with pytest.raises(HandlerAborted, match=r"SystemExit\(3\)"):
            await entrance.node.wait()
    assert entrance.script.stopped == 1


@pytest.mark.parametrize("kind", ["signal", "event", "timer"])
async def test_system_exit_without_a_caller_stops_the_node_in_an_orderly_way(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, leave) as entrance:
        await entrance.send()
        async with asyncio.timeout(10):
            with pytest.raises(HandlerAborted, match=r"SystemExit\(3\)"):
                await entrance.node.wait()
    assert entrance.script.stopped == 1


async def test_system_exit_in_on_start_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(HandlerAborted, match=r"SystemExit\(3\)"):
        async with opened("on_start", tmp_path, leave):
            pass


@pytest.mark.parametrize("kind", CALLED)
async def test_a_reply_of_the_wrong_class_is_an_incident(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(kind, tmp_path, reply_wrongly) as entrance:
        with pytest.raises(InternalError):
            await entrance.send()
    assert "Probe.do returned 'a string', expected Done" in caplog.text


@pytest.mark.parametrize("kind", CALLED)
async def test_a_handler_is_cancelled_at_its_deadline(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang) as entrance:
        with pytest.raises(DeadlineExceeded):
            await entrance.send(timeout=0.05)
        await eventually(lambda: entrance.script.cancelled == 1, "the handler was cancelled")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("kind", ["signal", "event"])
async def test_a_handler_without_a_caller_has_a_time_limit(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang, request_timeout=0.5) as entrance:
        await entrance.send()
        await eventually(lambda: entrance.script.cancelled == 1, "the handler was cancelled")
        await entrance.send()
        await eventually(lambda: entrance.script.succeeded == 1, "the next message is handled")


@pytest.mark.parametrize("kind", CALLED)
async def test_a_caller_that_leaves_cancels_the_handler(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang) as entrance:
        task = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "the handler runs")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: entrance.script.cancelled == 1, "the handler was cancelled")
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("kind", CALLED)
async def test_a_full_mailbox_answers_overloaded(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang) as entrance:
        running = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "the handler runs")
        with pytest.raises(Overloaded):
            await entrance.send(timeout=1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("kind", ["signal", "event", "timer"])
async def test_a_full_mailbox_without_a_caller(kind: str, tmp_path: Path) -> None:
    """A signal is dropped, an event waits, a tick of a timer is skipped."""
    release = asyncio.Event()

    async def wait() -> Done:
        await release.wait()
        return Done("released")

    async with opened("local serialized", tmp_path, wait) as entrance:
        running = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "a request occupies the mailbox")
        entrance.script.entrance = kind
        other = Entrance(kind, entrance.script, entrance.node, entrance.node.client("test", (probe, source)))
        await other.send()
        metrics = entrance.node.metrics
        if kind == "signal":
            await eventually(lambda: metrics.value("signals_dropped_total", service="probe") == 1, "the signal is dropped")
        elif kind == "event":
            retried = partial(metrics.value, "stream_retries_total", service="probe", publisher="source")
            await eventually(lambda: retried() >= 1, "the event is tried again")
        assert entrance.script.begun == 1
        release.set()
        await running
        if kind == "signal":
            assert entrance.script.begun == 1
        else:
            await eventually(lambda: entrance.script.succeeded >= 2, "the event or a later tick is handled")
            assert metrics.value("instance_restarts_total", service="probe") == 0


@pytest.mark.parametrize("kind", [*CALLED, "signal", "event", "timer"])
async def test_a_stop_lets_the_handler_finish(kind: str, tmp_path: Path) -> None:
    release = asyncio.Event()

    async def finish() -> Done:
        await release.wait()
        return Done("finished")

    async with opened(kind, tmp_path, finish) as entrance:
        sending = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "the handler runs")
        stopping = asyncio.create_task(entrance.node.stop())
        await asyncio.sleep(0.02)
        assert not stopping.done()
        release.set()
        if kind in CALLED:
            assert await sending == Done("finished")
        await stopping
        await asyncio.gather(sending, return_exceptions=True)
    assert (entrance.script.succeeded, entrance.script.cancelled, entrance.script.stopped) == (1, 0, 1)


@pytest.mark.parametrize("kind", [*CALLED, "signal", "event", "timer"])
async def test_a_stop_cancels_a_handler_that_does_not_finish(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang, drain_timeout=0.02) as entrance:
        sending = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "the handler runs")
        stopping = asyncio.create_task(entrance.node.stop())
        if kind in ("network", "gateway remote"):
            with pytest.raises(InstanceLost):
                await sending
        elif kind in CALLED:
            sending.cancel()  # the caller is this task's own process, which stops with the node
        async with asyncio.timeout(10):
            await stopping
        await asyncio.gather(sending, return_exceptions=True)
    assert (entrance.script.cancelled, entrance.script.stopped) == (1, 1)


async def test_a_crash_runs_on_stop_once_for_each_start(tmp_path: Path) -> None:
    async with opened("timer", tmp_path, fail) as entrance:
        await eventually(lambda: entrance.script.stopped == 1, "the crashed instance is stopped")
        await eventually(lambda: entrance.script.succeeded, "the next instance runs")
    assert entrance.script.stopped == 2
