"""Log lines that messages from outside can cause: bounded, however many messages come."""

import asyncio
import logging
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from runtime.clock import Clock

REPEAT_SECONDS = 60.0
"""The seconds between two counts of what is repeated."""
_MOST = 256
"""The number of different lines of one log that are distinguished at a time. All others share one count."""
_SUMMARY = 300
"""The characters of a line in full that its count repeats."""


class _Others(NamedTuple):
    """The key of the lines of a log that are not distinguished."""

    log: str


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
        self._of_log: Counter[str] = Counter()
        self._counting: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Repeats of {len(self._known)} lines>"

    def tag(self, key: Hashable) -> str | None:
        """Count a line that was logged in full with a tag, and return the tag. Return None if it has to be logged in full."""
        known = self._known.get(key)
        return None if known is None or not self._is_repeated(known) else known.tag

    @staticmethod
    def _is_repeated(known: _Repeated) -> bool:
        """Count a line, unless it is one of those that are logged in full."""
        if known.left:
            known.left -= 1
            return False
        known.count += 1
        return True

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
            tag: what `tag` returns from then on. The keys of lines with a tag must come from the code, so that they are few.
            in_full: how many lines are logged in full before they are counted.
        """
        if not tag and key not in self._known and self._of_log[log.name] >= _MOST:
            key = _Others(log.name)
        known = self._known.get(key)
        if known is not None and self._is_repeated(known):
            return
        log.log(level, message, *args, exc_info=exc_info, extra=extra)
        if known is not None:
            return
        self._known[key] = _Repeated(log, level, (message % args if args else message)[:_SUMMARY], tag, in_full - 1)
        self._of_log[log.name] += not tag
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
                self._of_log[known.log.name] -= not known.tag
                continue
            others = ", and other lines" if isinstance(key, _Others) else ""
            known.log.log(known.level, "%d more within a minute%s: %s", known.count, others, known.summary)
            known.count = 0

    def close(self) -> None:
        """Log what was counted last. Calling it twice is harmless."""
        self._log_counts()
        self._known.clear()
        self._of_log.clear()
        if self._counting is not None:
            self._counting.cancel()
