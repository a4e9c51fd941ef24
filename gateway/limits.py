"""Limits on the number of concurrent requests and on the request rate of each client address."""

from collections import OrderedDict
from collections.abc import Callable

from gateway.problems import Problem
from gateway.settings import GatewaySettings

_MAX_ADDRESSES = 10_000
"""Client addresses whose rate is remembered. Beyond that, the one that has been idle longest is forgotten."""


class Limits:
    """Admits or refuses requests.

    Args:
        now: returns a monotonic time, in seconds.

    Attributes:
        running: the number of requests being handled.
        reading: the number of request bodies being read.
        draining: whether the gateway is stopping, so that every new request is refused.
    """

    def __init__(self, settings: GatewaySettings, now: Callable[[], float]) -> None:
        self.running = 0
        self.reading = 0
        self.draining = False
        self._settings = settings
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, address: str) -> None:
        """Count a new request against the rate limit of its client address.

        Raises:
            Problem: if the address exceeds its rate (429) or the gateway is stopping (503).
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
        """Count a request body whose reading starts. The caller must call `end_body` afterwards.

        Bodies have a separate limit, so that stalled ones do not block requests without a body.

        Raises:
            Problem: if too many bodies are being read (503).
        """
        if self.reading >= self._settings.max_requests:
            raise _overloaded()
        self.reading += 1

    def end_body(self) -> None:
        """Count a request body as read or failed."""
        self.reading -= 1

    def begin_request(self) -> None:
        """Count a request that has been read completely. The caller must call `end_request` afterwards.

        Raises:
            Problem: if too many requests are being handled (503).
        """
        if self.running >= self._settings.max_requests:
            raise _overloaded()
        self.running += 1

    def end_request(self) -> None:
        """Count a request as finished."""
        self.running -= 1

    def _spend(self, address: str) -> None:
        """Take a token from the token bucket of an address, which refills at the configured rate."""
        now = self._now()
        tokens, at = self._buckets.pop(address, (float(self._settings.burst), now))
        tokens = min(self._settings.burst, tokens + (now - at) * self._settings.rate)
        self._buckets[address] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > _MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        if tokens < 1:
            wait = int((1 - tokens) / self._settings.rate) + 1
            raise Problem(429, "too-many-requests", f"Too many requests: wait {wait} s.", [(b"retry-after", str(wait).encode())])


def _overloaded() -> Problem:
    return Problem(503, "overloaded", "Too many requests are under way: try again.", [(b"retry-after", b"1")])
