"""File descriptors: every connection and every open file takes one, and the process has a limit."""

import errno
import os
from contextlib import suppress

from runtime.execution.environment import Environment

_LOOK = 1.0
"""The seconds between two looks."""
_AGAIN = 60.0
"""The seconds after which a shortage that lasts is logged again."""
_SHORT = 0.9
"""The share of the limit above which descriptors are short."""


def limit() -> int:
    """Return how many descriptors this process may have open; 0 if that is not known."""
    try:
        import resource
    except ImportError:  # the platform has no such limit
        return 0
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def in_use() -> int:
    """Return how many descriptors this process has open."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder)) - 1  # without the one that lists them
        except OSError as error:
            if error.errno == errno.EMFILE:
                return limit()
    return 0


def _lowest_free() -> int | None:
    """Return the lowest free descriptor; None if there is none."""
    try:
        free = os.dup(2)
    except OSError as error:
        return None if error.errno in (errno.EMFILE, errno.ENFILE) else 0  # standard error may be closed
    os.close(free)
    return free


async def watch_descriptors(environment: Environment) -> None:
    """Log when descriptors run short, when there are none left, and when there are enough again. It never returns."""
    clock, log = environment.clock, environment.log
    said, said_at = "", 0.0
    while True:
        free, most = _lowest_free(), limit()
        now = clock.monotonic()
        state = "none" if free is None else "short" if most and free >= most * _SHORT else ""
        if state != said or (state and now - said_at >= _AGAIN):
            text = "raise the limit (ulimit -n, LimitNOFILE=), or find what keeps connections or files open"
            with suppress(OSError):
                if state == "none":
                    log.error("all %d file descriptors are in use: no connection and no file can be opened: %s", most, text)
                elif state == "short":
                    log.warning("%s of %d file descriptors are in use: %s", free, most, text)
                else:
                    log.info("there are enough file descriptors again")
            said, said_at = state, now
        await clock.sleep(_LOOK)
