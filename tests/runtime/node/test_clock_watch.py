"""The clock watch: one line in the log each time that the machine's clock was set."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta

import pytest

from runtime import ManualClock
from runtime.metrics import Metrics
from runtime.node.clock_watch import ClockWatch
from runtime.telemetry import logger
from tests.runtime.test_clock import LEAPS

DAY = timedelta(days=1)


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def watch(clock: ManualClock) -> AsyncGenerator[ClockWatch, None]:
    made = ClockWatch(clock, Metrics(), logger("runtime"))
    yield made
    made.stop()


async def test_one_line_says_that_the_clock_was_set_and_by_how_much(
    clock: ManualClock, watch: ClockWatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.look()
    clock.advance(DAY)
    watch.look()
    assert not caplog.messages, "time that passes is not a leap"
    for leap in LEAPS:
        clock.leap(leap)
        watch.look()
        watch.look()
    lines = [message.partition(", or")[0] for message in caplog.messages]
    assert lines == [
        f"the clock was set {'forward' if leap > timedelta(0) else 'back'} by {abs(leap.total_seconds()):.1f} s" for leap in LEAPS if leap
    ]  # fmt: skip


async def test_a_node_watches_its_clock(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.node.clock_watch._INTERVAL", 0.001)
    metrics = Metrics()
    watch = ClockWatch(clock, metrics, logger("runtime"))
    clock.leap(-DAY)
    async with asyncio.timeout(5):
        while not metrics.value("clock_set_total"):
            await asyncio.sleep(0.001)
    watch.stop()


async def test_durations_follow_a_clock_that_was_set_forward_once_it_has_shown_that_time_for_a_day(
    clock: ManualClock, watch: ClockWatch
) -> None:
    began = clock.steady()
    clock.leap(timedelta(days=20_000))  # a machine that started without the time
    watch.look()
    clock.advance(DAY - timedelta(seconds=1))
    watch.look()
    assert clock.steady() == began + 86_399
    clock.advance(timedelta(seconds=1))
    watch.look()
    assert clock.steady() == clock.timestamp()
    clock.leap(-DAY)
    watch.look()
    clock.advance(2 * DAY)
    watch.look()
    assert clock.steady() == clock.timestamp() + 86_400, "they never go back"
