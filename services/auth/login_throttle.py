"""A limit on the rate of login attempts, which slows down the guessing of passwords."""

from collections import OrderedDict

from runtime import Clock
from services.auth.messages import TooManyAttempts

_MAX_ATTEMPTS = 10
_WINDOW = 60.0
"""Seconds in which an account may have at most `_MAX_ATTEMPTS` attempts."""
_MAX_ACCOUNTS = 10_000
"""Accounts whose attempts are remembered. Beyond that, the least recently used one is forgotten."""


class LoginThrottle:
    """Counts the login attempts of each account in the last minute. An attempt with the right password resets the count.

    An account is an e-mail address or a user id. The counts are kept in memory and lost in a restart.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._attempts: OrderedDict[str, list[float]] = OrderedDict()

    def record_attempt(self, account: str) -> None:
        """Count an attempt. Call this before the password is verified, so that concurrent attempts count too.

        Raises:
            TooManyAttempts: if the account had 10 attempts in the last minute.
        """
        now = self._clock.timestamp()
        recent = [at for at in self._attempts.pop(account, ()) if at > now - _WINDOW]
        self._attempts[account] = recent
        if len(recent) >= _MAX_ATTEMPTS:
            raise TooManyAttempts(int(recent[0] + _WINDOW - now) + 1)
        recent.append(now)
        while len(self._attempts) > _MAX_ACCOUNTS:
            self._attempts.popitem(last=False)

    def reset(self, account: str) -> None:
        """Forget the attempts of an account, because the password was right."""
        self._attempts.pop(account, None)
