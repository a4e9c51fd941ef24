"""Guessing passwords is slowed down: so many tries a minute for each user, right or wrong, until one is right."""

from collections import OrderedDict

from runtime import Clock
from services.auth.messages import TooManyAttempts

_MOST = 10
_WINDOW = 60.0
_USERS = 10_000


class LoginThrottle:
    """The tries of the last minute, by e-mail address or user id. In memory: a restart forgets them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tries: OrderedDict[str, list[float]] = OrderedDict()

    def begin(self, who: str) -> None:
        """Counts a try before it is looked at, so that many at once count too.

        Raises:
            TooManyAttempts: there were too many.
        """
        now = self._clock.timestamp()
        recent = [at for at in self._tries.pop(who, ()) if at > now - _WINDOW]
        self._tries[who] = recent
        if len(recent) >= _MOST:
            raise TooManyAttempts(int(recent[0] + _WINDOW - now) + 1)
        recent.append(now)
        while len(self._tries) > _USERS:
            self._tries.popitem(last=False)

    def right(self, who: str) -> None:
        """The password was right: earlier tries are forgiven."""
        self._tries.pop(who, None)
