"""The mailbox alone, under every order of coming, going and giving up."""

import asyncio
import random

import pytest

from runtime import Draining, Overloaded
from runtime.execution.mailbox import Mailbox


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_is_cancelled_nothing_is_left(seed: int) -> None:
    rng = random.Random(seed)
    mailbox = Mailbox("x", rng.choice([1, 2, 5]), 40)
    running: dict[object, int] = {}
    most = 0

    async def one() -> None:
        nonlocal most
        key = rng.choice([None, None, "a", "b"])
        await mailbox.enter(key)
        try:
            running[key] = running.get(key, 0) + 1
            most = max(most, sum(running.values()))
            assert key is None or running[key] == 1
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        finally:
            running[key] -= 1
            mailbox.leave(key)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(400):
        tasks.append(asyncio.create_task(one()))
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        for _ in range(rng.choice([0, 0, 1, 3])):
            rng.choice(tasks).cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    wrong = [
        outcome for outcome in outcomes if outcome is not None and not isinstance(outcome, Overloaded | asyncio.CancelledError)
    ]
    assert wrong == []
    assert most <= mailbox.concurrency
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


async def test_many_who_give_up_at_once_while_one_leaves() -> None:
    mailbox = Mailbox("x", 1, 1000)
    await mailbox.enter()
    waiting = [asyncio.create_task(mailbox.enter()) for _ in range(100)]
    await asyncio.sleep(0)
    for task in waiting[:99]:
        task.cancel()
    mailbox.leave()  # passes over the cancelled ones, whose tasks have not run yet
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 99 + [type(None)]
    assert (mailbox.running, mailbox.waiting) == (1, 0)


async def test_drain_waits_for_those_who_wait_for_a_key() -> None:
    mailbox = Mailbox("x", 64, 10)
    order: list[int] = []

    async def one(number: int) -> None:
        await mailbox.enter("k")
        await asyncio.sleep(0)
        order.append(number)
        mailbox.leave("k")

    tasks = [asyncio.create_task(one(number)) for number in range(5)]
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await mailbox.drain()
    assert order == [0, 1, 2, 3, 4]
    await asyncio.gather(*tasks)
