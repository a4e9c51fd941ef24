"""Compensations that nobody answers are stored, and made again until the callee answers."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime import SERVICES, Context, Contract, InstanceLost, Overloaded, Request, Service, ServiceError, Transaction, handles
from runtime.durable.compensations import all_compensations
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.topology import TOPOLOGIES, QuickClock, Topology

store = Contract("store")
desk = Contract("desk")


@store.message
class Give(Request[None]):
    """Gives an item back."""

    item: str


@store.message
class NotOurs(ServiceError):
    """The item is not known here."""

    code, status = "not-ours", 404


@desk.message
class Lend(Request[None]):
    """Registers a compensation for each item, in this order, and fails."""

    items: tuple[str, ...]
    hangs: bool = False


@desk.message
class Closed(ServiceError):
    """The desk is closed."""

    code, status = "closed", 409


class Store(Service):
    contract = store
    given: list[str] = []
    keys: list[str | None] = []
    fails: dict[str, list[Exception]] = {}

    @handles(allow=SERVICES, idempotent=True)
    async def give(self, message: Give, ctx: Context) -> None:
        self.keys.append(ctx.idempotency_key)
        if self.fails.get(message.item):
            raise self.fails[message.item].pop(0)
        self.given.append(message.item)


class Desk(Service):
    contract = desk
    calls = (store,)
    hangs = False

    @handles(allow=SERVICES, raises=(Closed,))
    async def lend(self, message: Lend, ctx: Context, tx: Transaction) -> None:
        for item in message.items:
            ctx.undo(Give(item))
        if message.hangs:
            self.hangs = True
            await asyncio.Event().wait()
        raise Closed


@pytest.fixture(params=TOPOLOGIES[1:])
async def topology(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Topology, None]:
    Store.given, Store.keys, Store.fails = [], [], {}
    created = Topology(request.param, tmp_path)
    created.clock = QuickClock()
    try:
        yield created
    finally:
        await created.close()


async def lend(topology: Topology, *items: str) -> None:
    ctx = await topology.client(desk)
    with pytest.raises(Closed):
        await ctx.request(Lend(items))


async def waiting(topology: Topology) -> list[str]:
    return [one.body for one in await all_compensations(topology.service(Desk).db)]


@pytest.mark.parametrize(
    "error", [Overloaded("store"), RuntimeError("a bug that the next version does not have")], ids=["overloaded", "incident"]
)
async def test_one_that_is_not_answered_is_made_again_with_its_key_until_it_is(topology: Topology, error: Exception) -> None:
    await topology.start(Store, Desk)
    Store.fails = {"ball": [error]}
    await lend(topology, "ball", "hat")
    assert Store.given == ["hat"]
    await eventually(lambda: "ball" in Store.given, "the ball is given back")
    assert Store.given == ["hat", "ball"]
    assert len(Store.keys) == 3
    assert len(set(Store.keys)) == 2, "each compensation keeps its idempotency key"
    await eventually(lambda: topology.node_of("desk").metrics.value("compensations_waiting", service="desk") == 0, "none waits")
    assert await waiting(topology) == []


async def test_a_callees_own_answer_ends_it(topology: Topology, caplog: pytest.LogCaptureFixture) -> None:
    await topology.start(Store, Desk)
    Store.fails = {"ball": [Overloaded("store"), NotOurs()], "hat": [NotOurs()]}
    await lend(topology, "ball", "hat")
    assert await waiting(topology) == ['{"item":"ball"}'], "the hat was answered at once"
    with caplog.at_level(logging.WARNING):
        while await waiting(topology):
            await topology.clock.sleep(0.2)
    assert "desk: store.Give was answered with NotOurs" in caplog.text
    assert Store.given == []


async def test_they_survive_a_restart_while_their_callee_is_away(tmp_path: Path) -> None:
    Store.given, Store.keys, Store.fails = [], [], {}
    topology = Topology("separate-nodes-serialized", tmp_path)
    topology.clock = QuickClock()
    try:
        await topology.start(Desk, undo_timeout=0.3)
        await lend(topology, "ball", "hat", "coat")
        assert sorted(await waiting(topology)) == ['{"item":"ball"}', '{"item":"coat"}', '{"item":"hat"}']
        await topology.crash_and_restart("desk")
        await topology.start(Store)
        await eventually(lambda: sorted(Store.given) == ["ball", "coat", "hat"], "all of them are made")
    finally:
        await topology.close()


async def test_a_callee_that_is_away_does_not_hold_up_the_others(tmp_path: Path) -> None:
    Store.given, Store.keys, Store.fails = [], [], {}
    topology = Topology("separate-nodes-serialized", tmp_path)
    try:
        await topology.start(Desk, undo_timeout=0.2)
        db = topology.service(Desk).db
        async with db.transaction() as tx:
            for number in range(250):
                await tx.execute(
                    "INSERT INTO callboard_compensations VALUES ($1, 'gone', 'gone.Give', '{}', $2, 0, '')", f"g{number}", number
                )
            await tx.execute(
                """INSERT INTO callboard_compensations VALUES ('k', 'store', 'store.Give', '{"item":"hat"}', 999, 0, '')"""
            )
        await topology.crash_and_restart("desk")
        await topology.start(Store)
        await eventually(lambda: Store.given == ["hat"], "the hat is given back")
    finally:
        await topology.close()


@pytest.mark.parametrize("away", [True, False], ids=["the callee is away", "it is there"])
async def test_a_stop_stores_those_of_handlers_that_it_cuts_off(tmp_path: Path, away: bool) -> None:
    Store.given, Store.keys, Store.fails = [], [], {}
    topology = Topology("separate-nodes-serialized", tmp_path)
    try:
        await topology.start(Desk, *(() if away else (Store,)), undo_timeout=0.3, drain_timeout=0.2)
        ctx = await topology.client(desk)
        lending = asyncio.create_task(ctx.request(Lend(("ball", "hat"), hangs=True)))
        await eventually(lambda: topology.service(Desk).hangs, "the handler hangs")
        await topology.node_of("desk").stop()
        with pytest.raises(InstanceLost):
            await lending
        if not away:
            assert len(Store.given) <= 2
        database = SqliteFolder(tmp_path, durable=False)("desk")
        await database.open()
        stored = [one.body for one in await all_compensations(database)]
        await database.close()
        assert sorted([*stored, *(f'{{"item":"{item}"}}' for item in Store.given)]) == ['{"item":"ball"}', '{"item":"hat"}']
    finally:
        await topology.close()
