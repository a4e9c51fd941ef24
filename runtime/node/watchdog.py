"""The watchdog: a thread that notices when a handler blocks the event loop, and names the handler and the line."""

import asyncio
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Iterable
from time import monotonic
from types import CodeType, FrameType
from typing import NamedTuple

from runtime.service.service import Service

_INTERVAL = 0.02
"""The seconds between two probes of an event loop that answers. A reported duration is too short by no more than this."""
_STILL = 10.0
"""The seconds after which a block is reported although it has not ended."""
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class _Sample(NamedTuple):
    """What the thread of the event loop is doing."""

    frame: FrameType | None
    """The frame of the handler, or if there is none, the innermost one outside of libraries."""
    title: str
    line: str


class Watchdog:
    """Watches the event loop of a node in a thread. Messages cost nothing extra.

    Args:
        services: the classes whose handlers can be named.
        seconds: how long the event loop may be blocked before that is reported.
        log: the log for the reports.
    """

    def __init__(self, services: Iterable[type[Service]], seconds: float, log: logging.Logger) -> None:
        self._titles = {code: title for service in services for code, title in _handlers(service)}
        self._seconds = seconds
        self._log = log
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start to watch the running event loop."""
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        threading.Thread(target=self._watch, args=(loop, thread), name="callboard-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        answered_at = 0.0

        def answer() -> None:
            nonlocal answered_at
            answered_at = monotonic()
            answered.set()

        while not self._stopping.wait(_INTERVAL):
            answered, asked_at = threading.Event(), monotonic()
            try:
                loop.call_soon_threadsafe(answer)
            except RuntimeError:  # the event loop is closed
                return
            if answered.wait(self._seconds / 2):
                continue
            first = self._sample(thread)
            if answered.wait(self._seconds / 2):
                continue
            sample = self._sample(thread)
            # Two samples, because many short callbacks together also delay the answer, and none of them is to blame
            blames = f"{sample.title} blocked" if sample.frame is first.frame else "many callbacks together have blocked"
            line = sample.line if sample.frame is first.frame else f"now at {sample.line}"
            del first, sample  # they keep the handler's variables alive
            if not answered.wait(max(_STILL - self._seconds, 0)):
                self._log.warning("%s the event loop for %.1f s, and still does (%s)", blames, monotonic() - asked_at, line)
                while not answered.wait(_INTERVAL):
                    if self._stopping.is_set():
                        return
            self._log.warning("%s the event loop for %.1f s (%s)", blames, answered_at - asked_at, line)

    def _sample(self, thread: int) -> _Sample:
        """Return what the thread is doing: the handler, and the innermost line that it has reached outside of libraries."""
        blocked: FrameType | None = None
        frame = innermost = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
        while frame is not None:
            if blocked is None and not frame.f_code.co_filename.startswith((*_LIBRARIES, "<")):
                blocked = frame
            title = self._titles.get(frame.f_code)
            if title is not None:
                return _Sample(frame, title, _line(blocked or frame))
            frame = frame.f_back
        shown = blocked or innermost
        return _Sample(shown, "something" if shown is None else shown.f_code.co_qualname, "?" if shown is None else _line(shown))


def _line(frame: FrameType) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _handlers(service: type[Service]) -> Iterable[tuple[CodeType, str]]:
    """Yield the code of every handler and hook of a service class, with its title."""
    definition = service.definition
    messages = (*definition.requests.values(), *definition.events.values(), *definition.signals.values())
    functions = {handler.name: handler.function for handler in messages}
    functions |= {timer.name: timer.function for timer in definition.timers}
    functions |= {"on_start": service.on_start, "on_stop": service.on_stop}
    for name, function in functions.items():
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code, f"{service.__name__}.{name}"
