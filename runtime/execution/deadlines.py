"""Deadlines of handlers: a sweep over the running handlers every 20 ms, instead of a timer for each handler."""

import asyncio
from asyncio import current_task

from runtime.clock import Clock
from runtime.service.context import Context

_INTERVAL = 0.02
"""The seconds between two sweeps. A handler that ends sooner never gets a timer."""


class _ArmedDeadline:
    """A handler with a timer."""

    __slots__ = ("_cancelling", "_expired", "_task", "_timer")

    def __init__(self, task: "asyncio.Task[object]", cancelling: int, at: float, loop: asyncio.AbstractEventLoop) -> None:
        self._task = task
        self._cancelling = cancelling
        self._expired = False
        self._timer = loop.call_at(at, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def stop(self) -> bool:
        """Cancel the timer. Return True if the deadline has cancelled the task, and nothing else has."""
        if not self._expired:
            self._timer.cancel()
            return False
        return self._task.uncancel() <= self._cancelling


class Deadlines:
    """Cancels the tasks of handlers at their deadlines.

    Most handlers end within milliseconds. So `start` only records the handler, and a sweep every 20 ms arms timers for those
    that are still running. A deadline that is nearer than that gets its timer immediately. One that nothing has fixed yet is
    fixed by the sweep, and so is at most 20 ms late.

    Attributes:
        unarmed: the handlers that began after the last sweep, with their tasks. Nothing had cancelled these tasks.
        sweeping: whether a sweep is due, so that a handler may be added to `unarmed`.
        loop: the event loop, once a handler was started.
    """

    __slots__ = ("_armed", "_clock", "loop", "sweeping", "unarmed")

    def __init__(self, clock: Clock) -> None:
        self.unarmed: dict[Context, asyncio.Task[object]] = {}
        self._armed: dict[Context, _ArmedDeadline] = {}
        self._clock = clock
        self.loop: asyncio.AbstractEventLoop | None = None
        self.sweeping: bool = False

    def start(self, ctx: Context) -> None:
        """Cancel the current task when the context's deadline comes, unless `stop` is called first."""
        loop = self.loop
        if loop is None:
            loop = self.loop = self._clock.loop
        task = current_task(loop)  # with the loop: finding the running one is a system call
        assert task is not None
        fixed, parent = ctx.fixed_deadline, ctx.parent
        if fixed is None and parent is not None:
            fixed = parent.fixed_deadline
        cancelling = task.cancelling()
        if cancelling or (fixed is not None and fixed - loop.time() < _INTERVAL):
            self._armed[ctx] = _ArmedDeadline(task, cancelling, ctx.deadline, loop)
            return
        self.unarmed[ctx] = task
        if not self.sweeping:
            self.sweeping = True
            loop.call_later(_INTERVAL, self._sweep, loop)

    def stop(self, ctx: Context) -> bool:
        """End the enforcement. Return True if the deadline has cancelled the task, and nothing else has.

        Calling it for a context that was not started is harmless.
        """
        if self.unarmed.pop(ctx, None) is not None:
            return False
        armed = self._armed.pop(ctx, None)
        return armed is not None and armed.stop()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.sweeping = False
        for ctx, task in self.unarmed.items():
            self._armed[ctx] = _ArmedDeadline(task, 0, ctx.deadline, loop)
        self.unarmed.clear()
