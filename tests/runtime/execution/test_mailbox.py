"""Mailboxes limit and order the requests of an instance: in random interleavings, and as callers see them."""

import asyncio
import random

import pytest

from runtime import ANYONE, CallCycle, Context, Contract, DeadlineExceeded, Draining, Overloaded, Request, Service, handles
from runtime.execution.mailbox import Mailbox
from runtime.testing import eventually
from tests.topology import Topology


@pytest.mark.parametrize("seed", range(30))
async def test_random_cancellations_leave_no_slot_or_key_occupied(seed: int) -> None:
    rng = random.Random(seed)
    mailbox = Mailbox("x", rng.choice([1, 2, 5]), 40)
    running: dict[object, int] = {}
    most_running = 0

    async def occupy() -> None:
        nonlocal most_running
        key = rng.choice([None, None, "a", "b"])
        await mailbox.enter(key)
        try:
            running[key] = running.get(key, 0) + 1
            most_running = max(most_running, sum(running.values()))
            assert key is None or running[key] == 1
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        finally:
            running[key] -= 1
            mailbox.leave(key)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(400):
        tasks.append(asyncio.create_task(occupy()))
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        for _ in range(rng.choice([0, 0, 1, 3])):
            rng.choice(tasks).cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    unexpected = [
        outcome for outcome in outcomes if outcome is not None and not isinstance(outcome, Overloaded | asyncio.CancelledError)
    ]
    assert unexpected == []
    assert most_running <= mailbox.concurrency
    assert repr(mailbox) == "<Mailbox x [OPEN] running=0 waiting=0>"
    assert not mailbox.must_wait("a")
    assert not mailbox.must_wait("b")
    await mailbox.enter("a")
    mailbox.leave("a")
    async with asyncio.timeout(1):
        await mailbox.drain()
    with pytest.raises(Draining):
        await mailbox.enter()
    assert repr(mailbox) == "<Mailbox x [DRAINING] running=0 waiting=0>"


async def test_a_free_slot_goes_to_the_first_waiter_that_is_not_cancelled() -> None:
    mailbox = Mailbox("x", 1, 1000)
    await mailbox.enter()
    waiting = [asyncio.create_task(mailbox.enter()) for _ in range(100)]
    await asyncio.sleep(0)
    for task in waiting[:99]:
        task.cancel()
    mailbox.leave()  # must skip the cancelled waiters, whose tasks have not run since
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 99 + [type(None)]
    assert (mailbox.running, mailbox.waiting) == (1, 0)


async def test_draining_waits_for_requests_that_wait_for_a_key() -> None:
    mailbox = Mailbox("x", 64, 10)
    order: list[int] = []

    async def occupy(number: int) -> None:
        await mailbox.enter("k")
        await asyncio.sleep(0)
        order.append(number)
        mailbox.leave("k")

    tasks = [asyncio.create_task(occupy(number)) for number in range(5)]
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await mailbox.drain()
    assert order == [0, 1, 2, 3, 4]
    await asyncio.gather(*tasks)


# Through requests

counter = Contract("counter")
middle = Contract("middle")


@counter.message
class Count(Request[int]):
    """Returns the most requests that have run at once so far. With `hold`, waits until the test releases it."""

    hold: float = 0.0


@counter.message
class CountKeyed(Request[int]):
    key: str
    number: int


@counter.message
class CallItself(Request[None]):
    """Calls the counter again through the middle service."""

    keyed: bool = False
    key: str = ""


@middle.message
class CallBack(Request[None]):
    """Calls the counter back."""

    keyed: bool = False
    key: str = ""


@counter.message
class CallItselfKeyed(Request[None]):
    """Calls the counter again, with the same key, through the middle service."""

    key: str


class Counter(Service):
    contract = counter
    calls = (middle,)

    def __init__(self) -> None:
        self.running = 0
        self.most_running = 0
        self.order: dict[str, list[int]] = {}
        self.per_key: dict[str, int] = {}
        self.most_per_key = 0
        self.release = asyncio.Event()

    @handles(allow=ANYONE)
    async def count(self, message: Count, ctx: Context) -> int:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if message.hold:
                await self.release.wait()
            else:
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        return self.most_running

    @handles(allow=ANYONE, key="key")
    async def count_keyed(self, message: CountKeyed, ctx: Context) -> int:
        running = self.per_key[message.key] = self.per_key.get(message.key, 0) + 1
        self.most_per_key = max(self.most_per_key, running)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.order.setdefault(message.key, []).append(message.number)
        self.per_key[message.key] -= 1
        self.running -= 1
        return running

    @handles(allow=ANYONE)
    async def call_itself(self, message: CallItself, ctx: Context) -> None:
        await ctx.request(CallBack(message.keyed, message.key))

    @handles(allow=ANYONE, key="key")
    async def call_itself_keyed(self, message: CallItselfKeyed, ctx: Context) -> None:
        await ctx.request(CallBack(True, message.key))


class Serial(Counter):
    concurrency = 1
    capacity = 3


class Middle(Service):
    contract = middle
    calls = (counter,)

    @handles(allow=ANYONE)
    async def call_back(self, message: CallBack, ctx: Context) -> None:
        await ctx.request(CallItselfKeyed(message.key) if message.keyed else CallItself())


async def test_at_most_64_requests_run_at_once_by_default(topology: Topology) -> None:
    await topology.start(Counter, Middle)
    ctx = await topology.client(counter)
    assert max(await asyncio.gather(*(ctx.request(Count()) for _ in range(300)))) == 64


async def test_a_service_with_concurrency_1_runs_one_request_at_a_time(topology: Topology) -> None:
    await topology.start(type("Actor", (Counter,), {"concurrency": 1}), Middle)
    ctx = await topology.client(counter)
    assert max(await asyncio.gather(*(ctx.request(Count()) for _ in range(50)))) == 1


async def test_a_full_mailbox_answers_overloaded_at_once(topology: Topology) -> None:
    await topology.start(Serial, Middle)
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


async def test_a_caller_that_gives_up_leaves_the_queue(topology: Topology) -> None:
    await topology.start(Serial, Middle)
    ctx = await topology.client(counter)
    held = asyncio.create_task(ctx.request(Count(hold=1)))
    mailbox = topology.node_of("counter").inbound.instances["counter"].mailbox
    await eventually(lambda: mailbox.running == 1, "one request runs")
    with pytest.raises(DeadlineExceeded):
        await ctx.request(Count(), timeout=0.05)
    await eventually(lambda: mailbox.waiting == 0, "no request waits")
    topology.service(Serial).release.set()
    await held
    assert await ctx.request(Count()) == 1


async def test_requests_with_one_key_run_in_order_while_other_keys_run_in_parallel(topology: Topology) -> None:
    await topology.start(Counter, Middle)
    ctx = await topology.client(counter)
    await asyncio.gather(*(ctx.request(CountKeyed(key, number)) for number in range(40) for key in ("a", "b", "c")))
    service = topology.service(Counter)
    assert service.order == {key: list(range(40)) for key in ("a", "b", "c")}
    assert service.most_per_key == 1
    assert service.most_running == 3


async def test_a_serial_service_that_calls_itself_through_another_gets_call_cycle(topology: Topology) -> None:
    await topology.start(Serial, Middle)
    ctx = await topology.client(counter)
    with pytest.raises(CallCycle) as caught:
        await ctx.request(CallItself(), timeout=5)
    names = [entry.partition("@")[0] for entry in caught.value.path]
    assert names[-3:] == ["counter", "middle", "counter"]
    assert await ctx.request(Count()) == 1


async def test_a_key_that_calls_itself_through_another_service_gets_call_cycle(topology: Topology) -> None:
    await topology.start(Counter, Middle)
    ctx = await topology.client(counter)
    with pytest.raises(CallCycle):
        await ctx.request(CallItselfKeyed("a"), timeout=5)
