"""Time and randomness. Everything in a node gets both from here, so that a test can control them."""

import asyncio
import base64
import os
import random
from datetime import UTC, datetime, timedelta
from time import time
from uuid import UUID


class Clock:
    """The time of a node.

    `monotonic` is the time of the event loop: timers, `asyncio.timeout`, and deadlines agree with it, and a loop with
    virtual time makes all of them virtual. `now` is the time of day.
    """

    _loop: asyncio.AbstractEventLoop | None = None

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

    async def sleep(self, seconds: float) -> None:
        """Suspend the current task for so many seconds."""
        await asyncio.sleep(seconds)


class ManualClock(Clock):
    """A clock whose time of day moves only when a test calls `advance`. Sleeping and timers take real time.

    Args:
        start: the time of day at the start; the real one by default.

    Raises:
        ValueError: if `start` has no timezone.
    """

    def __init__(self, start: datetime | None = None) -> None:
        if start is not None:
            _require_timezone(start)
        self._timestamp = (start or datetime.now(UTC)).timestamp()

    def timestamp(self) -> float:
        return self._timestamp

    def advance(self, delta: timedelta) -> None:
        """Move the time of day forward."""
        self._timestamp += delta.total_seconds()


class Random:
    """The random values of a node: jitter, choices, and ids from a generator that a seed makes repeatable.

    `token` is the exception: secrets always come from the operating system.

    Args:
        clock: the clock for the time in ids.
        seed: makes the values repeatable; without it, the operating system seeds the generator.
    """

    __slots__ = ("_clock", "_random")

    def __init__(self, clock: Clock, seed: int | None = None) -> None:
        self._clock = clock
        self._random = random.Random(seed)

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
        return self._random.randbytes(length >> 1).hex()

    def uuid7(self) -> UUID:
        """Return a UUID of version 7 (RFC 9562, section 5.7): the time in milliseconds, then random bits. It sorts by time."""
        milliseconds = int(self._clock.timestamp() * 1000) & 0xFFFF_FFFF_FFFF
        value = milliseconds << 80 | 0x7 << 76 | self._random.getrandbits(12) << 64
        return UUID(int=value | 0b10 << 62 | self._random.getrandbits(62))

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
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _require_timezone(moment: datetime) -> None:
    if moment.utcoffset() is None:
        raise ValueError("it has no timezone: expected an aware datetime, such as clock.now()")
