"""Limits on what all clients may have under way, and on what one client address may have of it."""

from collections import Counter, OrderedDict
from collections.abc import Callable

from gateway.problems import Problem
from gateway.settings import GatewaySettings

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
        self._bodies_of: Counter[str] = Counter()
        self._logins_of: Counter[str] = Counter()

    def admit(self, address: str) -> None:
        """Count a new request against the rate limit of its client address.

        Raises:
            Problem: if the address exceeds its rate (429).
        """
        if self._settings.rate:
            self._requests.spend(address)

    def begin_body(self, address: str) -> None:
        """Count a request body whose reading starts. The caller must call `end_body` afterwards.

        Bodies have a separate limit, so that stalled ones do not block requests without a body.

        Raises:
            Problem: if the address has its share of bodies under way (429), or too many bodies are being read (503).
        """
        if self.reading >= self._settings.max_requests:
            raise _overloaded()
        _begin(self._bodies_of, address, self._settings.bodies_per_address)
        self.reading += 1

    def end_body(self, address: str) -> None:
        """Count a request body as read or failed."""
        self.reading -= 1
        _end(self._bodies_of, address)

    def begin_login(self, address: str) -> None:
        """Count a request that makes auth hash a password. The caller must call `end_login` afterwards.

        Raises:
            Problem: if the address exceeds its rate of such requests, or has its share of them under way (429).
        """
        if self._logins_of[address] < self._settings.logins_per_address and self._settings.login_rate:
            self._logins.spend(address)
        _begin(self._logins_of, address, self._settings.logins_per_address)

    def end_login(self, address: str) -> None:
        """Count a login as finished."""
        _end(self._logins_of, address)

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
            raise _too_many(int((1 - tokens) / self._rate) + 1)

    def _forget(self, now: float) -> None:
        """Forget the addresses whose buckets are full again: at most two each time, so that no request pays for many."""
        for _ in range(2):
            address, (tokens, at) = next(iter(self._buckets.items()))
            if len(self._buckets) <= _MAX_ADDRESSES and tokens + (now - at) * self._rate < self._burst:
                return
            del self._buckets[address]


def _begin(under_way: Counter[str], address: str, most: int) -> None:
    """Count what an address has under way. Raises `Problem` if it has its share already (429)."""
    if under_way[address] >= most:
        raise _too_many(1)
    under_way[address] += 1


def _end(under_way: Counter[str], address: str) -> None:
    under_way[address] -= 1
    if not under_way[address]:
        del under_way[address]


def _too_many(seconds: int) -> Problem:
    retry_after = (b"retry-after", str(seconds).encode())
    return Problem(429, "too-many-requests", f"Too many requests: wait {seconds} s.", [retry_after])


def _overloaded() -> Problem:
    return Problem(503, "overloaded", "Too many requests are under way: try again.", [(b"retry-after", b"1")])
