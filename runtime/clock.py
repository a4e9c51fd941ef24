"""Time and randomness. Everything in a node gets both from here, so that a test can control them."""

import asyncio
import base64
import math
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import perf_counter, time
from uuid import UUID

_REMEMBERED = 16 * 60.0
"""Seconds for which `Clock.possible` allows for a time of day that the clock no longer shows: longer than an access token lives."""
_SAME = 0.5
"""Seconds by which two readings of the machine's clock may differ without it having been set."""


class Clock:
    """The time of a node.

    `monotonic` is the time of the event loop: timers, `asyncio.timeout`, and deadlines agree with it, and a loop with
    virtual time makes all of them virtual. `now` is the time of day, for people and for other machines. It leaps when
    somebody sets the machine's clock, so durations that are stored are measured on `steady`.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _start: float | None = None
    _lowest: tuple[float, float] = (math.inf, -math.inf)  # the time of day minus the elapsed time, and when it was last so
    _highest: tuple[float, float] = (-math.inf, -math.inf)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running event loop. It is cached, because asyncio makes a system call each time it is asked."""
        loop = self._loop
        if loop is None or not loop.is_running():
            loop = self._loop = asyncio.get_running_loop()
        return loop

    def monotonic(self) -> float:
        """Return the time of the event loop, in seconds. Only differences have a meaning."""
        return self.loop.time()

    def now(self) -> datetime:
        """Return the time of day, in UTC."""
        return datetime.fromtimestamp(self.timestamp(), UTC)

    def timestamp(self) -> float:
        """Return the time of day, in seconds since 1970."""
        return time()

    def steady(self) -> float:
        """Return the time for stored durations: the time of day at the first call, plus the seconds since then.

        Setting the machine's clock does not change it. Another process starts from another time of day, so a stored time
        that is in the future counts as now.
        """
        if self._start is None:
            self._start = self.timestamp() - self._elapsed()
        return self._start + self._elapsed()

    def adopt(self) -> None:
        """Let `steady` continue from the time of day, if that is ahead. `steady` never goes back."""
        self._start = max(self.steady(), self.timestamp()) - self._elapsed()

    def steady_now(self) -> datetime:
        """Return `steady` as a moment in UTC."""
        return datetime.fromtimestamp(self.steady(), UTC)

    def possible(self) -> tuple[float, float]:
        """Return the earliest and the latest time of day that it is now, in seconds since 1970, as far as this clock can tell.

        They are equal, unless the machine's clock was set in the last quarter of an hour. Until then, what was stamped by
        the time of day before still counts.
        """
        now, elapsed = self.timestamp(), self._elapsed()
        offset = now - elapsed
        if offset < self._lowest[0] + _SAME or elapsed - self._lowest[1] > _REMEMBERED:
            self._lowest = (offset, elapsed)
        if offset > self._highest[0] - _SAME or elapsed - self._highest[1] > _REMEMBERED:
            self._highest = (offset, elapsed)
        return min(now, self._lowest[0] + elapsed), max(now, self._highest[0] + elapsed)

    def _elapsed(self) -> float:
        """Return the time that only passes, in seconds."""
        return self.monotonic()

    @property
    def stopwatch(self) -> Callable[[], float]:
        """What returns the time for durations that are measured, in seconds.

        The event loop's own time may stand still while a handler runs.
        """
        return perf_counter

    async def sleep(self, seconds: float) -> None:
        """Suspend the current task for so many seconds."""
        await asyncio.sleep(seconds)


class ManualClock(Clock):
    """A clock whose time of day moves only when a test calls `advance` or `leap`. Sleeping and timers take real time.

    Args:
        start: the time of day at the start; the real one by default.

    Raises:
        ValueError: if `start` has no timezone.
    """

    def __init__(self, start: datetime | None = None) -> None:
        if start is not None:
            _require_timezone(start)
        self._timestamp = (start or datetime.now(UTC)).timestamp()
        self._passed = 0.0

    def timestamp(self) -> float:
        return self._timestamp

    def _elapsed(self) -> float:
        return self._passed

    def advance(self, delta: timedelta) -> None:
        """Let time pass: the time of day and stored durations move forward.

        A negative `delta` takes back time that has passed. If it is more than has passed, the rest is a leap.
        """
        self._timestamp += delta.total_seconds()
        self._passed = max(self._passed + delta.total_seconds(), 0.0)

    def leap(self, delta: timedelta) -> None:
        """Set the clock forward or back, as an operator or NTP does. No time passes: durations do not change."""
        self._timestamp += delta.total_seconds()


class Random:
    """The random values of a node: jitter, choices, and ids from a generator that a seed makes repeatable.

    `token` is the exception: secrets always come from the operating system.

    Args:
        clock: the clock for the time in ids.
        seed: makes the values repeatable; without it, the operating system seeds the generator.
    """

    __slots__ = ("_clock", "_last", "_random")

    def __init__(self, clock: Clock, seed: int | None = None) -> None:
        self._clock = clock
        self._random = random.Random(seed)
        self._last = 0

    def random(self) -> float:
        """Return a float in [0, 1)."""
        return self._random.random()

    def jitter(self, seconds: float) -> float:
        """Return a duration between half of `seconds` and all of it, so that many waiters do not wake at once."""
        return seconds * (0.5 + self._random.random() / 2)

    def sample(self, upper: int, count: int) -> list[int]:
        """Return `count` different integers below `upper`."""
        return self._random.sample(range(upper), count)

    def hex(self, length: int) -> str:
        """Return `length` hexadecimal digits; `length` is even."""
        return self._random.getrandbits(4 * length).to_bytes(length >> 1, "little").hex()

    def uuid7(self) -> UUID:
        """Return a UUID of version 7 (RFC 9562, section 5.7): the time in milliseconds, then random bits.

        Each is greater than the one before, also within a millisecond and after the clock was set back: it then continues
        from the last one by a random step (section 6.2, method 2). Ids of other processes, and of this one before a restart,
        are not ordered with them: list rows by a number instead.
        """
        return UUID(int=self._next_uuid7())

    def uuid7_text(self) -> str:
        """Return a UUID of version 7 as text, like `str(uuid7())`."""
        digits = f"{self._next_uuid7():032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def _next_uuid7(self) -> int:
        milliseconds = int(self._clock.timestamp() * 1000) & 0xFFFF_FFFF_FFFF
        value = milliseconds << 74 | self._random.getrandbits(74)
        if value <= self._last or milliseconds == self._last >> 74:
            value = self._last + 1 + self._random.getrandbits(32)
        self._last = value
        high, low = value >> 62, value & (1 << 62) - 1  # the time and 12 random bits, and 62 random bits
        return high >> 12 << 80 | 0x7 << 76 | (high & 0xFFF) << 64 | 0b10 << 62 | low

    @staticmethod
    def token(length: int = 32) -> str:
        """Return an unguessable URL-safe string of `length` bytes from the operating system."""
        return base64.urlsafe_b64encode(os.urandom(length)).decode().rstrip("=")


def rfc3339(moment: datetime) -> str:
    """Return a moment in UTC as RFC 3339 text with microseconds, for example `2026-11-29T08:00:00.000000Z`.

    Raises:
        ValueError: if the moment has no timezone: it would be taken for this machine's local time.
        OverflowError: if it is not within the years 1 to 9999 in UTC.
    """
    _require_timezone(moment)
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[: -len("+00:00")] + "Z"


def _require_timezone(moment: datetime) -> None:
    if moment.utcoffset() is None:
        raise ValueError("it has no timezone: expected an aware datetime, such as clock.now()")
