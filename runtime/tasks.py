"""Helpers for tasks that asyncio lacks: shielded work, watches, and backoff."""

import asyncio
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from types import CodeType
from typing import Any, NamedTuple, TypeVar

from runtime.clock import Random

T = TypeVar("T")


class Backoff(NamedTuple):
    """Exponential backoff with jitter.

    Attributes:
        base: the delay before any failure, in seconds; each failure doubles it.
        longest: the upper limit of the delay, in seconds.
    """

    base: float
    longest: float

    def delay(self, failures: int, random: Random) -> float:
        """Return the delay after `failures` failures in a row, in seconds: between half of it and all of it."""
        return random.jitter(min(self.base * 2 ** min(failures, 30), self.longest))


class SimulatedCrash(BaseException):
    """The end of the process, as a test simulates it. Nothing handles it, as nothing would run after a real one."""


async def finish(work: Awaitable[T]) -> T:
    """Await `work` to its end even if the current task is cancelled; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        import anyio

        with anyio.CancelScope(shield=True):  # an anyio scope around us would cancel again at every turn of the loop
            while not task.done():
                try:
                    await asyncio.wait((task,))
                except asyncio.CancelledError:
                    continue
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the cancellation takes precedence
        raise


async def abandonable(work: Coroutine[Any, Any, T], patience: float, abandon: Callable[[], None]) -> T:
    """Await a coroutine in its own task. If it does not end within `patience` seconds of a cancellation, leave it behind.

    Args:
        abandon: called before it is left behind.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        task.cancel()
        try:
            await asyncio.wait((task,), timeout=patience)
        finally:
            if not task.done():
                abandon()
            elif not task.cancelled():
                task.exception()  # marks it as retrieved: the cancellation takes precedence
        raise
    return task.result()


async def wait_for_event(event: asyncio.Event, seconds: float) -> bool:
    """Wait until an event is set, but no longer than `seconds`. Return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


@contextmanager
def watching(watch: Callable[[], Coroutine[Any, Any, None]], after: float) -> Generator[None, None, None]:
    """Run `watch` in a task while the block runs, but only if the block takes longer than `after` seconds.

    For watches that cost more than most blocks take.
    """
    loop = asyncio.get_running_loop()
    watcher: asyncio.Task[None] | None = None

    def start() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(after, start)
    try:
        yield
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


class Unfinished:
    """Coroutines that were made and have not ended yet, with the line of code where each was made."""

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: list[tuple[Any, str, CodeType, int, bool]] = []

    def track(
        self, name: str, work: Coroutine[Any, Any, T], callers: int = 2, *, must_end: bool = True
    ) -> Coroutine[Any, Any, T]:
        """Remember a coroutine until it ends, and return it.

        Args:
            name: how the code spells the call, for `describe`.
            callers: how many frames up the line is that made it; 1 is the caller of `track`.
            must_end: whether it has to end in time; otherwise, it is enough that it was awaited.
        """
        frame = sys._getframe(callers)  # pyright: ignore[reportPrivateUsage]
        made = self._made
        if len(made) > _MANY:
            made[:] = [one for one in made if one[0].cr_frame is not None]
        made.append((work, name, frame.f_code, frame.f_lineno, must_end))
        return work

    def describe(self) -> str | None:
        """Return which of them was made first and has not ended, as `tx.execute at service.py:18 …`; None if all have."""
        for work, name, code, line, must_end in self._made:
            if work.cr_frame is not None:  # a coroutine that has ended, or was cancelled before its start, has no frame
                created = inspect.getcoroutinestate(work) == inspect.CORO_CREATED
                if not created and not must_end:
                    continue
                how = "was never awaited" if created else "has not ended"
                return f"{name} at {os.path.basename(code.co_filename)}:{line} {how}"
        self._made.clear()
        return None

    def close(self) -> None:
        """Forget all of them. Those that were never awaited never run, and Python does not warn about them."""
        for work, *_ in self._made:
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()
        self._made.clear()


_MANY = 64
"""The number of remembered coroutines beyond which those that have ended are forgotten."""
