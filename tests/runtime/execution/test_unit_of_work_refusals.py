"""Why a transaction is not committed: unawaited work, values that cannot be stored, and its handler's deadline."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    Event,
    InternalError,
    Invalid,
    Node,
    NodeSettings,
    Request,
    Service,
    ServiceError,
    Signal,
    Struct,
    Transaction,
    Violation,
    every,
    handles,
)
from runtime.storage.sqlite import SqliteDatabase, SqliteFolder
from runtime.testing import eventually
from transports.memory import MemorySettings, MemoryTransport

ledger = Contract("ledger")


@ledger.message
class Booked(Event):
    text: str


@ledger.message
class Noticed(Signal):
    text: str


@ledger.message(key="owner")
class Changed(Signal):
    owner: str
    by: float = 0.0


@ledger.message
class Echo(Request[None]):
    pass


@ledger.message
class Forget(Request[None]):
    """Writes a row, and then does something without `await`."""

    what: str


class Line(Struct, rename="camel"):
    amount_cents: int = 0
    at_time: datetime | None = None


@ledger.message
class Book(Request[None]):
    lines: tuple[Line, ...] = ()
    number: int = 0


@ledger.message
class BookOnce(Request[None]):
    number: int


@ledger.message
class Find(Request[int]):
    number: int
    added: int = 0


@ledger.message
class Hang(Request[None]):
    """Writes a row and never returns, not even when it is cancelled at its deadline."""


class Ledger(Service):
    contract = ledger

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def on_start(self, ctx: Context) -> None:
        await self.db.execute("CREATE TABLE lines (cents BIGINT, at TEXT)")

    @handles(allow=ANYONE)
    async def echo(self, message: Echo, ctx: Context) -> None:
        return None

    @handles(allow=ANYONE)
    async def forget(self, message: Forget, ctx: Context, tx: Transaction) -> None:
        made: list[Awaitable[object]] = []
        if message.what != "ctx.request":
            await tx.execute("INSERT INTO lines (cents) VALUES (1)")
        match message.what:
            case "tx.execute":
                made.append(tx.execute("INSERT INTO lines (cents) VALUES (2)"))  # forgotten tx.execute
            case "tx.fetch":
                made.append(tx.fetch("INSERT INTO lines (cents) VALUES (2) RETURNING cents"))  # forgotten tx.fetch
            case "tx.fetch_one":
                made.append(tx.fetch_one("INSERT INTO lines (cents) VALUES (2) RETURNING cents"))  # forgotten tx.fetch_one
            case "tx.publish":
                made.append(tx.publish(Booked("never")))  # forgotten tx.publish
            case "ctx.publish":
                made.append(ctx.publish(Noticed("never")))  # forgotten ctx.publish
            case "self.db.execute":
                made.append(self.db.execute("INSERT INTO lines (cents) VALUES (2)"))  # forgotten self.db.execute
            case "a signal that does not fit":
                await ctx.publish(Changed("me", float("nan")))
            case "a key that is too long":
                await ctx.publish(Changed("k" * 2000))
            case "ctx.request":
                made.append(ctx.request(Echo()))  # forgotten ctx.request
            case _:
                made.append(asyncio.ensure_future(tx.execute("INSERT INTO lines (cents) VALUES (2)")))  # forgotten a task
                await asyncio.sleep(0)

    @handles(allow=ANYONE, http="POST /book")
    async def book(self, message: Book, ctx: Context, tx: Transaction) -> None:
        for line in message.lines:
            await tx.execute("INSERT INTO lines (at, cents) VALUES ($1, $2)", line.at_time, line.amount_cents)
        await tx.execute("INSERT INTO lines (cents) VALUES ($1)", message.number)

    @handles(allow=ANYONE, once=True)
    async def book_once(self, message: BookOnce, ctx: Context, tx: Transaction) -> None:
        await tx.execute("INSERT INTO lines (cents) VALUES ($1)", message.number)

    @handles(allow=ANYONE)
    async def hang(self, message: Hang, ctx: Context, tx: Transaction) -> None:
        await tx.execute("INSERT INTO lines (cents) VALUES (1)")
        while not self.over.is_set():
            try:
                await self.over.wait()
            except asyncio.CancelledError:
                continue

    @handles(allow=ANYONE)
    async def find(self, message: Find, ctx: Context) -> int:
        return len(await self.db.fetch("SELECT cents FROM lines WHERE cents > $1", message.number + message.added))


class HangingTimer(Ledger):
    """Its timer, which has no deadline, never ends its first transaction."""

    ticks = 0

    @every(seconds=0.01)
    async def tidy(self, ctx: Context) -> None:
        self.ticks += 1
        if self.ticks == 1:
            async with self.db.transaction() as tx:
                while True:
                    await tx.execute("INSERT INTO lines (cents) VALUES (1)")
                    await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    folder: Path, cls: type[Ledger] = Ledger, *, zero_copy: bool = False, **settings: Any
) -> AsyncGenerator[tuple[Ledger, Context], None]:
    transport = MemoryTransport(settings=MemorySettings(zero_copy=zero_copy))
    databases = SqliteFolder(folder, durable=False)
    async with Node([cls], transport, databases=databases, settings=NodeSettings(**settings)) as node:
        service = node.service(cls)
        assert service is not None
        yield service, node.client("test", (ledger,))


def line_of(mark: str) -> int:
    return next(
        number for number, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(f"# forgotten {mark}")
    )


@pytest.mark.parametrize(
    "what", ["tx.execute", "tx.fetch", "tx.fetch_one", "tx.publish", "ctx.publish", "ctx.request", "self.db.execute", "a task"]
)
async def test_a_commit_is_refused_while_something_was_not_awaited(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as (service, ctx):
        with pytest.raises(InternalError):
            await ctx.request(Forget(what))
        how = "tx.execute at" if what == "a task" else f"{what} at"
        ended = "has not ended" if what == "a task" else "was never awaited"
        assert f"{how} {Path(__file__).name}:{line_of(what)} {ended} when the transaction was to be committed" in caplog.text
        assert await service.db.fetch("SELECT * FROM lines") == []
        assert await service.db.fetch("SELECT * FROM callboard_stream") == []
        await ctx.request(Book(number=7))
        assert await service.db.fetch("SELECT cents FROM lines") == [{"cents": 7}], "the writer is free"


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("a signal that does not fit", "ledger.Changed: /by: NaN"),
        ("a key that is too long", "ledger.Changed: /owner: a key of 2,000 characters"),
    ],
)
async def test_a_commit_is_refused_with_what_could_not_follow_it(
    what: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as (service, ctx):
        with pytest.raises(InternalError):
            await ctx.request(Forget(what))
        assert reason in caplog.text
        assert await service.db.fetch("SELECT * FROM lines") == []


HUGE = "an integer of 65 bits: expected one of at most 64, from -9223372036854775808 to 9223372036854775807"


@pytest.mark.parametrize("zero_copy", [False, True], ids=["serialized", "zero-copy"])
async def test_a_value_of_the_request_that_cannot_be_stored_is_named_by_its_field(tmp_path: Path, *, zero_copy: bool) -> None:
    async with running(tmp_path, zero_copy=zero_copy) as (service, ctx):
        for request, pointer, detail in (
            (Book(number=2**63), "/number", HUGE),
            (Book((Line(), Line(2**63))), "/lines/1/amountCents", HUGE),
            (BookOnce(2**63), "/number", HUGE),
            (Find(2**63), "/number", HUGE),
        ):
            with pytest.raises(Invalid) as refused:
                await ctx.request(request)
            assert refused.value.violations == (Violation(pointer, detail),)
        assert await service.db.fetch("SELECT * FROM lines") == []


async def test_a_value_that_the_service_made_is_not_blamed_on_the_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as (_, ctx):
        with pytest.raises(InternalError):
            await ctx.request(Find(2**62, 2**62))
        assert f"$1: {HUGE}" in caplog.text


@pytest.mark.parametrize("what", ["never awaited", "left behind"])
async def test_a_commit_of_an_own_transaction_is_refused_alike(what: str, tmp_path: Path) -> None:
    async with running(tmp_path) as (service, _):
        made: list[Awaitable[object]] = []

        async def write() -> None:
            async with service.db.transaction() as tx:
                statement = tx.execute("INSERT INTO lines (cents) VALUES (1)")
                made.append(statement if what == "never awaited" else asyncio.ensure_future(statement))

        with pytest.raises(Exception, match=r"tx\.execute at test_unit_of_work_refusals\.py:\d+ was never awaited"):
            await write()
        await asyncio.gather(*made, return_exceptions=True) if what == "left behind" else None
        assert await service.db.fetch("SELECT * FROM lines") == []


async def test_a_statement_that_was_cancelled_does_not_hold_up_the_commit(tmp_path: Path) -> None:
    async with running(tmp_path) as (service, _), service.db.transaction() as tx:
        await tx.execute("INSERT INTO lines (cents) VALUES (1)")
        never_begun = asyncio.ensure_future(tx.execute("INSERT INTO lines (cents) VALUES (2)"))
        never_begun.cancel()
        await asyncio.wait((never_begun,))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await tx.fetch("SELECT 1")


async def test_a_transaction_is_rolled_back_at_its_handlers_deadline_whatever_the_handler_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as (service, ctx):
        hanging = asyncio.create_task(ctx.request(Hang(), timeout=0.2))
        await eventually(lambda: "BUSY" in repr(sqlite(service).turns), "the handler has the turn")
        await ctx.request(Book(number=7))
        assert await service.db.fetch("SELECT cents FROM lines") == [{"cents": 7}]
        assert "Ledger.hang has held the write transaction for 0." in caplog.text
        service.over.set()
        with pytest.raises(ServiceError):
            await hanging
        assert await service.db.fetch("SELECT cents FROM lines") == [{"cents": 7}]


async def test_a_transaction_without_a_handlers_deadline_is_bounded_by_a_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, HangingTimer, transaction_timeout=0.2) as (service, ctx):
        assert isinstance(service, HangingTimer)
        await eventually(lambda: service.ticks == 1, "the timer has begun")
        await ctx.request(Book(number=7))
        assert await service.db.fetch("SELECT cents FROM lines") == [{"cents": 7}]
        assert "HangingTimer.tidy (test_unit_of_work_refusals.py:" in caplog.text
        await eventually(lambda: service.ticks > 2, "the timer ticks again")


def sqlite(service: Ledger) -> SqliteDatabase:
    assert isinstance(service.db, SqliteDatabase)
    return service.db
