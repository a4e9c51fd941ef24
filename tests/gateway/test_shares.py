"""Shares: what one address may have under way, and what waits."""

import asyncio

import pytest

from gateway.problems import Problem
from gateway.shares import Shares


async def begin(shares: Shares, address: str, times: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(shares.begin(address)) for _ in range(times)]
    await asyncio.sleep(0)
    return tasks


def done(tasks: list[asyncio.Task[None]]) -> list[bool]:
    return [task.done() for task in tasks]


async def test_what_is_beyond_the_share_waits_in_order_and_others_do_not() -> None:
    shares = Shares(2, 10, 60)
    tasks = await begin(shares, "a", 4)
    assert done(tasks) == [True, True, False, False]
    assert done(await begin(shares, "b", 2)) == [True, True]
    shares.end("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert done(tasks) == [True, True, True, False]
    for _ in range(3):
        shares.end("a")
    await tasks[3]
    assert done(await begin(shares, "a", 2)) == [True, True]


async def test_too_much_waiting_is_refused() -> None:
    shares = Shares(1, 2, 60)
    tasks = await begin(shares, "a", 4)
    with pytest.raises(Problem) as refused:
        await tasks[3]
    assert refused.value.status == 429
    with pytest.raises(Problem):
        shares.check_room("a")
    shares.check_room("b")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_waits_too_long_is_refused_and_leaves_nothing_behind() -> None:
    shares = Shares(1, 10, 0.01)
    tasks = await begin(shares, "a", 3)
    for task in tasks[1:]:
        with pytest.raises(Problem):
            await task
    shares.end("a")
    assert not shares._queues
    assert not shares._under_way


async def test_a_cancelled_one_gives_its_turn_to_the_next() -> None:
    shares = Shares(1, 10, 60)
    tasks = await begin(shares, "a", 4)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    shares.end("a")  # the turn of the third has come
    tasks[2].cancel()  # before it noticed
    await asyncio.gather(tasks[2], return_exceptions=True)
    await tasks[3]
    shares.end("a")
    assert not shares._queues
    assert not shares._under_way
