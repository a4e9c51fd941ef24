"""Instances that crash are restarted, within a budget; starts that fail are retried if that can help."""

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
    Service,
    Transaction,
    every,
    handles,
    subscribes,
)
from runtime.storage import DatabaseError
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.runtime.node.services import LOG, Base, Poke, Upper, base
from transports.memory import MemoryTransport


class Ticking(Base):
    ticks = 0
    fail_until = 0

    @every(seconds=0.01)
    async def tick(self, ctx: Context) -> None:
        Ticking.ticks += 1
        assert ctx.remaining == float("inf")
        if Ticking.ticks <= Ticking.fail_until:
            raise RuntimeError(f"tick {Ticking.ticks}")


async def test_a_timer_runs_repeatedly() -> None:
    Ticking.ticks, Ticking.fail_until = 0, 0
    async with Node([Ticking], MemoryTransport()):
        await eventually(lambda: Ticking.ticks >= 5, "the timer has run five times")


async def test_a_crash_in_a_timer_restarts_only_that_instance() -> None:
    Ticking.ticks, Ticking.fail_until = 0, 2
    async with Node([Ticking, Upper], MemoryTransport()) as node:
        before = node.inbound.instances["upper"]
        await eventually(lambda: Ticking.ticks >= 5, "the timer runs again")
        assert LOG.count("base started") == 3
        assert node.inbound.instances["upper"] is before
        assert node.metrics.value("instance_restarts_total", service="base") == 2
        assert await node.client("test", (base,)).request(Poke()) == 1, "the instance is a new one"


async def test_a_node_whose_restart_budget_is_spent_stops_and_reports_why() -> None:
    Ticking.ticks, Ticking.fail_until = 0, 10**9
    async with Node([Ticking], MemoryTransport(), settings=NodeSettings(restarts=2)) as node:
        with pytest.raises(Crashed, match=r"base crashed 3 times within a minute, the last time by RuntimeError\('tick 3'\)"):
            await node.wait()


class StartsAtTheThirdAttempt(Base):
    starts = 0

    async def on_start(self, ctx: Context) -> None:
        StartsAtTheThirdAttempt.starts += 1
        if StartsAtTheThirdAttempt.starts < 3:
            raise OSError("not yet")


async def test_a_start_that_fails_is_retried() -> None:
    StartsAtTheThirdAttempt.starts = 0
    async with Node([StartsAtTheThirdAttempt], MemoryTransport()) as node:
        assert StartsAtTheThirdAttempt.starts == 3
        assert await node.client("test", (base,)).request(Poke()) == 1


async def test_a_start_that_keeps_failing_ends_the_node() -> None:
    StartsAtTheThirdAttempt.starts = -100
    with pytest.raises(Crashed, match="not yet"):
        async with Node([StartsAtTheThirdAttempt], MemoryTransport(), settings=NodeSettings(restarts=1)):
            pass


class CannotStart(Base):
    async def on_start(self, ctx: Context) -> None:
        raise DefinitionError("a retry cannot help")


async def test_a_start_that_cannot_succeed_is_not_retried() -> None:
    with pytest.raises(DefinitionError):
        async with Node([CannotStart], MemoryTransport()):
            pass


sounds = Contract("sounds")


@sounds.message
class Bang(Event):
    pass


class Keeper(Service):
    contract = Contract("keeper")

    @subscribes
    async def on_bang(self, event: Bang, ctx: Context, tx: Transaction) -> None: ...


async def test_a_file_that_is_not_a_database_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "keeper.sqlite").write_bytes(b"this is not a database, however long it may be" * 100)
    keeper = Contract("keeper")
    cls = type("Keeper", (Keeper,), {"contract": keeper, "__module__": __name__})
    with pytest.raises(DatabaseError, match=r"keeper\.sqlite: cannot be opened: file is not a database"):
        async with Node([cls], MemoryTransport(), databases=SqliteFolder(tmp_path)):
            pass


async def test_the_state_is_shown_from_the_start_to_the_stop() -> None:
    release, begun = asyncio.Event(), asyncio.Event()

    class Slow(Base):
        async def on_start(self, ctx: Context) -> None:
            begun.set()
            await release.wait()

        @handles(allow=ANYONE)
        async def poke(self, message: Poke, ctx: Context) -> int:
            begun.set()
            await release.wait()
            return 1

    node = Node([Slow], MemoryTransport())
    supervised = node.supervised[1]
    assert "[NEW]" in repr(supervised)
    starting = asyncio.create_task(node.__aenter__())
    await begun.wait()
    assert "[STARTING]" in repr(supervised)
    release.set()
    await starting
    assert "[READY]" in repr(supervised)
    release.clear()
    begun.clear()
    poking = asyncio.create_task(node.client("test", (base,)).request(Poke()))
    await begun.wait()
    stopping = asyncio.create_task(node.stop())
    await eventually(lambda: "[DRAINING]" in repr(supervised), "the instance finishes its running handler")
    release.set()
    assert await poking == 1
    await stopping
    assert "[STOPPED]" in repr(supervised)


async def test_a_stop_during_on_start_runs_on_stop_once_and_does_not_count_as_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()

    class Unready(Base):
        async def on_start(self, ctx: Context) -> None:
            begun.set()
            await asyncio.Event().wait()

        async def on_stop(self, ctx: Context) -> None:
            LOG.append("stopped")
            raise AttributeError("what on_start had not opened yet")

    LOG.clear()
    node = Node([Unready], MemoryTransport())
    starting = asyncio.create_task(node.__aenter__())
    await begun.wait()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert LOG == ["stopped"]
    assert node.metrics.value("instance_restarts_total", service="base") == 0
    assert "Unready.on_stop failed after a start or a run that was cut short" in caplog.text


async def test_the_state_is_shown_between_a_crash_and_the_restart() -> None:
    Ticking.ticks, Ticking.fail_until = 0, 1
    async with Node([Ticking], MemoryTransport()) as node:
        supervised = node.supervised[1]
        await eventually(lambda: "[BACKING_OFF] crashes=1" in repr(supervised), "the instance has crashed")
        await eventually(lambda: "[READY] crashes=1" in repr(supervised), "the next instance runs")
