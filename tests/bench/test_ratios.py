"""The measurement of ratios."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tests.bench import ceilings
from tests.bench.ratios import GROUPS, Group, Sides, measure


@asynccontextmanager
async def _sides() -> AsyncGenerator[Sides, None]:
    async def twice(count: int) -> None:
        await ceilings.json_both_ways(2 * count)

    yield {"ours": (twice, 1000), "ceiling": (ceilings.json_both_ways, 1000)}


async def test_work_that_costs_twice_as_much_has_half_the_ratio() -> None:
    found = await measure([Group(_sides, ("ours", "ceiling"))], rounds=9)
    assert 0.3 < found["ours : ceiling"].median < 0.7
    assert found["ours : ceiling"].rounds == 9


async def test_every_pair_names_sides_that_are_measured() -> None:
    for group in GROUPS[:2]:
        async with group.opened() as sides:
            assert {name for pair in group.pairs for name in pair} <= sides.keys()
            for work, _ in sides.values():
                await work(500)
