"""A thread that runs functions for an event loop."""

import asyncio
import threading
from functools import partial

import pytest

from runtime.storage.worker import Worker


async def test_functions_run_in_order_in_one_thread_and_return_or_raise() -> None:
    worker = Worker("numbers")
    seen: list[tuple[int, int]] = []

    def run(number: int) -> int:
        seen.append((number, threading.get_ident()))
        if number % 3 == 0:
            raise LookupError(number)
        return number

    outcomes = await asyncio.gather(*(worker.submit(partial(run, n)) for n in range(100)), return_exceptions=True)
    assert [number for number, _ in seen] == list(range(100))
    assert len({thread for _, thread in seen} - {threading.get_ident()}) == 1
    assert [str(outcome) for outcome in outcomes] == [str(number) for number in range(100)]
    assert all(isinstance(outcome, LookupError) == (number % 3 == 0) for number, outcome in enumerate(outcomes))
    worker.stop()


async def test_a_function_runs_although_nobody_waits_for_it_any_more() -> None:
    worker = Worker("numbers")
    gate, ran = threading.Event(), threading.Event()
    first = worker.submit(gate.wait)
    second = worker.submit(ran.set)
    second.cancel()
    assert worker.pending == 2
    gate.set()
    assert await first
    await worker.submit(lambda: None)
    assert ran.is_set()
    assert worker.pending == 0
    worker.stop()


def test_a_thread_ends_when_its_event_loop_is_closed() -> None:
    gate = threading.Event()

    async def leave() -> None:
        Worker("numbers").submit(gate.wait)

    before = set(threading.enumerate())
    asyncio.run(leave())
    [thread] = set(threading.enumerate()) - before
    gate.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("count", [0, 3])
async def test_a_stopped_thread_runs_what_was_submitted_before(count: int) -> None:
    worker = Worker("numbers")
    futures = [worker.submit(lambda: None) for _ in range(count)]
    worker.stop()
    await asyncio.gather(*futures)
