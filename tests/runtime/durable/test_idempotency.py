"""`once`: an effect happens once per idempotency key, however often it is asked, whoever crashes in the middle."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from runtime import (
    ANYONE,
    SERVICES,
    Context,
    Contract,
    Database,
    DeadlineExceeded,
    InProgress,
    InternalError,
    KeyReused,
    Node,
    Overloaded,
    Request,
    Service,
    ServiceError,
    Struct,
    Transaction,
    handles,
)
from runtime.network import Envelope
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import Crash, CrashingDatabase, CrashPoints, eventually
from transports.memory import MemoryNetwork, MemoryTransport

till = Contract("till")
trip = Contract("trip")


class Receipt(Struct):
    number: int


@till.message
class Pay(Request[Receipt]):
    cents: int
    behaviour: str = ""


@till.message
class Refund(Request[None]):
    number: int


@till.message
class Rejected(ServiceError):
    """No."""

    code, status = "rejected", 409
    cents: int


class Ticket(Struct):
    receipt: int


@trip.message
class Book(Request[Ticket]):
    cents: int
    behaviour: str = ""


@trip.message
class SoldOut(ServiceError):
    """Nothing is left."""

    code, status = "sold-out", 410


class Till(Service):
    """Calls nobody: the key's row and the effect are one transaction."""

    contract = till
    behaves: dict[str, int] = {}  # how often each behaviour ran

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute(
                "CREATE TABLE IF NOT EXISTS payments (number INTEGER PRIMARY KEY AUTOINCREMENT, cents INT, refunded INT DEFAULT 0)"
            )

    @handles(allow=ANYONE, once=True, raises=(Rejected,))
    async def pay(self, message: Pay, ctx: Context, tx: Transaction) -> Receipt:
        ran = self.behaves[message.behaviour] = self.behaves.get(message.behaviour, 0) + 1
        rows = await tx.fetch("INSERT INTO payments (cents) VALUES ($1) RETURNING number", message.cents)
        match message.behaviour:
            case "reject":
                raise Rejected(message.cents)
            case "overloaded at first" if ran == 1:
                raise Overloaded("till")
            case "crash at first" if ran == 1:
                raise RuntimeError("at first")
            case "slow":
                await asyncio.sleep(0.1)
            case "hang":
                await asyncio.Event().wait()
        return Receipt(rows[0]["number"])

    @handles(allow=ANYONE, idempotent=True)
    async def refund(self, message: Refund, ctx: Context, tx: Transaction) -> None:
        await tx.execute("UPDATE payments SET refunded = 1 WHERE number = $1", message.number)


class Trip(Service):
    """Calls the till: a claim is committed before the handler runs."""

    contract = trip
    calls = (till,)
    ran: dict[str, int] = {}
    gate: asyncio.Event

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS tickets (receipt INT)")

    @handles(allow=SERVICES, once=True, raises=(SoldOut, Rejected))
    async def book(self, message: Book, ctx: Context, tx: Transaction) -> Ticket:
        ran = self.ran[message.behaviour] = self.ran.get(message.behaviour, 0) + 1
        receipt = await ctx.request(Pay(message.cents))
        ctx.undo(Refund(receipt.number))
        match message.behaviour:
            case "sold out":
                raise SoldOut
            case "overloaded at first" if ran == 1:
                raise Overloaded("trip")
            case "crash at first" if ran == 1:
                raise RuntimeError("at first")
            case "wait":
                await self.gate.wait()
            case "wait at first" if ran == 1:
                await self.gate.wait()
        await tx.execute("INSERT INTO tickets VALUES ($1)", receipt.number)
        return Ticket(receipt.number)


class Theatre:
    """Till and trip in files that outlive their node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.points = {"till": CrashPoints(), "trip": CrashPoints()}
        self.network = MemoryNetwork()
        self.nodes: list[Node] = []

    def database(self, service: str) -> Database:
        inner = SqliteDatabase(self.folder / f"{service}.sqlite", durable=False)
        return CrashingDatabase(inner, self.points[service])

    async def start(self, *services: type[Service]) -> Node:
        node = Node(services or (Till, Trip), MemoryTransport(self.network), databases=self.database)
        await node.__aenter__()
        self.nodes.append(node)
        return node

    async def crash(self) -> None:
        for node in self.nodes:
            transport = node.environment.transport
            assert isinstance(transport, MemoryTransport)
            transport.crash()
            await node.crash()
        self.nodes.clear()

    async def ask(
        self, message: Request[Any], key: str, *, node: Node | None = None, caller: str = "test", **options: Any
    ) -> Any:
        """Makes a request with an idempotency key, as a gateway does."""
        node = node or self.nodes[-1]
        ctx = node.client(caller, (till, trip))
        return await node.caller.request(
            ctx, "till" if isinstance(message, Pay) else "trip", message, options.get("timeout"), key, Trip.definition.known_error
        )

    async def rows(self, service: str, sql: str) -> list[Any]:
        database = SqliteDatabase(self.folder / f"{service}.sqlite")
        await database.open()
        try:
            return [next(iter(row.values())) if len(row) == 1 else dict(row) for row in await database.fetch(sql)]
        finally:
            await database.close()

    async def standing(self) -> list[int]:
        """The payments that were not refunded."""
        return await self.rows("till", "SELECT number FROM payments WHERE refunded = 0 ORDER BY number")

    async def tickets(self) -> list[int]:
        return await self.rows("trip", "SELECT receipt FROM tickets ORDER BY receipt")


@pytest.fixture
async def theatre(tmp_path: Path) -> AsyncGenerator[Theatre, None]:
    made = Theatre(tmp_path)
    Till.behaves, Trip.ran = {}, {}
    Trip.gate = asyncio.Event()
    try:
        yield made
    finally:
        Trip.gate.set()
        for node in made.nodes:
            await node.stop()


# A handler that calls nobody


async def test_the_same_key_gets_the_same_reply_and_one_effect(theatre: Theatre) -> None:
    await theatre.start()
    replies = [await theatre.ask(Pay(5), "k") for _ in range(3)]
    assert replies == [Receipt(1)] * 3
    assert await theatre.rows("till", "SELECT cents FROM payments") == [5]
    assert await theatre.ask(Pay(5), "another") == Receipt(2)


async def test_duplicates_at_the_same_time_wait_for_the_first(theatre: Theatre) -> None:
    await theatre.start()
    replies = await asyncio.gather(*(theatre.ask(Pay(5, "slow"), "k") for _ in range(20)))
    assert replies == [Receipt(1)] * 20
    assert await theatre.rows("till", "SELECT cents FROM payments") == [5]


async def test_the_same_key_with_another_body_is_refused(theatre: Theatre) -> None:
    await theatre.start()
    await theatre.ask(Pay(5), "k")
    with pytest.raises(KeyReused) as caught:
        await theatre.ask(Pay(6), "k")
    assert caught.value.status == 422


async def test_a_key_is_one_per_caller(theatre: Theatre) -> None:
    await theatre.start()
    assert await theatre.ask(Pay(5), "k", caller="one") == Receipt(1)
    assert await theatre.ask(Pay(5), "k", caller="two") == Receipt(2)


async def test_an_answer_that_will_not_change_is_replayed(theatre: Theatre) -> None:
    await theatre.start()
    for _ in range(3):
        with pytest.raises(Rejected) as caught:
            await theatre.ask(Pay(5, "reject"), "k")
        assert caught.value == Rejected(5)
    assert Till.behaves == {"reject": 1}
    assert await theatre.rows("till", "SELECT * FROM payments") == []


@pytest.mark.parametrize(("behaviour", "error"), [("overloaded at first", Overloaded), ("crash at first", InternalError)])
async def test_an_answer_that_may_change_is_not_kept(theatre: Theatre, behaviour: str, error: type[ServiceError]) -> None:
    await theatre.start()
    with pytest.raises(error):
        await theatre.ask(Pay(5, behaviour), "k")
    assert await theatre.ask(Pay(5, behaviour), "k") == Receipt(1)
    assert await theatre.rows("till", "SELECT cents FROM payments") == [5]


async def test_a_cancelled_request_leaves_nothing(theatre: Theatre) -> None:
    await theatre.start()
    with pytest.raises(DeadlineExceeded):
        await theatre.ask(Pay(5, "hang"), "k", timeout=0.05)
    assert await theatre.rows("till", "SELECT * FROM payments") == []
    assert await theatre.rows("till", "SELECT * FROM callboard_once") == []
    assert await theatre.ask(Pay(6), "another") == Receipt(1)


@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_crash_around_the_commit(theatre: Theatre, place: str) -> None:
    await theatre.start()
    theatre.points["till"].arm(place)
    with pytest.raises(Crash):
        await theatre.ask(Pay(5), "k")
    await theatre.crash()
    await theatre.start()
    assert await theatre.ask(Pay(5), "k") == Receipt(1)
    assert await theatre.rows("till", "SELECT cents FROM payments") == [5]


# A handler that calls others


async def test_a_booking_happens_once(theatre: Theatre) -> None:
    await theatre.start()
    replies = await asyncio.gather(*(theatre.ask(Book(5), "k") for _ in range(10)))
    assert replies == [Ticket(1)] * 10
    assert await theatre.standing() == await theatre.tickets() == [1]


async def test_a_booking_with_another_body_is_refused(theatre: Theatre) -> None:
    await theatre.start()
    await theatre.ask(Book(5), "k")
    with pytest.raises(KeyReused):
        await theatre.ask(Book(6), "k")


async def test_what_was_asked_for_is_undone_when_the_booking_fails(theatre: Theatre) -> None:
    await theatre.start()
    for _ in range(2):
        with pytest.raises(SoldOut):
            await theatre.ask(Book(5, "sold out"), "k")
    assert Trip.ran == {"sold out": 1}
    assert await theatre.standing() == await theatre.tickets() == []


@pytest.mark.parametrize(("behaviour", "error"), [("overloaded at first", Overloaded), ("crash at first", InternalError)])
async def test_a_booking_that_may_succeed_later_takes_everything_afresh(
    theatre: Theatre, behaviour: str, error: type[ServiceError]
) -> None:
    await theatre.start()
    with pytest.raises(error):
        await theatre.ask(Book(5, behaviour), "k")
    assert await theatre.standing() == []
    assert await theatre.ask(Book(5, behaviour), "k") == Ticket(2)
    assert await theatre.standing() == await theatre.tickets() == [2]


async def test_a_booking_that_nobody_waits_for_any_more_is_undone(theatre: Theatre) -> None:
    await theatre.start()
    with pytest.raises(DeadlineExceeded):
        await theatre.ask(Book(5, "wait at first"), "k", timeout=0.1)
    assert await theatre.standing() == await theatre.tickets() == []
    assert await theatre.ask(Book(5, "wait at first"), "k") == Ticket(2)
    assert await theatre.standing() == await theatre.tickets() == [2]


async def test_a_duplicate_waits_within_its_deadline_and_then_hears_that_it_is_in_progress(theatre: Theatre) -> None:
    await theatre.start()
    first = asyncio.create_task(theatre.ask(Book(5, "wait"), "k"))
    await eventually(lambda: Trip.ran == {"wait": 1}, "the first runs")
    with pytest.raises((InProgress, DeadlineExceeded)) as caught:
        await theatre.ask(Book(5, "wait"), "k", timeout=0.4)
    assert isinstance(caught.value, InProgress)
    assert caught.value.status == 409
    second = asyncio.create_task(theatre.ask(Book(5, "wait"), "k"))
    Trip.gate.set()
    assert await first == await second == Ticket(1)
    assert Trip.ran == {"wait": 1}


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_crash_around_each_commit_of_a_booking(theatre: Theatre, place: str, skip: int) -> None:
    """The claim's commit, and the last one. What an abandoned attempt took stays taken until it expires."""
    await theatre.start()
    theatre.points["trip"].arm(place, skip=skip)
    with pytest.raises(Crash):
        await theatre.ask(Book(5), "k")
    await theatre.crash()
    await theatre.start()
    ticket = await theatre.ask(Book(5), "k")
    assert await theatre.tickets() == [ticket.receipt]
    assert ticket.receipt in await theatre.standing()
    assert await theatre.ask(Book(5), "k") == ticket


@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_crash_of_the_one_who_is_asked(theatre: Theatre, place: str) -> None:
    await theatre.start()
    theatre.points["till"].arm(place)
    with pytest.raises(Crash):
        await theatre.ask(Book(5), "k")
    await theatre.crash()
    await theatre.start()
    ticket = await theatre.ask(Book(5), "k")
    assert await theatre.tickets() == [ticket.receipt]
    assert ticket.receipt in await theatre.standing()


async def test_a_zombie_can_neither_commit_nor_undo_what_another_attempt_holds(theatre: Theatre) -> None:
    await theatre.start(Till)
    zombie_node = await theatre.start(Trip)
    zombie = asyncio.create_task(theatre.ask(Book(5, "wait at first"), "k", node=zombie_node))
    await eventually(lambda: Trip.ran == {"wait at first": 1}, "the first attempt runs")
    await eventually(lambda: len(theatre.points["till"].reached) >= 4, "and has paid")
    # the network takes it for dead, and it does not know
    transport = zombie_node.environment.transport
    assert isinstance(transport, MemoryTransport)
    other = await theatre.start(Trip)
    for node in theatre.nodes:
        for member in node.registry.members("trip"):
            if member.address.node == zombie_node.id:
                node.inbound.left(member.address, lost=True)
    ticket = await theatre.ask(Book(5, "wait at first"), "k", node=other)
    assert ticket == Ticket(2)
    Trip.gate.set()
    assert await zombie == Ticket(2), "it finds the answer of the attempt that overtook it"
    assert await theatre.standing() == await theatre.tickets() == [2]


async def test_a_retried_call_within_a_claim_has_the_same_key(theatre: Theatre) -> None:
    """The saga's own calls are `once` requests whose keys come from the claim."""
    await theatre.start()
    await theatre.ask(Book(5), "k")
    keys = await theatre.rows("till", "SELECT key FROM callboard_once WHERE request = 'till.Pay'")
    await theatre.ask(Book(5), "k2")
    more = await theatre.rows("till", "SELECT key FROM callboard_once WHERE request = 'till.Pay'")
    assert len(keys) == 1
    assert len(set(more)) == 2
    assert all(len(key) == 32 for key in more)


async def test_answers_are_forgotten_after_a_day(theatre: Theatre) -> None:
    node = await theatre.start(Till)
    await theatre.ask(Pay(5), "k")
    database = theatre.database("till")
    await database.open()
    await database.execute("UPDATE callboard_once SET lease = lease - 24 * 3600 - 1")
    await database.close()
    await node.inbound.instances["till"].prune()
    assert await theatre.ask(Pay(5), "k") == Receipt(2)


def test_an_envelope_shows_neither_body_nor_token() -> None:
    assert (
        repr(Envelope("request", "1", "till.Pay", b"secret", token="secret", caller="x"))
        == "<Envelope request till.Pay 1 from x>"
    )
