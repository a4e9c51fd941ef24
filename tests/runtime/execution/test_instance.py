"""A handler runs from start to end in one task, so that timeouts and task groups work inside it."""

import asyncio

import anyio
import pytest

from runtime import DeadlineExceeded
from tests.runtime.execution.shop import Bank, Shop, Sleep, bank, shop
from tests.topology import Topology


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
async def test_timeouts_and_task_groups_work_inside_handlers(topology: Topology, how: str, expected: str) -> None:
    await topology.start(Bank, Shop)
    ctx = await topology.client(shop, bank)
    assert await ctx.request(Sleep(0.01, how)) == expected
    assert await ctx.request(Sleep(0.01, how), timeout=5) == expected
    with anyio.fail_after(5):
        assert await ctx.request(Sleep(0.01, how)) == expected


@pytest.mark.parametrize("how", ["plain", "task group", "anyio task group", "asyncio timeout", "anyio scope"])
async def test_the_deadline_ends_timeouts_and_task_groups_inside_handlers(topology: Topology, how: str) -> None:
    await topology.start(Bank, Shop)
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
