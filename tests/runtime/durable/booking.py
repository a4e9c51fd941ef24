"""A bookings service that calls a payments service, both with `once` requests: for the tests of idempotency."""

import asyncio
from pathlib import Path
from typing import Any

from runtime import (
    ANYONE,
    SERVICES,
    Clock,
    Context,
    Contract,
    Database,
    Node,
    Overloaded,
    Request,
    Service,
    ServiceError,
    Struct,
    Transaction,
    handles,
)
from runtime.testing import CrashingDatabase, CrashPoints
from tests.databases import databases
from transports.memory import MemoryNetwork, MemoryTransport

payments = Contract("payments")
bookings = Contract("bookings")


class Receipt(Struct):
    number: int


@payments.message
class Pay(Request[Receipt]):
    cents: int
    behaviour: str = ""


@payments.message
class Refund(Request[None]):
    number: int


@payments.message
class Rejected(ServiceError):
    """The payment was rejected."""

    code, status = "rejected", 409
    cents: int


class Ticket(Struct):
    receipt: int


@bookings.message
class Book(Request[Ticket]):
    cents: int
    behaviour: str = ""


@bookings.message
class SoldOut(ServiceError):
    """There are no tickets left."""

    code, status = "sold-out", 410


class Payments(Service):
    """Calls no service, so that the key's row and the effect are written in one transaction."""

    contract = payments
    runs: dict[str, int] = {}  # how many times the handler ran for each behaviour

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute(
                "CREATE TABLE IF NOT EXISTS payments (number INTEGER PRIMARY KEY, cents INT, refunded INT DEFAULT 0)"
            )

    @handles(allow=ANYONE, once=True, raises=(Rejected,))
    async def pay(self, message: Pay, ctx: Context, tx: Transaction) -> Receipt:
        ran = self.runs[message.behaviour] = self.runs.get(message.behaviour, 0) + 1
        rows = await tx.fetch(
            "INSERT INTO payments (number, cents) VALUES ((SELECT coalesce(max(number), 0) + 1 FROM payments), $1) RETURNING number",
            message.cents,
        )
        match message.behaviour:
            case "reject":
                raise Rejected(message.cents)
            case "overloaded at first" if ran == 1:
                raise Overloaded("payments")
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


class Bookings(Service):
    """Calls the payments service, so that a claim is committed before the handler runs."""

    contract = bookings
    calls = (payments,)
    runs: dict[str, int] = {}
    gate: asyncio.Event

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS tickets (receipt INT)")

    @handles(allow=SERVICES, once=True, raises=(SoldOut, Rejected))
    async def book(self, message: Book, ctx: Context, tx: Transaction) -> Ticket:
        ran = self.runs[message.behaviour] = self.runs.get(message.behaviour, 0) + 1
        receipt = await ctx.request(Pay(message.cents))
        ctx.undo(Refund(receipt.number))
        match message.behaviour:
            case "sold out":
                raise SoldOut
            case "overloaded at first" if ran == 1:
                raise Overloaded("bookings")
            case "crash at first" if ran == 1:
                raise RuntimeError("at first")
            case "wait":
                await self.gate.wait()
            case "wait at first" if ran == 1:
                await self.gate.wait()
        await tx.execute("INSERT INTO tickets VALUES ($1)", receipt.number)
        return Ticket(receipt.number)


class BookingServices:
    """Both services, with databases that outlive their nodes.

    Attributes:
        clock: the clock of all nodes that start later.
    """

    def __init__(self, folder: Path, engine: str = "sqlite") -> None:
        self._databases = databases(engine, folder)
        self.crash_points = {"payments": CrashPoints(), "bookings": CrashPoints()}
        self.network = MemoryNetwork()
        self.nodes: list[Node] = []
        self.clock = Clock()

    def database(self, service: str) -> Database:
        return CrashingDatabase(self._databases(service), self.crash_points[service])

    async def start(self, *classes: type[Service]) -> Node:
        """Start a node that hosts the classes; by default, both services."""
        node = Node(classes or (Payments, Bookings), MemoryTransport(self.network), databases=self.database, clock=self.clock)
        await node.__aenter__()
        self.nodes.append(node)
        return node

    async def crash(self) -> None:
        """End all nodes as `kill -9` would."""
        for node in self.nodes:
            transport = node.environment.transport
            assert isinstance(transport, MemoryTransport)
            transport.crash()
            await node.crash()
        self.nodes.clear()

    async def request(
        self, message: Request[Any], key: str, *, node: Node | None = None, caller: str = "test", **options: Any
    ) -> Any:
        """Make a request with an idempotency key, as the gateway does."""
        node = node or self.nodes[-1]
        ctx = node.client(caller, (payments, bookings))
        return await node.caller.request(
            ctx,
            "payments" if isinstance(message, Pay) else "bookings",
            message,
            options.get("timeout"),
            key,
            Bookings.definition.known_error,
        )

    async def rows(self, service: str, sql: str) -> list[Any]:
        database = self._databases(service)
        await database.open()
        try:
            return [next(iter(row.values())) if len(row) == 1 else dict(row) for row in await database.fetch(sql)]
        finally:
            await database.close()

    async def unrefunded_payments(self) -> list[int]:
        """Return the numbers of the payments that were not refunded."""
        return await self.rows("payments", "SELECT number FROM payments WHERE refunded = 0 ORDER BY number")

    async def tickets(self) -> list[int]:
        return await self.rows("bookings", "SELECT receipt FROM tickets ORDER BY receipt")
