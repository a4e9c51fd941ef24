"""Requests between services on one node."""

import asyncio
from pathlib import Path

import pytest

from runtime import DeadlineExceeded, Invalid
from runtime.testing import eventually
from tests.runtime.execution.entrances import Done, hang, opened
from tests.runtime.execution.shop import Bank, Pack, Parcel, Shop, shop
from tests.topology import Topology

LOCAL = pytest.mark.parametrize("kind", ["local plain", "local plain serialized", "local zero-copy", "local serialized"])


async def test_the_encoding_refuses_values_that_bypass_the_type_checker(one_node: Topology) -> None:
    await one_node.start(Bank, Shop)
    ctx = await one_node.client(shop)
    with pytest.raises(Invalid) as caught:
        await ctx.request(Pack(Parcel(5)))  # type: ignore[arg-type]
    assert [violation.pointer for violation in caught.value.violations] == ["/parcel/id"]


@LOCAL
async def test_the_default_timeout_ends_a_request(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, request_timeout=0.05) as entrance:
        for _ in range(2):
            await entrance.send()  # so that a sweep is due already, which the next handler is part of
            entrance.script.acts.append(hang)
            with pytest.raises(DeadlineExceeded):
                await entrance.send()
        assert entrance.script.cancelled == 2
        assert _pending() == 0


async def swallow() -> Done:
    """Wait, and reply although the wait is cancelled."""
    try:
        await hang()
    except asyncio.CancelledError:
        return Done("late")
    raise AssertionError("nothing else ends the wait")


@LOCAL
async def test_a_handler_that_swallows_its_deadline_replies_and_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, swallow, request_timeout=0.05) as entrance:
        assert await entrance.send() == Done("late")
        assert _pending() == 0
        assert await entrance.send() == Done("ok")


@LOCAL
async def test_a_deadline_while_the_caller_is_cancelled_is_a_deadline(kind: str, tmp_path: Path) -> None:
    """A task that was cancelled before still makes requests while it cleans up, which end at their own deadlines."""
    async with opened(kind, tmp_path, request_timeout=0.05) as entrance:
        cleaned = asyncio.Event()

        async def caller() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await entrance.send()
                entrance.script.acts.append(hang)
                with pytest.raises(DeadlineExceeded):
                    await entrance.send()
                cleaned.set()

        task = asyncio.create_task(caller())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned.is_set()
        assert task.cancelling() == 1


@LOCAL
async def test_concurrent_callers_of_one_client_end_at_their_own_deadlines(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, request_timeout=0.05) as entrance:
        entrance.node.inbound.instances["probe"].mailbox.limit = entrance.node.inbound.instances["probe"].mailbox.concurrency = 8
        entrance.script.acts.extend([hang] * 8)
        results = await asyncio.gather(*(entrance.send() for _ in range(8)), return_exceptions=True)
        assert [type(result) for result in results] == [DeadlineExceeded] * 8
        await eventually(lambda: entrance.script.cancelled == 8, "every handler was cancelled")
        assert entrance.node.inbound.instances["probe"].mailbox.running == 0


def _pending() -> int:
    """Return how many cancellations the current task has not handled."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()
