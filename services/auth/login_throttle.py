"""A limit on the rate of login attempts, which slows down the guessing of passwords."""

from collections import OrderedDict, deque

from runtime import Clock
from services.auth.messages import TooManyAttempts

_WINDOW = 60.0
"""Seconds in which attempts are counted."""
_PER_SOURCE = 10
"""Attempts on one account from one source within the window."""
_PER_ACCOUNT = 50
"""Attempts on one account within the window, from all sources together that have not logged in to it before."""
_MAX_COUNTS = 200_000
"""Counts that are kept. Each attempt that makes one is followed by the hashing of a password, so there are fewer of them."""

_Key = tuple[str, str | None]
"""An account and a source; without a source, all that have not logged in to the account before."""


class LoginThrottle:
    """Counts the login attempts on each account in the last minute, by the source that they come from.

    So nobody can lock the owner of an account out: the attempts of others count for their own sources, and many sources
    together stop only those that have never logged in to the account. A refused attempt does not count, and a right password
    resets the count of its source.

    An account is an e-mail address or a user id, and a source the address of a client. No count is forgotten within its minute. The
    counts are kept in memory. A restart of the service forgets them.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._attempts: OrderedDict[_Key, deque[float]] = OrderedDict()  # by the time of the last attempt

    def record_attempt(self, account: str, source: str, *, familiar: bool) -> None:
        """Count an attempt. Call this before the password is verified, so that concurrent attempts count too.

        Args:
            account: the account.
            source: where the attempt comes from.
            familiar: whether the source has logged in to the account before.

        Raises:
            TooManyAttempts: if there were too many attempts in the last minute.
        """
        now = self._clock.monotonic()
        self._forget(now)
        limits: list[tuple[_Key, int]] = [((account, source), _PER_SOURCE)]
        if not familiar:
            limits.append(((account, None), _PER_ACCOUNT))
        for key, most in limits:  # check all before counting
            recent = self._attempts.get(key)
            while recent and recent[0] <= now - _WINDOW:
                recent.popleft()
            if recent is not None and len(recent) >= most:
                raise TooManyAttempts(int(recent[0] + _WINDOW - now) + 1)
        if not familiar and len(self._attempts) >= _MAX_COUNTS:
            raise TooManyAttempts(int(_WINDOW))
        for key, _ in limits:
            self._attempts.setdefault(key, deque()).append(now)
            self._attempts.move_to_end(key)

    def reset(self, account: str, source: str) -> None:
        """Forget the attempts of a source on an account, because the password was right."""
        self._attempts.pop((account, source), None)

    def _forget(self, now: float) -> None:
        """Forget the counts without an attempt in the window."""
        while self._attempts:
            key, attempts = next(iter(self._attempts.items()))
            if attempts and attempts[-1] > now - _WINDOW:
                return
            del self._attempts[key]
