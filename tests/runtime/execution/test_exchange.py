"""The exchange: requests that wait for a reply, and their deadlines."""

import asyncio

import pytest

from runtime import DeadlineExceeded
from tests.runtime.execution.shop import Bank, Buy, Shop, Sleep, shop
from tests.topology import Topology


async def test_requests_that_were_sent_together_end_at_their_own_deadlines(topology: Topology) -> None:
    await topology.start(Bank, Shop)
    ctx, time = await topology.client(shop), asyncio.get_running_loop().time
    begun = time()

    async def ask(timeout: float) -> None:
        with pytest.raises(DeadlineExceeded):
            await ctx.request(Sleep(60), timeout=timeout)
        assert time() - begun >= timeout - 0.002, "no deadline comes too early, but for the rounding of timers"

    timeouts = 0.15, 0.01, 0.05, 0.1, 0.005  # some before the first sweep, the others after it
    await asyncio.gather(*map(ask, timeouts), ctx.request(Buy(), timeout=5))
    exchange = ctx.host.caller.exchange  # type: ignore[attr-defined]
    assert exchange.in_flight == 0
