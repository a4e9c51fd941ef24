"""Fakes of services, and a clock that timers and timeouts follow."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    Event,
    Node,
    RemoteError,
    Request,
    Service,
    ServiceError,
    Signal,
    Transaction,
    UsageError,
    every,
    handles,
    subscribes,
)
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import FakeService, MovableClock, eventually, fake
from transports.memory import MemoryTransport

bank = Contract("bank")
desk = Contract("desk")


@bank.message
class Balance(Request[int]):
    user: str


@bank.message
class Close(Request[None]):
    user: str


@bank.message
class Closed(Event):
    user: str


@bank.message
class Rumour(Signal):
    text: str


@bank.message
class Unknown(ServiceError):
    """Nobody knows this user."""

    code, status = "unknown", 404
    user: str


@desk.message
class Ask(Request[int]):
    user: str


class Desk(Service):
    contract = desk
    calls = (bank,)

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []
        self.ticks = 0

    @handles(allow=ANYONE)
    async def ask(self, message: Ask, ctx: Context) -> int:
        return await ctx.request(Balance(message.user), timeout=5)

    @subscribes
    async def on_closed(self, event: Closed, ctx: Context, tx: Transaction) -> None:
        self.heard.append(event.user)

    @subscribes
    async def on_rumour(self, signal: Rumour, ctx: Context) -> None:
        self.heard.append(signal.text)

    @every(seconds=60)
    async def tick(self, ctx: Context) -> None:
        self.ticks += 1


async def balance(message: Balance, ctx: Context) -> int:
    if message.user == "nobody":
        raise Unknown(message.user)
    await asyncio.sleep(30 if message.user == "slow" else 0)
    return len(ctx.caller)


def node(folder: Path, bank_class: type[Service], clock: MovableClock | None = None) -> Node:
    return Node([bank_class, Desk], MemoryTransport(), databases=SqliteFolder(folder, durable=False), clock=clock)


async def test_a_fake_answers_records_and_publishes(tmp_path: Path) -> None:
    faked = fake(bank, {Balance: balance})
    async with node(tmp_path, faked) as running:
        ctx = running.client("test", (bank, desk))
        assert await ctx.request(Ask("ada")) == len("desk")
        with pytest.raises(Unknown) as refused:
            await ctx.request(Ask("nobody"))
        assert refused.value.user == "nobody"
        with pytest.raises(RemoteError, match="has no answer"):
            await ctx.request(Close("ada"))
        found = running.service(FakeService)
        assert found is not None
        assert found.received == [Balance("ada"), Balance("nobody"), Close("ada")]
        assert found.received_of(Close) == [Close("ada")]
        await found.publish(Closed("ada"), Rumour("soon"), Closed("bob"))
        desk_service = running.service(Desk)
        assert desk_service is not None
        await eventually(lambda: sorted(desk_service.heard) == ["ada", "bob", "soon"], "both events and the signal came")


async def test_timers_and_timeouts_follow_a_movable_clock(tmp_path: Path) -> None:
    async with MovableClock() as clock, node(tmp_path, fake(bank, {Balance: balance}), clock) as running:
        service = running.service(Desk)
        assert service is not None
        before, day = service.ticks, clock.now()
        await clock.advance(timedelta(minutes=10))
        assert 9 <= service.ticks - before <= 11
        assert timedelta(minutes=10) <= clock.now() - day < timedelta(minutes=11)
        asking = asyncio.create_task(running.client("test", (desk,)).request(Ask("slow")))
        await clock.advance(4)
        assert not asking.done()
        await clock.advance(2)
        with pytest.raises(ServiceError, match="deadline"):
            await asking
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(3600):
            sleeping = asyncio.create_task(asyncio.sleep(1800))
            await clock.advance(1801)
            await sleeping
        assert asyncio.get_running_loop().time() - began >= 1801
    assert asyncio.get_running_loop().time() < began, "the loop has its own time again"


async def test_timers_come_due_in_order_however_far_the_clock_moves() -> None:
    async def nap() -> str:
        async with asyncio.timeout(20):
            await asyncio.sleep(10)
        return "slept"

    async with MovableClock() as outer, MovableClock() as clock:
        napping = asyncio.create_task(nap())
        await asyncio.sleep(0)
        await clock.advance(86_400)
        assert await napping == "slept"
        for seconds in (float("inf"), float("nan")):
            with pytest.raises(UsageError, match="finite"):
                await outer.advance(seconds)


async def test_an_answer_may_have_parameters_of_its_own(tmp_path: Path) -> None:
    async with node(tmp_path, fake(bank, {Balance: lambda message, price=7, *, plus=1: price + plus})) as running:
        assert await running.client("test", (desk,)).request(Ask("ada")) == 8


async def test_a_clock_is_moved_forward_and_within_its_block() -> None:
    clock = MovableClock()
    with pytest.raises(UsageError, match="within"):
        await clock.advance(1)
    async with clock:
        with pytest.raises(UsageError, match="forward"):
            await clock.advance(-1)
