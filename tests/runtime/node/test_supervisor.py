"""Starting, crashing, restarting and stopping; timers; signals' handlers."""

import asyncio
from pathlib import Path

import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    Crashed,
    DefinitionError,
    Event,
    Node,
    NodeSettings,
    NoInstance,
    NotDelivered,
    Request,
    Service,
    Signal,
    Transaction,
    every,
    handles,
    subscribes,
)
from runtime.storage import DatabaseError
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.topology import Topology
from transports.memory import MemoryNetwork, MemoryTransport

base = Contract("base")
upper = Contract("upper")


@base.message
class Poke(Request[int]):
    seconds: float = 0.0


@upper.message
class Lift(Request[int]):
    pass


@base.message
class Drop(Signal):
    number: int


LOG: list[str] = []


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


class Base(Service):
    contract = base

    def __init__(self) -> None:
        self.pokes = 0

    async def on_start(self, ctx: Context) -> None:
        LOG.append("base started")

    async def on_stop(self, ctx: Context) -> None:
        LOG.append("base stopped")

    @handles(allow=ANYONE)
    async def poke(self, message: Poke, ctx: Context) -> int:
        self.pokes += 1
        await asyncio.sleep(message.seconds)
        return self.pokes


class Upper(Service):
    contract = upper
    calls = (base,)

    async def on_start(self, ctx: Context) -> None:
        LOG.append(f"upper started at {await ctx.request(Poke())}")

    async def on_stop(self, ctx: Context) -> None:
        LOG.append(f"upper stopped at {await ctx.request(Poke())}")

    @handles(allow=ANYONE)
    async def lift(self, message: Lift, ctx: Context) -> int:
        return await ctx.request(Poke(0.05))


async def test_who_is_called_starts_first_and_stops_last() -> None:
    async with Node([Upper, Base], MemoryTransport()):
        assert LOG == ["base started", "upper started at 1"]
    assert LOG == ["base started", "upper started at 1", "upper stopped at 2", "base stopped"]


async def test_stopping_finishes_what_runs(topology: Topology) -> None:
    await topology.play(Base, Upper)
    ctx = await topology.client(upper)
    running = [asyncio.create_task(ctx.request(Lift())) for _ in range(20)]
    base_service = topology.service(Base)
    await eventually(lambda: base_service.pokes >= 21, "all run")
    node = topology.node_of("upper")
    await node.stop()
    assert sorted(await asyncio.gather(*running)) == [21] * 20


async def test_a_stopping_node_refuses_what_is_new(topology: Topology) -> None:
    await topology.play(Base)
    ctx = await topology.client(base)
    running = asyncio.create_task(ctx.request(Poke(0.1)))
    base_service = topology.service(Base)
    await eventually(lambda: base_service.pokes == 1, "it runs")
    stopping = asyncio.create_task(topology.node_of("base").stop())
    await asyncio.sleep(0.01)
    with pytest.raises(NotDelivered):
        await ctx.request(Poke())
    await stopping
    assert await running == 1
    with pytest.raises(NoInstance):
        await ctx.request(Poke())


class Clockwork(Base):
    ticks = 0
    fail_until = 0

    @every(seconds=0.01)
    async def tick(self, ctx: Context) -> None:
        Clockwork.ticks += 1
        assert ctx.remaining == float("inf")
        if Clockwork.ticks <= Clockwork.fail_until:
            raise RuntimeError(f"tick {Clockwork.ticks}")


async def test_a_timer_runs_again_and_again() -> None:
    Clockwork.ticks, Clockwork.fail_until = 0, 0
    async with Node([Clockwork], MemoryTransport()):
        await eventually(lambda: Clockwork.ticks >= 5, "it ticks")


async def test_a_crash_in_a_timer_restarts_that_instance_alone() -> None:
    Clockwork.ticks, Clockwork.fail_until = 0, 2
    async with Node([Clockwork, Upper], MemoryTransport()) as node:
        before = node.inbound.instances["upper"]
        await eventually(lambda: Clockwork.ticks >= 5, "it ticks again")
        assert LOG.count("base started") == 3
        assert node.inbound.instances["upper"] is before
        assert node.metrics.value("instance_restarts_total", service="base") == 2
        assert await node.client("test", (base,)).request(Poke()) == 1, "a fresh instance"


async def test_past_its_budget_the_node_gives_up_and_says_why() -> None:
    Clockwork.ticks, Clockwork.fail_until = 0, 10**9
    async with Node([Clockwork], MemoryTransport(), settings=NodeSettings(restarts=2)) as node:
        with pytest.raises(Crashed, match=r"base crashed 3 times within a minute, the last time by RuntimeError\('tick 3'\)"):
            await node.wait()


class Moody(Base):
    moods = 0

    async def on_start(self, ctx: Context) -> None:
        Moody.moods += 1
        if Moody.moods < 3:
            raise OSError("not yet")


async def test_a_start_that_fails_is_tried_again() -> None:
    Moody.moods = 0
    async with Node([Moody], MemoryTransport()) as node:
        assert Moody.moods == 3
        assert await node.client("test", (base,)).request(Poke()) == 1


async def test_a_start_that_keeps_failing_ends_the_node() -> None:
    Moody.moods = -100
    with pytest.raises(Crashed, match="not yet"):
        async with Node([Moody], MemoryTransport(), settings=NodeSettings(restarts=1)):
            pass


class Wrong(Base):
    async def on_start(self, ctx: Context) -> None:
        raise DefinitionError("cannot be mended by trying again")


async def test_a_start_that_cannot_succeed_is_not_tried_again() -> None:
    with pytest.raises(DefinitionError):
        async with Node([Wrong], MemoryTransport()):
            pass


async def test_a_database_that_is_none_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "keeper.sqlite").write_bytes(b"this is no database, however long it may be" * 100)
    keeper = Contract("keeper")
    cls = type("Keeper", (Keeper,), {"contract": keeper, "__module__": __name__})
    with pytest.raises(DatabaseError, match=r"keeper\.sqlite: cannot be opened: file is not a database"):
        async with Node([cls], MemoryTransport(), databases=SqliteFolder(tmp_path)):
            pass


sounds = Contract("sounds")


@sounds.message
class Bang(Event):
    pass


class Keeper(Service):
    contract = Contract("keeper")

    @subscribes
    async def on_bang(self, event: Bang, ctx: Context, tx: Transaction) -> None: ...


class Listener(Service):
    contract = Contract("listener")
    concurrency = 1
    capacity = 5

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.gate = asyncio.Event()

    @subscribes
    async def on_drop(self, signal: Drop, ctx: Context) -> None:
        assert ctx.identity is None
        if signal.number == 0:
            raise ValueError("a bad drop")
        await self.gate.wait()
        self.heard.append(signal.number)


async def test_a_signal_whose_handler_fails_is_counted_and_gone(topology: Topology) -> None:
    await topology.play(Base, Listener)
    listener = topology.service(Listener)
    listener.gate.set()
    ctx = topology.node_of("base").client("base", ())
    for number in (0, 1):
        await ctx.publish(Drop(number))
    await eventually(lambda: listener.heard == [1], "the next is heard")
    assert topology.node_of("listener").metrics.value("signals_failed_total", service="listener") == 1


async def test_signals_that_find_no_room_are_dropped_and_counted(topology: Topology) -> None:
    await topology.play(Base, Listener)
    listener = topology.service(Listener)
    ctx = topology.node_of("base").client("base", ())
    for number in range(1, 21):
        await ctx.publish(Drop(number))
    metrics = topology.node_of("listener").metrics
    await eventually(lambda: metrics.value("signals_dropped_total", service="listener") == 14, "what does not fit is dropped")
    listener.gate.set()
    await eventually(lambda: listener.heard == [1, 2, 3, 4, 5, 6], "what fits is heard")


async def test_a_node_that_crashes_is_lost_to_the_others() -> None:
    network = MemoryNetwork()
    async with Node([], MemoryTransport(network)) as watcher:
        node = Node([Base], MemoryTransport(network))
        await node.__aenter__()
        await watcher.registry.wait_for("base")
        transport = node.environment.transport
        assert isinstance(transport, MemoryTransport)
        transport.crash()
        await node.crash()
        await eventually(lambda: not watcher.registry.members("base"), "it is gone")
        assert watcher.metrics.value("instances_lost_total", service="base") == 1
