"""Limits: how many requests are under way, and how many one client address may make."""

from collections import OrderedDict
from collections.abc import Callable

from gateway.problems import Problem
from gateway.settings import GatewaySettings

_ADDRESSES = 10_000


class Limits:
    """Admits requests.

    Args:
        now: seconds on a clock that only differences matter of.
    """

    def __init__(self, settings: GatewaySettings, now: Callable[[], float]) -> None:
        self.running = 0
        self.reading = 0
        self.draining = False
        self._settings = settings
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def arrive(self, address: str) -> None:
        """A request has come.

        Raises:
            Problem: there are too many from this address (429), or the gateway is stopping (503).
        """
        if self.draining:
            raise Problem(
                503,
                "draining",
                "The gateway is stopping: try again elsewhere.",
                [(b"retry-after", b"1"), (b"connection", b"close")],
            )
        if self._settings.rate:
            self._spend(address)

    def begin_body(self) -> None:
        """A request's body is being read; `end_body` follows. Bodies that stall keep nobody from asking without one.

        Raises:
            Problem: too many are being read (503).
        """
        if self.reading >= self._settings.max_requests:
            raise _overloaded()
        self.reading += 1

    def end_body(self) -> None:
        """The body is there, or has failed."""
        self.reading -= 1

    def enter(self) -> None:
        """Takes a request in, once it is wholly there; `leave` follows.

        Raises:
            Problem: too many are under way (503).
        """
        if self.running >= self._settings.max_requests:
            raise _overloaded()
        self.running += 1

    def leave(self) -> None:
        """A request has ended."""
        self.running -= 1

    def _spend(self, address: str) -> None:
        """Takes a token from the address's bucket, which fills at the rate."""
        now = self._now()
        tokens, at = self._buckets.pop(address, (float(self._settings.burst), now))
        tokens = min(self._settings.burst, tokens + (now - at) * self._settings.rate)
        self._buckets[address] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        if tokens < 1:
            wait = int((1 - tokens) / self._settings.rate) + 1
            raise Problem(429, "too-many-requests", f"Too many requests: wait {wait} s.", [(b"retry-after", str(wait).encode())])


def _overloaded() -> Problem:
    return Problem(503, "overloaded", "Too many requests are under way: try again.", [(b"retry-after", b"1")])
