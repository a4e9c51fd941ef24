"""Requests between services, as both sides see them, on every topology."""

import asyncio
from collections.abc import Callable

import anyio
import pytest

from runtime import (
    ANYONE,
    SERVICES,
    CallCycle,
    Context,
    Contract,
    DeadlineExceeded,
    Forbidden,
    InternalError,
    Invalid,
    NoInstance,
    Overloaded,
    RemoteError,
    Request,
    Service,
    ServiceError,
    Struct,
    UsageError,
    handles,
    roles,
    services,
)
from runtime.testing import eventually
from tests.topology import Topology

shop = Contract("shop")
bank = Contract("bank")
courier = Contract("courier")


class Parcel(Struct):
    id: str
    tags: tuple[str, ...] = ()
    inner: "Parcel | None" = None


@shop.message
class Pack(Request[Parcel]):
    parcel: Parcel


@shop.message
class Buy(Request[float]):
    """Asks the bank, and replies what the bank saw of the budget."""

    behaviour: str = ""
    timeout: float | None = None


@shop.message
class Sleep(Request[str]):
    seconds: float
    how: str = "plain"


@shop.message
class Crash(Request[None]):
    """Fails with an error that is no ServiceError."""


@shop.message
class WhoAsks(Request[str]):
    """The caller, as the callee sees it."""


@shop.message
class Secretly(Request[None]):
    """For the courier alone."""


@shop.message
class AskUndeclared(Request[None]):
    """Asks a service that is not in `calls`."""


@bank.message
class Pay(Request[float]):
    behaviour: str = ""


@bank.message
class Broke(ServiceError):
    """There is no money."""

    code, status = "broke", 402
    missing_cents: int
    hints: tuple[str, ...] = ()


class Bank(Service):
    contract = bank
    calls = (shop,)

    def __init__(self) -> None:
        self.log_of: list[str] = []

    @handles(allow=SERVICES, raises=(Broke,))
    async def pay(self, message: Pay, ctx: Context) -> float:
        self.log_of.append("begun")
        try:
            if message.behaviour == "broke":
                raise Broke(5, ("save",))
            if message.behaviour == "hang":
                await asyncio.Event().wait()
            return ctx.remaining
        except asyncio.CancelledError:
            self.log_of.append("cancelled")
            raise


class Shop(Service):
    contract = shop
    calls = (bank,)

    @handles(allow=ANYONE)
    async def pack(self, message: Pack, ctx: Context) -> Parcel:
        return Parcel("outer", ("packed",), message.parcel)

    def __init__(self) -> None:
        self.bought = 0

    @handles(allow=ANYONE)
    async def buy(self, message: Buy, ctx: Context) -> float:
        self.bought += 1
        return await ctx.request(Pay(message.behaviour), timeout=message.timeout)

    @handles(allow=ANYONE)
    async def sleep(self, message: Sleep, ctx: Context) -> str:
        match message.how:
            case "asyncio timeout":
                try:
                    async with asyncio.timeout(message.seconds):
                        await asyncio.Event().wait()
                except TimeoutError:
                    return "timed out"
            case "anyio scope":
                with anyio.move_on_after(message.seconds) as scope:
                    await anyio.sleep_forever()
                return "moved on" if scope.cancelled_caught else "?"
            case "task group":
                async with asyncio.TaskGroup() as group:
                    one = group.create_task(asyncio.sleep(message.seconds, "a"))
                    two = group.create_task(asyncio.sleep(message.seconds / 2, "b"))
                return one.result() + two.result()
            case "anyio task group":
                found: list[str] = []

                async def note(name: str) -> None:
                    await anyio.sleep(message.seconds)
                    found.append(name)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(note, "a")
                    tasks.start_soon(note, "b")
                return "".join(sorted(found))
            case "a failing task group":
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(asyncio.sleep(60))
                        group.create_task(_fail())
                except ExceptionGroup as failures:
                    return "failed" if failures.subgroup(ValueError) else "?"
            case "requests in a task group":
                async with asyncio.TaskGroup() as group:
                    asked = [group.create_task(ctx.request(Pay())) for _ in range(10)]
                return str(len([task.result() for task in asked]))
            case _:
                await asyncio.sleep(message.seconds)
        return "slept"

    @handles(allow=ANYONE)
    async def crash(self, message: Crash, ctx: Context) -> None:
        await asyncio.sleep(0)
        raise KeyError("a secret of the implementation")

    @handles(allow=SERVICES)
    async def who_asks(self, message: WhoAsks, ctx: Context) -> str:
        return ctx.caller

    @handles(allow=services("courier"))
    async def secretly(self, message: Secretly, ctx: Context) -> None:
        return None

    @handles(allow=ANYONE)
    async def ask_undeclared(self, message: AskUndeclared, ctx: Context) -> None:
        await ctx.request(Deliver())


@courier.message
class Deliver(Request[None]):
    pass


async def _fail() -> None:
    await asyncio.sleep(0)
    raise ValueError


async def test_a_reply_has_what_the_handler_returned(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop)
    assert await ctx.request(Pack(Parcel("a", ("x", "ü")))) == Parcel("outer", ("packed",), Parcel("a", ("x", "ü")))


async def test_an_error_reaches_the_caller_as_itself(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop, bank)
    with pytest.raises(Broke) as caught:
        await ctx.request(Buy("broke"))
    assert caught.value == Broke(5, ("save",))
    assert str(caught.value) == "There is no money (missing_cents=5, hints=('save',))"
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (402, "broke", False)


async def test_an_error_of_a_contract_that_is_not_imported_is_remote(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(RemoteError) as caught:
        await ctx.request(Buy("broke"))
    error = caught.value
    assert (error.contract, error.status, error.code, error.fields) == (
        "bank",
        402,
        "broke",
        {"missing_cents": 5, "hints": ["save"]},
    )


async def test_a_crash_fails_the_message_alone_and_tells_no_detail(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(InternalError) as caught:
        await ctx.request(Crash())
    assert len(caught.value.incident) == 16
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert await ctx.request(Pack(Parcel("next"))) == Parcel("outer", ("packed",), Parcel("next"))
    assert topology.node_of("shop").metrics.value("incidents_total", service="shop") == 1


async def test_nobody_there(topology: Topology) -> None:
    await topology.play(Bank)
    ctx = await topology.client(shop)
    with pytest.raises(NoInstance) as caught:
        await ctx.request(Crash())
    assert caught.value.retryable
    assert not caught.value.maybe_delivered


async def test_what_a_handler_lets_through_is_not_asked_again(topology: Topology) -> None:
    """That the bank is not there does not mean that the shop was not: its handler has run."""
    await topology.play(Shop)
    ctx = await topology.client(shop)
    with pytest.raises(NoInstance) as caught:
        await ctx.request(Buy(), timeout=5)
    assert caught.value.service == "bank"
    assert caught.value.maybe_delivered
    assert topology.service(Shop).bought == 1


async def test_only_what_is_declared_may_be_asked(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(bank)
    with pytest.raises(UsageError, match=r"shop is not in its calls"):
        await ctx.request(Crash())
    inside = await topology.client(shop)
    with pytest.raises(InternalError):
        await inside.request(AskUndeclared())


async def test_the_callee_knows_the_calling_service(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    assert await (await topology.client(shop, name="courier")).request(WhoAsks()) == "courier"
    with pytest.raises(Forbidden):
        await (await topology.client(shop, name="thief")).request(Secretly())
    await (await topology.client(shop, name="courier")).request(Secretly())


# Deadlines


async def test_the_budget_shrinks_with_every_hop(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop)
    assert 0 < await ctx.request(Buy(), timeout=3) <= 3
    assert 0 < await ctx.request(Buy(timeout=1), timeout=3) <= 1
    assert 0 < await ctx.request(Buy(timeout=60), timeout=3) <= 3


async def test_the_default_deadline_is_the_nodes(topology: Topology) -> None:
    await topology.play(Bank, Shop, request_timeout=0.2)
    ctx = await topology.client(shop, request_timeout=0.2)
    with pytest.raises(DeadlineExceeded) as caught:
        await ctx.request(Sleep(60))
    assert caught.value.maybe_delivered


async def test_a_deadline_cancels_the_work_of_every_hop(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(DeadlineExceeded):
        await ctx.request(Buy("hang"), timeout=0.1)
    bank_service = topology.service(Bank)
    await eventually(lambda: bank_service.log_of == ["begun", "cancelled"], "the bank's work was cancelled")


async def test_a_handler_may_catch_the_deadline_of_what_it_asked(topology: Topology) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(DeadlineExceeded) as caught:
        await ctx.request(Buy("hang", timeout=0.05), timeout=5)
    assert caught.value.service == "bank"
    await ctx.request(Buy(), timeout=5)


async def test_who_stops_waiting_cancels_the_work_of_every_hop(topology: Topology) -> None:
    await topology.play(Bank, Shop, request_timeout=120)  # so that no deadline does it instead
    ctx = await topology.client(shop, request_timeout=120)
    bank_service = topology.service(Bank)
    task = asyncio.create_task(ctx.request(Buy("hang")))
    await eventually(lambda: bank_service.log_of == ["begun"], "the bank was asked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: bank_service.log_of == ["begun", "cancelled"], "the bank's work was cancelled")
    for name in ("bank", "shop"):
        await eventually(idle(topology, name), f"{name} is idle again")


def idle(topology: Topology, name: str) -> Callable[[], bool]:
    return lambda: topology.node_of(name).inbound.instances[name].mailbox.running == 0


async def test_deadlines_do_not_run_under_a_debugger(topology: Topology) -> None:
    await topology.play(Bank, Shop, deadlines=False)
    ctx = await topology.client(shop, deadlines=False)
    assert await ctx.request(Sleep(0.1), timeout=0.01) == "slept"


async def test_a_late_reply_is_dropped_and_counted(tmp_path: object) -> None:
    topology = Topology("apart-serialized", tmp_path)  # type: ignore[arg-type]
    await topology.play(Bank, Shop)
    try:
        from runtime.network import Address, Envelope

        node = topology.node_of("bank")
        target = topology.node_of("shop")
        late = Envelope("reply", "nobody-waits", "shop.Pack", b"{}")
        await node.environment.transport.unicast(Address("shop", target.id), late, "bank")
        await eventually(lambda: target.metrics.value("late_replies_total") == 1, "it is counted")
    finally:
        await topology.close()


# A handler runs in one task


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("plain", "slept"),
        ("asyncio timeout", "timed out"),
        ("anyio scope", "moved on"),
        ("task group", "ab"),
        ("anyio task group", "ab"),
        ("a failing task group", "failed"),
        ("requests in a task group", "10"),
    ],
)
async def test_scopes_and_groups_work_inside_handlers(topology: Topology, how: str, expected: str) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop, bank)
    assert await ctx.request(Sleep(0.01, how)) == expected
    assert await ctx.request(Sleep(0.01, how), timeout=5) == expected
    with anyio.fail_after(5):
        assert await ctx.request(Sleep(0.01, how)) == expected


@pytest.mark.parametrize("how", ["plain", "task group", "anyio task group", "asyncio timeout", "anyio scope"])
async def test_scopes_and_groups_are_ended_by_the_deadline(topology: Topology, how: str) -> None:
    await topology.play(Bank, Shop)
    ctx = await topology.client(shop)
    with pytest.raises(DeadlineExceeded):
        await ctx.request(Sleep(60, how), timeout=0.05)
    with anyio.move_on_after(0.05) as scope:
        await ctx.request(Sleep(60, how))
    assert scope.cancelled_caught
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await ctx.request(Sleep(0, "plain")) == "slept"


# Validation


async def test_what_skips_the_type_checker_is_refused_by_the_encoding(one_node: Topology) -> None:
    await one_node.play(Bank, Shop)
    ctx = await one_node.client(shop)
    with pytest.raises(Invalid) as caught:
        await ctx.request(Pack(Parcel(5)))  # type: ignore[arg-type]
    assert [violation.pointer for violation in caught.value.violations] == ["/parcel/id"]


# Mailboxes

counter = Contract("counter")
middle = Contract("middle")


@counter.message
class Count(Request[int]):
    """How many run at once."""

    hold: float = 0.0


@counter.message
class CountKeyed(Request[int]):
    key: str
    number: int


@counter.message
class AskMyself(Request[None]):
    keyed: bool = False
    key: str = ""


@middle.message
class Pass(Request[None]):
    keyed: bool = False
    key: str = ""


@counter.message
class Take(Request[None]):
    key: str


class Counter(Service):
    contract = counter
    calls = (middle,)

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.order: dict[str, list[int]] = {}
        self.per_key: dict[str, int] = {}
        self.most_per_key = 0
        self.release = asyncio.Event()

    @handles(allow=ANYONE)
    async def count(self, message: Count, ctx: Context) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if message.hold:
                await self.release.wait()
            else:
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        return self.most

    @handles(allow=ANYONE, key="key")
    async def count_keyed(self, message: CountKeyed, ctx: Context) -> int:
        running = self.per_key[message.key] = self.per_key.get(message.key, 0) + 1
        self.most_per_key = max(self.most_per_key, running)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.order.setdefault(message.key, []).append(message.number)
        self.per_key[message.key] -= 1
        self.running -= 1
        return running

    @handles(allow=ANYONE)
    async def ask_myself(self, message: AskMyself, ctx: Context) -> None:
        await ctx.request(Pass(message.keyed, message.key))

    @handles(allow=ANYONE, key="key")
    async def take(self, message: Take, ctx: Context) -> None:
        await ctx.request(Pass(True, message.key))


class Serial(Counter):
    concurrency = 1
    capacity = 3


class Middle(Service):
    contract = middle
    calls = (counter,)

    @handles(allow=ANYONE)
    async def pass_on(self, message: Pass, ctx: Context) -> None:
        await ctx.request(Take(message.key) if message.keyed else AskMyself())


async def test_at_most_64_run_at_once_by_default(topology: Topology) -> None:
    await topology.play(Counter, Middle)
    ctx = await topology.client(counter)
    assert max(await asyncio.gather(*(ctx.request(Count()) for _ in range(300)))) == 64


async def test_concurrency_of_one_is_an_actor(topology: Topology) -> None:
    await topology.play(type("Actor", (Counter,), {"concurrency": 1}), Middle)
    ctx = await topology.client(counter)
    assert max(await asyncio.gather(*(ctx.request(Count()) for _ in range(50)))) == 1


async def test_a_full_mailbox_answers_overloaded_at_once(topology: Topology) -> None:
    await topology.play(Serial, Middle)
    ctx = await topology.client(counter)
    held = [asyncio.create_task(ctx.request(Count(hold=1))) for _ in range(4)]
    mailbox = topology.node_of("counter").inbound.instances["counter"].mailbox
    await eventually(lambda: (mailbox.running, mailbox.waiting) == (1, 3), "one runs and three wait")
    with pytest.raises(Overloaded) as caught:
        await ctx.request(Count())
    assert caught.value.retryable
    assert caught.value.status == 503
    topology.service(Serial).release.set()
    assert await asyncio.gather(*held) == [1, 1, 1, 1]
    assert await ctx.request(Count()) == 1


async def test_who_gives_up_waiting_leaves_the_queue(topology: Topology) -> None:
    await topology.play(Serial, Middle)
    ctx = await topology.client(counter)
    held = asyncio.create_task(ctx.request(Count(hold=1)))
    mailbox = topology.node_of("counter").inbound.instances["counter"].mailbox
    await eventually(lambda: mailbox.running == 1, "one runs")
    with pytest.raises(DeadlineExceeded):
        await ctx.request(Count(), timeout=0.05)
    await eventually(lambda: mailbox.waiting == 0, "nobody waits")
    topology.service(Serial).release.set()
    await held
    assert await ctx.request(Count()) == 1


async def test_a_key_keeps_order_and_others_run_beside_it(topology: Topology) -> None:
    await topology.play(Counter, Middle)
    ctx = await topology.client(counter)
    await asyncio.gather(*(ctx.request(CountKeyed(key, number)) for number in range(40) for key in ("a", "b", "c")))
    service = topology.service(Counter)
    assert service.order == {key: list(range(40)) for key in ("a", "b", "c")}
    assert service.most_per_key == 1
    assert service.most == 3


async def test_a_serial_service_that_asks_itself_through_others(topology: Topology) -> None:
    await topology.play(Serial, Middle)
    ctx = await topology.client(counter)
    with pytest.raises(CallCycle) as caught:
        await ctx.request(AskMyself(), timeout=5)
    names = [place.partition("@")[0] for place in caught.value.path]
    assert names[-3:] == ["counter", "middle", "counter"]
    assert await ctx.request(Count()) == 1


async def test_a_key_that_asks_itself_through_others(topology: Topology) -> None:
    await topology.play(Counter, Middle)
    ctx = await topology.client(counter)
    with pytest.raises(CallCycle):
        await ctx.request(Take("a"), timeout=5)


async def test_an_error_that_nobody_has_declared_is_told_of_once(one_node: Topology, caplog: pytest.LogCaptureFixture) -> None:
    await one_node.play(Careless)
    ctx = await one_node.client(careless)
    for _ in range(3):
        with pytest.raises(Spilt):
            await ctx.request(Spill())
    told = [record.getMessage() for record in caplog.records if "raises=" in record.getMessage()]
    assert told == [
        "Careless.spill raised Spilt, which its raises= does not name: add it, so that callers and OpenAPI know of it"
    ]


careless = Contract("careless")


@careless.message
class Spilt(ServiceError):
    """It is on the floor."""

    code, status = "spilt", 409


@careless.message
class Spill(Request[None]):
    pass


class Careless(Service):
    contract = careless

    @handles(allow=roles("rider") | SERVICES)
    async def spill(self, message: Spill, ctx: Context) -> None:
        raise Spilt
