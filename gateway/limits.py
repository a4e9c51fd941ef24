"""Limits on what all clients may have under way, and on what one client address may have of it."""

from collections import OrderedDict
from collections.abc import Callable

from gateway.problems import Problem
from gateway.settings import GatewaySettings
from gateway.shares import Shares, too_many

_MAX_ADDRESSES = 100_000
"""Client addresses whose rate is remembered. Beyond that, the one that has been idle longest is forgotten."""


class Limits:
    """Admits or refuses requests.

    An address is what `gateway.addresses.source` returns, so that all addresses of one IPv6 client count as one.

    Args:
        now: returns a monotonic time, in seconds.

    Attributes:
        running: the number of requests being handled.
        reading: the number of request bodies being read.
    """

    def __init__(self, settings: GatewaySettings, now: Callable[[], float]) -> None:
        self.running = 0
        self.reading = 0
        self._settings = settings
        self._requests = _Rate(settings.rate, settings.burst, now)
        self._logins = _Rate(settings.login_rate, settings.login_burst, now)
        self._bodies_of = Shares(settings.bodies_per_address, settings.max_requests, settings.body_timeout)
        self._logins_of = Shares(settings.logins_per_address, settings.max_requests // 2, settings.request_timeout * 0.8)

    def admit(self, address: str) -> None:
        """Count a new request against the rate limit of its client address.

        Raises:
            Problem: if the address exceeds its rate (429).
        """
        if self._settings.rate:
            self._requests.spend(address)

    async def begin_body(self, address: str) -> None:
        """Count a request body whose reading starts, once its address has room in its share. The caller must call `end_body` afterwards.

        Bodies have a separate limit, so that stalled ones do not block requests without a body.

        Raises:
            Problem: if too many bodies of the address wait (429), or too many bodies are being read (503).
        """
        if not self._bodies_of.begin_now(address):
            await self._bodies_of.begin(address)
        if self.reading >= self._settings.max_requests:
            self._bodies_of.end(address)
            raise _overloaded()
        self.reading += 1

    def end_body(self, address: str) -> None:
        """Count a request body as read or failed."""
        self.reading -= 1
        self._bodies_of.end(address)

    async def begin_login(self, address: str) -> None:
        """Count a request that makes auth hash a password, once its address has room in its share. The caller must call `end_login` afterwards.

        Raises:
            Problem: if the address exceeds its rate of such requests, or too many of them wait (429).
        """
        self._logins_of.check_room(address)
        if self._settings.login_rate:
            self._logins.spend(address)
        await self._logins_of.begin(address)

    def end_login(self, address: str) -> None:
        """Count a login as finished."""
        self._logins_of.end(address)

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


class _Rate:
    """A token bucket for each address, which refills at the configured rate."""

    def __init__(self, rate: float, burst: int, now: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, address: str) -> None:
        """Take a token from the bucket of an address. Raises `Problem` if it is empty (429)."""
        now = self._now()
        tokens, at = self._buckets.pop(address, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        self._buckets[address] = (tokens - 1 if tokens >= 1 else tokens, now)
        self._forget(now)
        if tokens < 1:
            raise too_many(int((1 - tokens) / self._rate) + 1)

    def _forget(self, now: float) -> None:
        """Forget the addresses whose buckets are full again: at most two each time, so that no request pays for many."""
        for _ in range(2):
            address, (tokens, at) = next(iter(self._buckets.items()))
            if len(self._buckets) <= _MAX_ADDRESSES and tokens + (now - at) * self._rate < self._burst:
                return
            del self._buckets[address]


def _overloaded() -> Problem:
    return Problem(503, "overloaded", "Too many requests are under way: try again.", [(b"retry-after", b"1")])
