"""Log lines that messages from outside cause: the first in full, then a count each minute."""

import asyncio
import logging

import pytest

from runtime import Clock
from runtime.repeats import REPEAT_SECONDS, Repeats, fault

LOG = logging.getLogger("test")


class StoppedClock(Clock):
    """A clock whose sleeps end when a test says so."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.minute = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.minute.wait()
        self.minute.clear()

    async def pass_minute(self) -> None:
        """Let everything that waits for the next minute run."""
        self.minute.set()
        while self.minute.is_set():
            await asyncio.sleep(0)
        await asyncio.sleep(0)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


async def test_the_first_is_logged_in_full_and_the_others_are_counted_each_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = StoppedClock()
    repeats = Repeats(clock)
    for number in range(1_000):
        repeats.log(LOG, logging.ERROR, "key", "message %d failed", number, exc_info=ValueError("why"))
    [record] = caplog.records
    assert (record.getMessage(), record.exc_info is not None) == ("message 0 failed", True)
    caplog.clear()
    await asyncio.sleep(0)
    await clock.pass_minute()
    assert said(caplog) == ["999 more within a minute: message 0 failed"]
    repeats.log(LOG, logging.ERROR, "key", "message %d failed", 1_000)
    await clock.pass_minute()
    assert said(caplog) == ["1 more within a minute: message 0 failed"]
    await clock.pass_minute()
    assert said(caplog) == [], "a quiet minute"
    repeats.log(LOG, logging.ERROR, "key", "message %d failed", 1_001)
    assert said(caplog) == ["message 1001 failed"], "after it, the next is logged in full"
    assert set(clock.slept) == {REPEAT_SECONDS}
    repeats.log(LOG, logging.ERROR, "key", "message %d failed", 1_002)
    repeats.close()
    assert said(caplog) == ["1 more within a minute: message 1001 failed"], "no count is lost at the end"


async def test_different_lines_are_bounded_too(caplog: pytest.LogCaptureFixture) -> None:
    repeats = Repeats(StoppedClock())
    for number in range(10_000):
        repeats.log(LOG, logging.WARNING, number, "from sender %d", number)
    assert len(said(caplog)) == 257
    repeats.close()
    assert said(caplog) == ["9743 more within a minute, and other lines: from sender 256"]


async def test_some_lines_are_logged_a_few_times_before_they_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    repeats = Repeats(StoppedClock())
    for number in range(20):
        repeats.log(LOG, logging.WARNING, "key", "refused %d", number, in_full=10)
    assert said(caplog) == [f"refused {number}" for number in range(10)]
    repeats.close()
    assert said(caplog) == ["10 more within a minute: refused 0"]


def test_errors_of_one_line_of_code_are_one_fault() -> None:
    def fail(value: object) -> BaseException:
        try:
            raise ValueError(value) if value else TypeError(value)
        except Exception as error:
            return error

    assert fault(fail(1)) == fault(fail(2)) != fault(fail(0))
    assert fault(ValueError()) == fault(ValueError()) != fault(fail(1))


async def test_many_lines_hide_neither_incidents_nor_other_logs(caplog: pytest.LogCaptureFixture) -> None:
    repeats, security = Repeats(StoppedClock()), logging.getLogger("test.security")
    for number in range(1_000):
        repeats.log(security, logging.WARNING, ("token", number), "refused %d", number)
    said(caplog)
    repeats.log(LOG, logging.ERROR, "disk", "the disk is full")
    for incident in ("a1", "b2"):
        assert repeats.tag(incident) is None
        repeats.log(security, logging.ERROR, incident, "incident %s", incident, tag=incident)
        assert repeats.tag(incident) == incident
    assert said(caplog) == ["the disk is full", "incident a1", "incident b2"]
    repeats.close()
