"""A clock that a test moves, and that timers and timeouts follow."""

import asyncio
import math
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from runtime.clock import Clock
from runtime.contract.errors import UsageError

_STEPS = 500
"""The most times that a timer runs which repeats."""


class MovableClock(Clock):
    """A clock that runs as usual, and that `advance` moves forward together with the event loop of the test.

    Timers, `asyncio.sleep`, and timeouts come due as if the time had passed. It needs asyncio's own event loop, and works while
    its `async with` block lasts.
    """

    def __init__(self) -> None:
        self._offset = 0.0
        self._patched: Any = None
        self._before: Callable[[], float] = time.monotonic

    async def __aenter__(self) -> Self:
        """Take over the time of the running event loop.

        Raises:
            UsageError: if the loop is another one than asyncio's own.
        """
        running = asyncio.get_running_loop()
        if not isinstance(running, asyncio.BaseEventLoop):
            raise UsageError(
                f"a movable clock needs asyncio's own event loop, got {type(running).__module__}.{type(running).__name__}"
            )
        self._before = real = running.time
        self._patched = running
        self._patched.time = lambda: real() + self._offset
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._patched.time = self._before
        self._patched = None

    def timestamp(self) -> float:
        return time.time() + self._offset

    async def advance(self, by: float | timedelta) -> None:
        """Let time pass. Timers that come due meanwhile run in order; of those that repeat, at most 500 times.

        Args:
            by: the time, in seconds.

        Raises:
            UsageError: if it is negative, or the clock is used outside of its `async with` block.
        """
        seconds = by.total_seconds() if isinstance(by, timedelta) else float(by)
        if not 0 <= seconds < math.inf or self._patched is None:
            raise UsageError(f"a movable clock is advanced forward by a finite time, within its `async with` block: got {by!r}")
        loop = self._patched
        end = loop.time() + seconds
        known = sorted(handle.when() for handle in loop._scheduled if not handle.cancelled())
        while (left := end - loop.time()) > 0:
            await self._settle()
            timers = [handle.when() for handle in loop._scheduled if not handle.cancelled()]
            now = loop.time()
            due = min(timers, default=end) - now
            next_known = next((when for when in known if when > now), end) - now
            self._offset += min(max(due, min(seconds / _STEPS, next_known)), left)
        await self._settle()

    async def _settle(self) -> None:
        """Let everything run that is due, and give threads a moment."""
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.001)
