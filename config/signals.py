"""The signals that stop a command, which a child process does not inherit.

An event loop learns of signals through a file descriptor. A forked child has the same descriptor and the same handlers: a
signal that is sent to the child would reach the event loop of its parent, and leave the child running.
"""

import asyncio
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from runtime.telemetry import logger

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
failure: str | None = None
"""Why the process stops, if no signal is the reason."""
stopped_at: float | None = None
"""When a signal has stopped the process, as `time.monotonic` returns it."""
_installed: dict[signal.Signals, Any] = {}
"""The handlers that the event loop has installed for them."""


_stop_now: list[Callable[[], object]] = []


class _Forking(threading.local):
    """The signals that were blocked in a thread before it began to fork."""

    blocked: set[int]


_forking = _Forking()


def stop_signal() -> asyncio.Event:
    """Handle SIGTERM, SIGINT, and SIGHUP. Return an event that the first of them sets; a second one ends the process at once.

    SIGHUP stays ignored if it was (`nohup`). Children that this process forks get the default handlers.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    numbers = [one for one in _STOPPING if one is not signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]

    _stop_now.append(lambda: loop.call_soon_threadsafe(stop.set))

    def handle(number: signal.Signals) -> None:
        logger("node").info("%s: the node finishes its work and stops", number.name)
        global stopped_at  # noqa: PLW0603  # a process is stopped once
        stopped_at = time.monotonic()
        stop.set()
        _installed.clear()
        for other in numbers:
            loop.remove_signal_handler(other)

    for number in numbers:
        loop.add_signal_handler(number, handle, number)
        _installed[number] = signal.getsignal(number)
    _keep_from_children()
    return stop


def output_gone(stream: IO[str], name: str) -> None:
    """Stop the process in order, because nobody reads a stream any more. Later output to it is dropped."""
    global failure  # noqa: PLW0603  # the first reason counts
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if failure is None:
        failure = f"{name} has gone away: its reader has ended"
        for stop in _stop_now:
            with suppress(RuntimeError):  # the event loop is closed
                stop()


@functools.cache  # a registration cannot be undone, and one is enough
def _keep_from_children() -> None:
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_restore_in_child)


def _block() -> None:
    """Hold signals back, so that none reaches a child that still has the handlers of its parent."""
    _forking.blocked = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())}


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.blocked)


def _restore_in_child() -> None:
    try:
        signal.set_wakeup_fd(-1)
        for number, handler in _installed.items():
            if signal.getsignal(number) is handler:  # the service has not replaced it
                signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
        _installed.clear()
        _unblock()
    except KeyboardInterrupt:  # Python ignores an exception that leaves this function
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
