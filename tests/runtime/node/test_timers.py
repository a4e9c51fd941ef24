"""Runs of `@every`: a stop waits for them, and one that does not end is reported."""

import asyncio
import logging

import pytest

from runtime import Context, Contract, Node, NodeSettings, Service, every
from runtime.node import timers
from runtime.testing import eventually
from transports.memory import MemoryTransport


class Sweeper(Service):
    contract = Contract("sweeper")

    def __init__(self, *, stubborn: bool = False) -> None:
        self.gate = asyncio.Event()
        self.begun = self.ended = 0
        self.how = ""
        self._stubborn = stubborn

    @every(seconds=0.001)
    async def sweep(self, ctx: Context) -> None:
        self.begun += 1
        try:
            while not self.gate.is_set():
                try:
                    await self.gate.wait()  # here
                except asyncio.CancelledError:
                    self.how = "cancelled"
                    if not self._stubborn:
                        raise
        finally:
            self.ended += 1


def node_with(sweeper: Sweeper, **settings: float) -> Node:
    return Node([lambda: sweeper], MemoryTransport(), settings=NodeSettings(**{"undo_timeout": 0.05, **settings}))  # type: ignore[arg-type]


async def until_it_runs(sweeper: Sweeper) -> None:
    await eventually(lambda: sweeper.begun == 1, "a run has begun")


async def test_a_stop_waits_for_a_run_and_begins_no_other() -> None:
    sweeper = Sweeper()
    async with node_with(sweeper) as node:
        await until_it_runs(sweeper)
        stopping = asyncio.create_task(node.stop())
        await asyncio.sleep(0.02)
        assert not stopping.done()
        sweeper.gate.set()
        await stopping
    assert (sweeper.begun, sweeper.ended, sweeper.how) == (1, 1, "")


async def test_a_run_that_outlives_the_drain_is_named_and_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    sweeper = Sweeper()
    async with node_with(sweeper, drain_timeout=0.02):
        await until_it_runs(sweeper)
    assert (sweeper.ended, sweeper.how) == (1, "cancelled")
    assert "sweeper was still busy after 0.02 s, and is cut off: Sweeper.sweep (test_timers.py:29)" in caplog.text


async def test_a_run_that_does_not_end_when_it_is_cancelled_does_not_hold_up_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    sweeper = Sweeper(stubborn=True)
    try:
        async with asyncio.timeout(30), node_with(sweeper, drain_timeout=0.02):
            await until_it_runs(sweeper)
        assert "sweeper.sweep does not end although it was cancelled: Sweeper.sweep (test_timers.py:29)" in caplog.text
        assert sweeper.ended == 0
    finally:
        sweeper.gate.set()
        await eventually(lambda: sweeper.ended == 1, "the run that was left behind has ended")


async def test_a_run_that_does_not_end_is_reported_again_and_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "_SOONEST", 0.01)
    sweeper = Sweeper()
    async with node_with(sweeper) as node:
        text = "sweeper.sweep has run for 0 s and has not ended, so it does not run again: Sweeper.sweep (test_timers.py:29)"
        await eventually(lambda: caplog.text.count(text) == 2, "it is reported twice")
        assert node.metrics.value("timer_run_seconds", service="sweeper", timer="sweep") > 0
        sweeper.gate.set()
        await eventually(lambda: sweeper.begun > 1, "it runs again")
        assert all(record.levelno == logging.WARNING for record in caplog.records if "has run for" in record.message)
