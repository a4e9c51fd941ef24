"""The end of a process. Threads and tasks that do not end are named, and do not hold it up.

Python waits at its end for every thread that is not a daemon, such as those of `asyncio.to_thread`, however long they take.
"""

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from config import signals
from runtime.stacks import blocking_threads, of_task, of_thread
from runtime.telemetry import logger

T = TypeVar("T")

_LOOK = 0.02
"""The seconds between two looks at the threads that have not ended."""
_CANCELLED = 1.0
"""The seconds that a cancelled task may take to end."""
left_behind: list[str] = []
"""What has not ended, although its time is over."""


def run(
    work: Coroutine[Any, Any, T], new_loop: Callable[[], asyncio.AbstractEventLoop] | None, *, debug: bool, patience: float
) -> T:
    """Run a coroutine in a new event loop, and wait until all tasks and threads have ended, or the patience is spent.

    Args:
        new_loop: makes the event loop; asyncio's own by default.
        patience: the seconds that threads may take, counted from the signal that stops the process or from the coroutine's end.
    """
    runner = asyncio.Runner(debug=debug or None, loop_factory=new_loop)
    if debug:
        runner.get_loop().slow_callback_duration = math.inf  # a handler in the debugger takes its time
    try:
        return runner.run(work)
    finally:
        left_behind.extend(runner.get_loop().run_until_complete(_unfinished(patience)))
        if not left_behind:
            runner.close()


async def _unfinished(patience: float) -> list[str]:
    """Wait for tasks and threads, and return what those are doing that do not end."""
    loop = asyncio.get_running_loop()
    since = time.monotonic() if signals.stopped_at is None else signals.stopped_at
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    stuck = (await asyncio.wait(tasks, timeout=_CANCELLED))[1] if tasks else set[asyncio.Task[Any]]()
    shutdown = loop.create_task(loop.shutdown_default_executor())  # lets its idle threads end
    while blocking_threads() and time.monotonic() < since + patience:
        await asyncio.sleep(_LOOK)
    threads = blocking_threads()
    if not threads:
        await shutdown
    return [f"{of_task(task)} in a task" for task in stuck] + [
        f"{of_thread(thread)} in the thread {thread.name}" for thread in threads
    ]


def leave(status: int) -> None:
    """End the process at once, and say what was left behind."""
    logger("node").error("the process ends although this has not ended: %s", ", ".join(left_behind))
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)
