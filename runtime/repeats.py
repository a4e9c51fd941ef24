"""Log lines that messages from outside can cause: bounded, however many messages come."""

import asyncio
import logging
from collections.abc import Hashable, Mapping

from runtime.clock import Clock

REPEAT_SECONDS = 60.0
"""The seconds between two counts of what is repeated."""
_MOST = 256
"""The number of different lines that are distinguished at a time. All others share one count."""
_SUMMARY = 300
"""The characters of a line in full that its count repeats."""
_OTHERS = object()
"""The key of the lines that are not distinguished."""


def fault(error: BaseException) -> Hashable:
    """Return what is the same for errors that the same line of code raises: part of the key of their line in the log."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return type(error), None if place is None else (place.tb_frame.f_code.co_filename, place.tb_lineno)


class _Repeated:
    __slots__ = ("count", "left", "level", "log", "summary", "tag")

    def __init__(self, log: logging.Logger, level: int, summary: str, tag: str, left: int) -> None:
        self.log = log
        self.level = level
        self.summary = summary
        self.tag = tag
        self.left = left
        self.count = 0


class Repeats:
    """Logs the first of equal lines in full, and then their number each minute.

    A line that was not repeated for a minute is forgotten, so that the next one is logged in full again.

    Args:
        clock: says when a minute is over.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[Hashable, _Repeated] = {}
        self._counting: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Repeats of {len(self._known)} lines>"

    def repeated(self, key: Hashable) -> str | None:
        """Count a line that was logged in full already, and return its tag. Return None if it has to be logged in full."""
        known = self._known.get(key)
        if known is None and len(self._known) >= _MOST:
            known = self._known.get(_OTHERS)
        if known is None:
            return None
        if known.left:
            known.left -= 1
            return None
        known.count += 1
        return known.tag

    def log(
        self,
        log: logging.Logger,
        level: int,
        key: Hashable,
        message: str,
        *args: object,
        exc_info: BaseException | None = None,
        extra: Mapping[str, object] | None = None,
        tag: str = "",
        in_full: int = 1,
    ) -> None:
        """Log a line, or count it if it was logged within the last minute.

        Args:
            key: identifies equal lines, without the parts that differ from message to message.
            tag: what `repeated` returns from then on.
            in_full: how many lines are logged in full before they are counted.
        """
        if self.repeated(key) is not None:
            return
        log.log(level, message, *args, exc_info=exc_info, extra=extra)
        if key in self._known:
            return
        if len(self._known) >= _MOST:
            key = _OTHERS
        self._known[key] = _Repeated(log, level, (message % args if args else message)[:_SUMMARY], tag, in_full - 1)
        if self._counting is None or self._counting.done():
            self._counting = self._clock.loop.create_task(self._count())

    async def _count(self) -> None:
        while self._known:
            await self._clock.sleep(REPEAT_SECONDS)
            self._log_counts()

    def _log_counts(self) -> None:
        for key, known in list(self._known.items()):
            if not known.count:
                del self._known[key]
                continue
            others = ", and other lines" if key is _OTHERS else ""
            known.log.log(known.level, "%d more within a minute%s: %s", known.count, others, known.summary)
            known.count = 0

    def close(self) -> None:
        """Log what was counted last. Calling it twice is harmless."""
        self._log_counts()
        self._known.clear()
        if self._counting is not None:
            self._counting.cancel()
