"""`finish` completes its work without losing a cancellation."""

import asyncio

from runtime.tasks import finish


async def test_finish_keeps_a_cancellation_that_arrives_with_the_result() -> None:
    lost = 0
    for turns in range(12):

        async def work() -> None:
            await asyncio.sleep(0)

        async def waiter() -> None:
            await finish(work())
            await asyncio.sleep(60)

        task = asyncio.create_task(waiter())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            async with asyncio.timeout(1):
                await task
        except asyncio.CancelledError:
            continue
        except TimeoutError:
            lost += 1
    assert lost == 0
