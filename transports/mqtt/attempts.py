"""The attempts to reach a broker: which URL is next, and after which pause."""

from collections.abc import Callable, Sequence

from runtime import Random
from runtime.tasks import Backoff
from runtime.telemetry import logger
from transports.mqtt.broker import NotMqtt5

_RECONNECT = Backoff(0.05, 5.0)
"""Seconds between two attempts to connect, at most."""
_SHORT = 3.0
"""Seconds. After a connection that ended this soon, the pause before the next attempt grows."""
_FLAPPING = 6
"""The number of short connections in a row that is logged."""
_HOPELESS = 100
"""The number of failures that a refusal counts as: an operator has to act first, so the next attempt can wait."""


class Attempts:
    """The attempts of a link. Tries the brokers of a cluster in turn, and pauses after each round.

    Args:
        urls: the URLs of the brokers.
        client_id: the id of the node, for the log.
        password: returns the present password.

    Attributes:
        last_error: that the last attempt failed, and why; empty if it succeeded.
    """

    def __init__(
        self, urls: Sequence[str], client_id: str, random: Random, password: Callable[[], str | None] = lambda: None
    ) -> None:
        self.last_error: str = ""
        self.password: Callable[[], str | None] = password
        self._urls = urls
        self._client_id = client_id
        self._random = random
        self._log = logger("mqtt")
        self._failures = 0
        self._turn = 0
        self._short = 0

    @property
    def url(self) -> str:
        """The URL to connect to, or of the current connection."""
        return self._urls[self._turn % len(self._urls)]

    def refused(self, error: Exception) -> None:
        """Note that a broker refused the connection for a reason that trying again does not change."""
        said = self._said(error, "")
        self._log.error("%s", said)
        self._failed(_HOPELESS * len(self._urls), said)

    def failed(self, error: Exception) -> None:
        """Note that a broker could not be reached."""
        failures = self._failures + 1
        said = self._said(error, " cannot be reached")
        if failures <= len(self._urls) or failures == 5 or failures % 60 == 0:
            self._log.warning("%s (%d attempts; the node keeps trying)", said, failures)
        self._failed(failures, said)

    def _said(self, error: Exception, what: str) -> str:
        reason = str(error) or type(error).__name__
        return f"{self.url} {reason}" if isinstance(error, NotMqtt5) else f"{self.url}{what}: {reason}"

    def _failed(self, failures: int, said: str) -> None:
        self._failures, self.last_error = failures, said
        self._turn += 1

    def connected(self) -> None:
        """Note that there is a connection."""
        if self._failures > self._short:
            self._log.info("connected to %s", self.url)
        self.last_error = ""

    def lost(self, reason: str, seconds: float) -> None:
        """Note that a connection has ended after so many seconds.

        If connections keep ending at once, a balancer may be the reason, or a broker that is about to stop. This does not
        prove a takeover, and reconnecting faster would not help.
        """
        self._log.warning("the connection to %s was lost: %s", self.url, reason)
        if seconds > _SHORT:
            self._failures = self._short = 0
            return
        self._short += 1
        self._failures = self._short
        if self._short == _FLAPPING:
            self._log.warning(
                "%s has ended %d connections in a row within %g s: look at a balancer in between, at the broker's log, and for "
                "another client with the id %s; the node keeps trying",
                self.url, self._short, _SHORT, self._client_id,
            )  # fmt: skip
        self._turn += 1

    def pause(self) -> float:
        """Return the pause before the next attempt, in seconds: none before every broker was tried."""
        rounds, rest = divmod(self._failures, len(self._urls))
        return 0.0 if rest else _RECONNECT.delay(rounds, self._random)
