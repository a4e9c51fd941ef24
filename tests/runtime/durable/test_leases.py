"""Timers of instances that share a database: one of them runs each tick, and another takes over when it is lost."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime import ANYONE, Context, Contract, Database, Node, Request, Service, Transaction, every, handles
from runtime.durable.leases import LEASE_SECONDS, TimerLease
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.postgres import PostgresDatabase
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.postgres import shared_postgres
from tests.runtime.durable.test_retention import TwoFacedClock
from transports.memory import MemoryNetwork, MemoryTransport

ticker = Contract("ticker")


@ticker.message
class Write(Request[None]):
    """Makes the ticker a service with a database."""


class Ticker(Service):
    """Counts its ticks.

    Attributes:
        together: how many runs of all instances there were at once.
    """

    contract = ticker
    running = 0
    together = 0

    async def on_start(self, ctx: Context) -> None:
        self.ran = self.each_ran = 0
        self.gate = asyncio.Event()
        self.gate.set()

    @handles(allow=ANYONE)
    async def write(self, message: Write, ctx: Context, tx: Transaction) -> None:
        return

    @every(seconds=0.05)
    async def tick(self, ctx: Context) -> None:
        Ticker.running += 1
        Ticker.together = max(Ticker.together, Ticker.running)
        try:
            self.ran += 1
            await self.gate.wait()
        finally:
            Ticker.running -= 1

    @every(seconds=0.05, each=True)
    async def tick_each(self, ctx: Context) -> None:
        self.each_ran += 1


class Tickers:
    """Instances of the ticker on separate nodes, which share a database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._network = MemoryNetwork()
        self.nodes: list[Node] = []
        Ticker.running = Ticker.together = 0

    async def start(self) -> Node:
        node = Node([Ticker], MemoryTransport(self._network), databases=lambda service: PostgresDatabase(self._url, service))
        await node.__aenter__()
        self.nodes.append(node)
        return node

    async def kill(self, node: Node) -> None:
        self.nodes.remove(node)
        assert isinstance(node.environment.transport, MemoryTransport)
        node.environment.transport.crash()
        await node.crash()

    @property
    def services(self) -> list[Ticker]:
        return [found for node in self.nodes if (found := node.service(Ticker)) is not None]


@pytest.fixture
async def tickers() -> AsyncGenerator[Tickers, None]:
    created = Tickers(shared_postgres().new_database())
    try:
        yield created
    finally:
        for node in created.nodes:
            await node.stop()


async def test_one_instance_runs_each_tick_and_every_instance_what_is_for_each(tickers: Tickers) -> None:
    for _ in range(3):
        await tickers.start()
    await eventually(lambda: sum(one.ran for one in tickers.services) >= 20, "twenty ticks")
    assert Ticker.together == 1, "no two instances run the timer at once"
    await eventually(lambda: all(one.each_ran >= 5 for one in tickers.services), "each instance runs the other timer")


async def test_a_run_that_outlasts_many_ticks_keeps_its_lease(tickers: Tickers) -> None:
    first = await tickers.start()
    await eventually(lambda: tickers.services[0].ran >= 1, "it runs")
    tickers.services[0].gate.clear()
    await eventually(lambda: Ticker.running == 1, "a run goes on")
    second = await tickers.start()
    await eventually(lambda: tickers.services[1].each_ran >= 10, "the other instance is there")
    assert tickers.services[1].ran == 0
    tickers.services[0].gate.set()
    await eventually(lambda: sum(one.ran for one in tickers.services) >= 10, "the ticks go on")
    assert Ticker.together == 1
    assert first.id != second.id


async def test_another_instance_takes_over_from_one_that_is_lost_within_its_run(tickers: Tickers) -> None:
    first = await tickers.start()
    await eventually(lambda: tickers.services[0].ran >= 1, "it runs")
    tickers.services[0].gate.clear()
    await eventually(lambda: Ticker.running == 1, "a run goes on")
    await tickers.start()
    await eventually(lambda: tickers.services[1].each_ran >= 30, "the other instance has seen who runs the timer")
    await tickers.kill(first)
    loop = asyncio.get_running_loop()
    lost_at = loop.time()
    await eventually(lambda: tickers.services[0].ran >= 1, "the other instance runs it")
    assert loop.time() - lost_at < LEASE_SECONDS, "it has not waited for the lease to expire"


async def test_a_run_that_a_stop_waits_for_is_not_taken_over(tickers: Tickers) -> None:
    first = await tickers.start()
    await eventually(lambda: tickers.services[0].ran >= 1, "it runs")
    gate = tickers.services[0].gate
    gate.clear()
    await eventually(lambda: Ticker.running == 1, "a run goes on")
    await tickers.start()
    await eventually(lambda: tickers.services[1].each_ran >= 30, "the other instance has seen who runs the timer")
    tickers.nodes.remove(first)
    stopping = asyncio.create_task(first.stop())
    each = tickers.services[0].each_ran
    await eventually(lambda: tickers.services[0].each_ran >= each + 100, "five seconds have passed")
    assert tickers.services[0].ran == 0
    gate.set()
    await stopping
    await eventually(lambda: tickers.services[0].ran >= 1, "the other instance runs it next")
    assert Ticker.together == 1


async def test_an_instance_that_stops_hands_over_at_once(tickers: Tickers) -> None:
    first = await tickers.start()
    await tickers.start()
    tickers.nodes.remove(first)
    await first.stop()
    before = tickers.services[0].ran
    await eventually(lambda: tickers.services[0].ran > before, "the other instance runs it")


async def test_a_file_needs_no_lease(tmp_path: Path) -> None:
    async with Node([Ticker], MemoryTransport(), databases=SqliteFolder(tmp_path)) as node:
        found = node.service(Ticker)
        assert found is not None
        await eventually(lambda: found.ran >= 3 and found.each_ran >= 3, "both timers run")
        assert await found.db.fetch("SELECT * FROM callboard_timers") == []


# The lease alone, whose past and future the test moves


class Office:
    """Leases of one timer in one database, for instances that are alive as long as the test says."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = TwoFacedClock()
        self.alive: set[str] = set()
        self.missed: list[int] = []

    async def advance(self, seconds: float) -> None:
        """Let time pass: what is stored becomes older."""
        self.clock.uptime += seconds
        await self.database.execute("UPDATE callboard_timers SET due = due - $1, lease = lease - $1", seconds)

    def lease(self, owner: str, seconds: float = 30) -> TimerLease:
        self.alive.add(owner)
        return TimerLease(
            self.database, "timer", seconds, owner=owner, alive=self.alive.__contains__,
            clock=self.clock, missed=self.missed.append, log=logging.getLogger("test"),
        )  # fmt: skip


@pytest.fixture
async def office() -> AsyncGenerator[Office, None]:
    database = PostgresDatabase(shared_postgres().new_database(), "ticker")
    await database.open()
    await migrate(database, SCHEMA, "callboard")
    try:
        yield Office(database)
    finally:
        await database.close()


async def test_a_timer_is_due_after_its_interval_and_then_one_instance_gets_it(office: Office) -> None:
    one, other = office.lease("one"), office.lease("other")
    assert await one.take() == 30, "the first tick comes after an interval, also for the first instance"
    await office.advance(15)
    assert 0 < await other.take() <= 15
    await office.advance(15.1)
    assert await one.take() == 0
    async with one.held():
        assert await other.take() == 1, "it looks again soon"
    assert 20 < await other.take() <= 30, "the next interval begins when the run has ended"
    assert office.missed == []


async def test_ticks_at_which_nobody_ran_are_counted(office: Office) -> None:
    lease = office.lease("one")
    await lease.take()
    await office.advance(30 + 4 * 30 + 1)
    assert await lease.take() == 0
    assert office.missed == [4]


async def test_of_many_instances_that_come_at_once_one_gets_it(office: Office) -> None:
    leases = [office.lease(f"{number}") for number in range(10)]
    await leases[0].take()
    await office.advance(31)
    assert sorted(await asyncio.gather(*(lease.take() for lease in leases))) == [0.0, *[1.0] * 9]


async def test_the_lease_of_an_instance_that_nobody_has_seen_holds_until_it_expires(office: Office) -> None:
    one, other = office.lease("one"), office.lease("other")
    await one.take()
    await office.advance(31)
    assert await one.take() == 0
    office.alive.discard("one")  # perhaps the network has not told of it yet
    assert await other.take() == 1
    await office.advance(LEASE_SECONDS / 2)
    assert await other.take() == 1
    await office.advance(LEASE_SECONDS / 2 + 1)
    assert await other.take() == 0


async def test_the_lease_of_an_instance_that_the_network_has_lost_is_taken_over_if_it_is_not_renewed(office: Office) -> None:
    one, other = office.lease("one"), office.lease("other")
    await one.take()
    await office.advance(31)
    assert await one.take() == 0
    assert await other.take() == 1
    office.alive.discard("one")  # it is stopping, or is cut off, and its run goes on
    for _ in range(5):
        assert await other.take() == 1
        office.clock.uptime += 3
        await office.database.execute("UPDATE callboard_timers SET lease = lease + 0.01")
    assert await other.take() == 1
    office.clock.uptime += 4
    assert await other.take() == 0, "it has not renewed its lease"


@pytest.mark.parametrize("ahead", [3600.0, 365 * 86400.0])
async def test_what_was_stored_while_the_clock_was_ahead_delays_nothing(office: Office, ahead: float) -> None:
    lease = office.lease("one")
    await lease.take()
    await office.advance(-ahead)
    assert await lease.take() == 0
    await office.database.execute("UPDATE callboard_timers SET owner = 'other', lease = lease + $1", ahead)
    office.alive.add("other")
    assert await lease.take() == 0
