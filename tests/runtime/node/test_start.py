"""`on_start` waits for the services that it calls. A service that starts late is not a crash, whatever the order of starting."""

import asyncio
import itertools
import os
from pathlib import Path

import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    Crashed,
    Node,
    NodeSettings,
    NoInstance,
    Overloaded,
    Request,
    Service,
    StartError,
    Transaction,
    handles,
)
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.runtime.node.services import LOG, Base, Poke, Upper
from transports.memory import MemoryNetwork, MemoryTransport


async def test_on_start_waits_for_a_service_that_starts_late(caplog: pytest.LogCaptureFixture) -> None:
    network = MemoryNetwork()
    upper = Node([Upper], MemoryTransport(network), settings=NodeSettings(restarts=0))
    starting = asyncio.create_task(upper.__aenter__())
    supervised = upper.supervised[1]
    await eventually(lambda: "[WAITING]" in repr(supervised), "the service waits")
    assert "upper.on_start waits for base, which has no instance yet: start it" in caplog.text
    assert upper.waits_for() == ["upper", "base"]
    async with Node([Base], MemoryTransport(network)):
        await starting
        assert LOG == ["base started", "upper started at 1"]
        assert upper.waits_for() == []
        assert upper.metrics.value("instance_restarts_total", service="upper") == 0
        await upper.stop()


class Impatient(Upper):
    async def on_start(self, ctx: Context) -> None:
        LOG.append("entered")
        LOG.append(f"upper started at {await ctx.request(Poke(), timeout=0.01)}")

    async def on_stop(self, ctx: Context) -> None:
        LOG.append("left")


async def test_a_start_that_ends_with_no_instance_is_repeated_and_not_counted_as_a_crash() -> None:
    network = MemoryNetwork()
    upper = Node([Impatient], MemoryTransport(network), settings=NodeSettings(restarts=0))
    starting = asyncio.create_task(upper.__aenter__())
    await eventually(lambda: LOG.count("entered") >= 2, "on_start has run twice")
    async with Node([Base], MemoryTransport(network)):
        await starting
        assert upper.metrics.value("instance_restarts_total", service="upper") == 0
        assert upper.metrics.value("failed_starts_total", service="upper") == LOG.count("entered") - 1
        await upper.stop()
    assert LOG.count("left") == LOG.count("entered"), "on_stop runs once for every on_start"


async def test_the_wait_is_bounded_by_a_setting() -> None:
    failures: list[NoInstance] = []

    class Tolerant(Upper):
        async def on_start(self, ctx: Context) -> None:
            try:
                await ctx.request(Poke())
            except NoInstance as error:
                failures.append(error)

        async def on_stop(self, ctx: Context) -> None: ...

    async with Node([Tolerant], MemoryTransport(), settings=NodeSettings(start_timeout=0.01)):
        assert failures == [NoInstance("base")]


async def test_a_stop_ends_the_wait() -> None:
    node = Node([Upper], MemoryTransport())
    starting = asyncio.create_task(node.__aenter__())
    await eventually(lambda: "[WAITING]" in repr(node.supervised[1]), "the service waits")
    starting.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(starting, return_exceptions=True)
    assert "[STOPPED]" in repr(node.supervised[1])


async def test_a_dependency_that_cannot_answer_yet_does_not_count_as_a_crash() -> None:
    class Busy(Base):
        refusals = 2

        @handles(allow=ANYONE)
        async def poke(self, message: Poke, ctx: Context) -> int:
            if Busy.refusals:
                Busy.refusals -= 1
                raise Overloaded("database")
            return 1

    async with Node([Busy, Impatient], MemoryTransport(), settings=NodeSettings(restarts=0)) as node:
        assert LOG.count("entered") == 3
        assert node.metrics.value("instance_restarts_total", service="upper") == 0


left = Contract("left")
right = Contract("right")


@left.message
class AskLeft(Request[str]):
    """Asks the left service."""


@right.message
class AskRight(Request[str]):
    """Asks the right service."""


class Left(Service):
    contract = left
    calls = (right,)
    greeting = ""

    async def on_start(self, ctx: Context) -> None:
        self.greeting = await ctx.request(AskRight())

    @handles(allow=ANYONE)
    async def ask(self, message: AskLeft, ctx: Context) -> str:
        return "left"


class Right(Service):
    contract = right
    calls = (left,)

    @handles(allow=ANYONE)
    async def ask(self, message: AskRight, ctx: Context) -> str:
        return "right"

    async def later(self, ctx: Context) -> str:
        return await ctx.request(AskLeft())


@pytest.mark.parametrize("order", list(itertools.permutations([Left, Right])))
async def test_services_that_call_each_other_start_in_one_process(order: tuple[type[Service], ...]) -> None:
    async with asyncio.timeout(5), Node(order, MemoryTransport(), settings=NodeSettings(restarts=0)) as node:
        service = node.service(Left)
        assert service is not None
        assert service.greeting == "right"


async def test_services_that_call_each_other_start_in_two_processes() -> None:
    network = MemoryNetwork()
    async with asyncio.timeout(5):
        nodes = [Node([cls], MemoryTransport(network), settings=NodeSettings(restarts=0)) for cls in (Left, Right)]
        await asyncio.gather(*(node.__aenter__() for node in nodes))
        await asyncio.gather(*(node.stop() for node in nodes))


class Mutual(Right):
    """Starts without the other, if that is not there."""

    async def on_start(self, ctx: Context) -> None:
        try:
            await ctx.request(AskLeft())
        except NoInstance:
            LOG.append("right starts without left")


@pytest.mark.parametrize("order", list(itertools.permutations([Left, Mutual])))
async def test_two_starts_that_wait_for_each_other_are_reported_at_once(
    order: tuple[type[Service], ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(5), Node(order, MemoryTransport(), settings=NodeSettings(restarts=0)):
        assert LOG == ["right starts without left"]
    assert "wait for each other: make one of the requests later" in caplog.text


# What a restart cannot fix


class WithoutTable(Base):
    @handles(allow=ANYONE)
    async def poke(self, message: Poke, ctx: Context, tx: Transaction) -> int:  # type: ignore[override]
        return 1

    async def on_start(self, ctx: Context) -> None:
        await self.db.execute("DELETE FROM greetings")


class WithoutVariable(Base):
    async def on_start(self, ctx: Context) -> None:
        os.environ["NOT_SET_ANYWHERE"]


class WithoutVariableAtInit(Base):
    def __init__(self) -> None:
        os.environ["NOT_SET_ANYWHERE"]


class WithAnotherKeyError(Base):
    async def on_start(self, ctx: Context) -> None:
        raise KeyError("NOT_SET_ANYWHERE")


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        (WithoutTable, "base: no such table: greetings: create it in a file in the service's folder migrations/"),
        (WithoutVariable, r"base: .*test_start\.py:\d+: the environment variable NOT_SET_ANYWHERE is not set: set it"),
        (WithoutVariableAtInit, r"test_start\.py:\d+: the environment variable NOT_SET_ANYWHERE is not set: set it"),
    ],
)
async def test_what_a_restart_cannot_fix_ends_the_start_with_the_remedy(
    service: type[Service], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match=expected):
        async with Node([service], MemoryTransport(), databases=SqliteFolder(tmp_path, durable=False)):
            pass


async def test_any_other_key_error_is_a_crash() -> None:
    with pytest.raises(Crashed):
        async with Node([WithAnotherKeyError], MemoryTransport(), settings=NodeSettings(restarts=0)):
            pass
