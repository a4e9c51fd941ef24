"""Time and random. Everything in a node takes both from here, so that both can be simulated."""

import asyncio
import base64
import os
import random
from datetime import UTC, datetime, timedelta
from time import time
from uuid import UUID


class Clock:
    """The node's time.

    `monotonic` is the event loop's own time: timers, `asyncio.timeout` and deadlines agree with it, and a loop
    with virtual time makes all of them virtual. `now` is the time of day.
    """

    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running event loop, remembered: asking asyncio for it is a system call each time."""
        loop = self._loop
        if loop is None or not loop.is_running():
            loop = self._loop = asyncio.get_running_loop()
        return loop

    def monotonic(self) -> float:
        """Seconds on the event loop's clock; only differences mean something."""
        return self.loop.time()

    def now(self) -> datetime:
        """The time of day, in UTC."""
        return datetime.fromtimestamp(self.timestamp(), UTC)

    def timestamp(self) -> float:
        """The time of day, in seconds since the epoch."""
        return time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock(Clock):
    """A clock whose time of day a test moves with `advance`; sleeping and timers still take the event loop's time.

    Args:
        start: the time of day at first, by default the real one.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._timestamp = (start or datetime.now(UTC)).timestamp()

    def timestamp(self) -> float:
        return self._timestamp

    def advance(self, delta: timedelta) -> None:
        """Moves the time of day forward."""
        self._timestamp += delta.total_seconds()


class Random:
    """The node's randomness: jitter, choices and ids from a generator that a seed makes repeatable.

    Secrets do not come from here: `token` always asks the operating system.
    """

    __slots__ = ("_clock", "_random")

    def __init__(self, clock: Clock, seed: int | None = None) -> None:
        self._clock = clock
        self._random = random.Random(seed)  # without a seed, from the operating system

    def random(self) -> float:
        """A float in [0, 1)."""
        return self._random.random()

    def jitter(self, seconds: float) -> float:
        """Between half of `seconds` and all of it, so that many who wait do not wake together."""
        return seconds * (0.5 + self._random.random() / 2)

    def sample(self, upper: int, count: int) -> list[int]:
        """`count` different integers below `upper`."""
        return self._random.sample(range(upper), count)

    def hex(self, length: int) -> str:
        """`length` hexadecimal digits, an even number of them."""
        return self._random.randbytes(length >> 1).hex()

    def uuid7(self) -> UUID:
        """A UUID of version 7 (RFC 9562, section 5.7): milliseconds, then random; sorts by time."""
        milliseconds = int(self._clock.timestamp() * 1000) & 0xFFFF_FFFF_FFFF
        value = milliseconds << 80 | 0x7 << 76 | self._random.getrandbits(12) << 64
        return UUID(int=value | 0b10 << 62 | self._random.getrandbits(62))

    @staticmethod
    def token(length: int = 32) -> str:
        """An unguessable URL-safe string made from `length` bytes of the operating system's randomness."""
        return base64.urlsafe_b64encode(os.urandom(length)).decode().rstrip("=")
