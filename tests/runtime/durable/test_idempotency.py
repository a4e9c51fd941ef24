"""`once`: a request has its effect exactly once per idempotency key, even across crashes."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest

from runtime import DeadlineExceeded, InProgress, InternalError, KeyReused, ManualClock, Node, Overloaded, ServiceError
from runtime.durable.idempotency import RETRY_KEY
from runtime.testing import Crash, eventually
from tests.databases import ENGINES
from tests.runtime.durable.booking import (
    Book,
    Bookings,
    BookingServices,
    Pay,
    Payments,
    Receipt,
    Rejected,
    SoldOut,
    Ticket,
    bookings,
    payments,
)
from transports.memory import MemoryTransport


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each database engine in turn."""
    chosen: str = request.param
    return chosen


@pytest.fixture
async def services(tmp_path: Path, engine: str) -> AsyncGenerator[BookingServices, None]:
    created = BookingServices(tmp_path, engine)
    Payments.runs, Bookings.runs = {}, {}
    Bookings.gate = asyncio.Event()
    try:
        yield created
    finally:
        Bookings.gate.set()
        for node in created.nodes:
            await node.stop()


# A handler that calls no service


async def test_requests_with_one_key_get_the_same_reply_and_have_one_effect(services: BookingServices) -> None:
    await services.start()
    replies = [await services.request(Pay(5), "k") for _ in range(3)]
    assert replies == [Receipt(1)] * 3
    assert await services.rows("payments", "SELECT cents FROM payments") == [5]
    assert await services.request(Pay(5), "another") == Receipt(2)


async def test_concurrent_duplicates_wait_for_the_first_request(services: BookingServices) -> None:
    await services.start()
    replies = await asyncio.gather(*(services.request(Pay(5, "slow"), "k") for _ in range(20)))
    assert replies == [Receipt(1)] * 20
    assert await services.rows("payments", "SELECT cents FROM payments") == [5]


async def test_the_same_key_with_another_body_is_refused(services: BookingServices) -> None:
    await services.start()
    await services.request(Pay(5), "k")
    with pytest.raises(KeyReused) as caught:
        await services.request(Pay(6), "k")
    assert caught.value.status == 422


async def test_each_caller_has_its_own_keys(services: BookingServices) -> None:
    await services.start()
    assert await services.request(Pay(5), "k", caller="one") == Receipt(1)
    assert await services.request(Pay(5), "k", caller="two") == Receipt(2)


async def test_a_final_error_is_replayed(services: BookingServices) -> None:
    await services.start()
    for _ in range(3):
        with pytest.raises(Rejected) as caught:
            await services.request(Pay(5, "reject"), "k")
        assert caught.value == Rejected(5)
    assert Payments.runs == {"reject": 1}
    assert await services.rows("payments", "SELECT * FROM payments") == []


@pytest.mark.parametrize(("behaviour", "error"), [("overloaded at first", Overloaded), ("crash at first", InternalError)])
async def test_an_error_that_may_go_away_is_not_stored(
    services: BookingServices, behaviour: str, error: type[ServiceError]
) -> None:
    await services.start()
    with pytest.raises(error):
        await services.request(Pay(5, behaviour), "k")
    assert await services.request(Pay(5, behaviour), "k") == Receipt(1)
    assert await services.rows("payments", "SELECT cents FROM payments") == [5]


async def test_a_cancelled_request_leaves_no_trace(services: BookingServices) -> None:
    await services.start()
    with pytest.raises(DeadlineExceeded):
        await services.request(Pay(5, "hang"), "k", timeout=0.05)
    assert await services.rows("payments", "SELECT * FROM payments") == []
    assert await services.rows("payments", "SELECT * FROM callboard_once") == []
    assert await services.request(Pay(6), "another") == Receipt(1)


@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_crash_before_or_after_the_commit_leaves_one_effect(services: BookingServices, place: str) -> None:
    await services.start()
    services.crash_points["payments"].arm(place)
    with pytest.raises(Crash):
        await services.request(Pay(5), "k")
    await services.crash()
    await services.start()
    assert await services.request(Pay(5), "k") == Receipt(1)
    assert await services.rows("payments", "SELECT cents FROM payments") == [5]


# A handler that calls another service


async def test_concurrent_bookings_with_one_key_happen_once(services: BookingServices) -> None:
    await services.start()
    replies = await asyncio.gather(*(services.request(Book(5), "k") for _ in range(10)))
    assert replies == [Ticket(1)] * 10
    assert await services.unrefunded_payments() == await services.tickets() == [1]


async def test_a_booking_with_the_same_key_and_another_body_is_refused(services: BookingServices) -> None:
    await services.start()
    await services.request(Book(5), "k")
    with pytest.raises(KeyReused):
        await services.request(Book(6), "k")


async def test_a_booking_that_fails_undoes_its_payment(services: BookingServices) -> None:
    await services.start()
    for _ in range(2):
        with pytest.raises(SoldOut):
            await services.request(Book(5, "sold out"), "k")
    assert Bookings.runs == {"sold out": 1}
    assert await services.unrefunded_payments() == await services.tickets() == []


@pytest.mark.parametrize(("behaviour", "error"), [("overloaded at first", Overloaded), ("crash at first", InternalError)])
async def test_a_booking_that_failed_for_now_makes_a_new_payment_when_retried(
    services: BookingServices, behaviour: str, error: type[ServiceError]
) -> None:
    await services.start()
    with pytest.raises(error):
        await services.request(Book(5, behaviour), "k")
    assert await services.unrefunded_payments() == []
    assert await services.request(Book(5, behaviour), "k") == Ticket(2)
    assert await services.unrefunded_payments() == await services.tickets() == [2]


async def test_a_booking_whose_caller_has_given_up_is_undone(services: BookingServices) -> None:
    await services.start()
    with pytest.raises(DeadlineExceeded):
        await services.request(Book(5, "wait at first"), "k", timeout=0.1)
    assert await services.unrefunded_payments() == await services.tickets() == []
    assert await services.request(Book(5, "wait at first"), "k") == Ticket(2)
    assert await services.unrefunded_payments() == await services.tickets() == [2]


async def test_a_duplicate_waits_until_its_deadline_and_then_raises_in_progress(services: BookingServices) -> None:
    await services.start()
    first = asyncio.create_task(services.request(Book(5, "wait"), "k"))
    await eventually(lambda: Bookings.runs == {"wait": 1}, "the first request is running")
    with pytest.raises((InProgress, DeadlineExceeded)) as caught:
        await services.request(Book(5, "wait"), "k", timeout=0.4)
    assert isinstance(caught.value, InProgress)
    assert caught.value.status == 409
    second = asyncio.create_task(services.request(Book(5, "wait"), "k"))
    Bookings.gate.set()
    assert await first == await second == Ticket(1)
    assert Bookings.runs == {"wait": 1}


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_crash_before_or_after_any_commit_of_a_booking_leaves_one_booking(
    services: BookingServices, place: str, skip: int
) -> None:
    """Crash at the commit of the claim and at the final one. An abandoned attempt keeps its payment until that expires."""
    await services.start()
    services.crash_points["bookings"].arm(place, skip=skip)
    with pytest.raises(Crash):
        await services.request(Book(5), "k")
    await services.crash()
    await services.start()
    ticket = await services.request(Book(5), "k")
    assert await services.tickets() == [ticket.receipt]
    assert ticket.receipt in await services.unrefunded_payments()
    assert await services.request(Book(5), "k") == ticket


@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_crash_of_the_payments_service_leaves_one_booking(services: BookingServices, place: str) -> None:
    await services.start()
    services.crash_points["payments"].arm(place)
    with pytest.raises(Crash):
        await services.request(Book(5), "k")
    await services.crash()
    await services.start()
    ticket = await services.request(Book(5), "k")
    assert await services.tickets() == [ticket.receipt]
    assert ticket.receipt in await services.unrefunded_payments()


async def test_an_overtaken_attempt_neither_commits_nor_undoes_anything_of_the_newer_one(services: BookingServices) -> None:
    await services.start(Payments)
    overtaken_node = await services.start(Bookings)
    overtaken = asyncio.create_task(services.request(Book(5, "wait at first"), "k", node=overtaken_node))
    await eventually(lambda: Bookings.runs == {"wait at first": 1}, "the first attempt is running")
    await eventually(lambda: len(services.crash_points["payments"].reached) >= 4, "the first attempt has paid")
    # the other nodes consider it lost, and it does not know
    transport = overtaken_node.environment.transport
    assert isinstance(transport, MemoryTransport)
    other = await services.start(Bookings)
    for node in services.nodes:
        for member in node.registry.members("bookings"):
            if member.address.node == overtaken_node.id:
                node.inbound.left(member.address, lost=True)
    ticket = await services.request(Book(5, "wait at first"), "k", node=other)
    assert ticket == Ticket(2)
    Bookings.gate.set()
    assert await overtaken == Ticket(2), "it returns the reply of the attempt that overtook it"
    assert await services.unrefunded_payments() == await services.tickets() == [2]


async def test_a_call_within_a_claim_derives_its_key_from_the_claim(services: BookingServices) -> None:
    """The calls of a saga are `once` requests whose keys are derived from its claim."""
    await services.start()
    await services.request(Book(5), "k")
    keys = await services.rows("payments", "SELECT key FROM callboard_once WHERE request = 'payments.Pay'")
    await services.request(Book(5), "k2")
    more = await services.rows("payments", "SELECT key FROM callboard_once WHERE request = 'payments.Pay'")
    assert len(keys) == 1
    assert len(set(more)) == 2
    assert all(key.startswith(RETRY_KEY) and len(key) == 36 for key in more)


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("request_", [Pay(5), Book(5)], ids=["without a claim", "with a claim"])
async def test_an_answer_for_which_no_client_has_a_key_is_kept_for_minutes(
    services: BookingServices, remote: bool, request_: Pay | Book
) -> None:
    node = await services.start()
    async with Node([], MemoryTransport(services.network)) as other:
        ctx = (other if remote else node).client("test", (payments, bookings))
        await ctx.request(request_, timeout=30)
    for service in ("payments",) if isinstance(request_, Pay) else ("payments", "bookings"):
        instance = node.inbound.instances[service]
        [kept] = await services.rows(service, "SELECT lease FROM callboard_once")
        assert 60 < kept - instance.clock.timestamp() <= 90, "until the deadline of the request, and a minute longer"
        await instance.database.execute("UPDATE callboard_once SET lease = lease - 90")
        await instance.prune()
        assert await services.rows(service, "SELECT * FROM callboard_once") == []


async def test_replies_are_forgotten_after_a_day(services: BookingServices) -> None:
    node = await services.start(Payments)
    await services.request(Pay(5), "k")
    database = services.database("payments")
    await database.open()
    await database.execute("UPDATE callboard_once SET lease = lease - 24 * 3600 + 60")
    await node.inbound.instances["payments"].prune()
    assert await services.request(Pay(5), "k") == Receipt(1)
    await database.execute("UPDATE callboard_once SET lease = lease - 61")
    await database.close()
    await node.inbound.instances["payments"].prune()
    assert await services.request(Pay(5), "k") == Receipt(2)


# The clock is set


@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("leap", [timedelta(days=2), -timedelta(days=2)], ids=str)
async def test_an_answer_is_kept_for_a_day_however_the_clock_is_set(
    services: BookingServices, leap: timedelta, restarts: bool
) -> None:
    services.clock = clock = ManualClock()
    node = await services.start()
    assert await services.request(Pay(5), "k") == Receipt(1)
    clock.leap(leap)
    if restarts and leap < timedelta(0):  # nobody can tell two days ahead from two days in which nothing ran
        await services.crash()
        services.clock = clock = ManualClock(clock.now())
        node = await services.start()
    instance = node.inbound.instances["payments"]
    await instance.prune()
    assert await services.request(Pay(5), "k") == Receipt(1), "the answer is still there"
    clock.advance(timedelta(hours=25))
    await instance.prune()
    assert await services.request(Pay(5), "k") == Receipt(2), "it was not kept for longer than a day"


async def test_a_claim_from_the_future_is_not_waited_for(services: BookingServices) -> None:
    services.clock = ManualClock()
    node = await services.start()
    owner = node.inbound.instances["bookings"].id
    await services.request(Book(5), "k")
    database = services.database("bookings")
    await database.open()
    await database.execute(
        "UPDATE callboard_once SET state = 'claimed', answer = NULL, owner = $1, lease = $2",
        owner,
        services.clock.steady() + 3600,
    )
    await database.close()
    assert isinstance(await services.request(Book(5), "k", timeout=5), Ticket)
