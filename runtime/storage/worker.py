"""A thread that runs functions for an event loop, one after another."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple["asyncio.Future[Any]", Callable[[], Any]]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Worker:
    """A thread that runs functions, one after another, in the order in which they were submitted.

    It is a daemon: a program that fails before it stops the thread still ends.

    Attributes:
        pending: how many functions have been submitted whose outcome has not been delivered.
    """

    def __init__(self, name: str) -> None:
        self.pending: int = 0
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._outcomes: deque[_Outcome] = deque()
        self._waking = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Run a function in the thread. It runs even if the returned future is cancelled."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.pending += 1
        self._jobs.put((future, function))
        return future

    def stop(self) -> None:
        """Let the thread end when it has run what was submitted."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function = job
            try:
                outcome: _Outcome = future, function(), None
            except BaseException as error:
                outcome = future, None, error
            self._outcomes.append(outcome)
            del job, future, function, outcome  # while the thread waits, it keeps nothing alive
            if not self._waking:  # else the event loop has not begun to deliver yet
                self._waking = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop is closed, so that nobody waits any more

    def _deliver(self) -> None:
        self._waking = False
        while self._outcomes:
            future, result, error = self._outcomes.popleft()
            self.pending -= 1
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
