"""Deadlines of handlers: a periodic look at the new ones instead of a timer for each."""

import asyncio
from typing import NamedTuple

from runtime.clock import Clock
from runtime.service.context import Context

_INTERVAL = 0.02
"""The seconds between two looks at the handlers that have begun. One that ends sooner never gets a timer."""


class _Entry(NamedTuple):
    task: "asyncio.Task[object]"
    cancelling: int
    """How many cancellations of the task were pending when the handler began."""


class _Armed:
    """A handler with a timer."""

    __slots__ = ("cancelling", "expired", "task", "timer")

    def __init__(self, entry: _Entry) -> None:
        self.task, self.cancelling = entry
        self.expired = False
        self.timer: asyncio.TimerHandle | None = None

    def expire(self) -> None:
        self.expired = True
        self.task.cancel()


class Deadlines:
    """Cancels the tasks of handlers at their deadlines.

    Most handlers end within milliseconds. So `start` only records the handler, and a look every 20 ms arms timers for those
    that are still running. A deadline that is nearer than that gets its timer immediately, so none is ever late.
    """

    __slots__ = ("_armed", "_clock", "_looking", "_new")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._new: dict[Context, _Entry] = {}
        self._armed: dict[Context, _Armed] = {}
        self._looking = False

    def start(self, ctx: Context) -> None:
        """Cancel the current task when the context's deadline comes, unless `stop` is called first."""
        loop = self._clock.loop
        task = asyncio.current_task(loop)
        assert task is not None
        entry = _Entry(task, task.cancelling())
        if ctx.fixed_deadline is not None and ctx.fixed_deadline - loop.time() < _INTERVAL:
            self._arm(ctx, entry)
            return
        self._new[ctx] = entry
        if not self._looking:
            self._looking = True
            loop.call_later(_INTERVAL, self._look)

    def stop(self, ctx: Context) -> bool:
        """End the enforcement. Return True if the deadline has cancelled the task, and nothing else has.

        Calling it for a context that was not started is harmless.
        """
        if self._new.pop(ctx, None) is not None:
            return False
        armed = self._armed.pop(ctx, None)
        if armed is None:
            return False
        if not armed.expired:
            assert armed.timer is not None
            armed.timer.cancel()
            return False
        return armed.task.uncancel() <= armed.cancelling

    def _look(self) -> None:
        new, self._new = self._new, {}
        self._looking = False
        for ctx, entry in new.items():
            self._arm(ctx, entry)

    def _arm(self, ctx: Context, entry: _Entry) -> None:
        armed = self._armed[ctx] = _Armed(entry)
        armed.timer = self._clock.loop.call_at(ctx.deadline, armed.expire)
