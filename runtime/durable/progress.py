"""The progress of a subscription: its state, and which event holds up all that follow it."""

import logging
from enum import Enum

import msgspec

from runtime.clock import Clock
from runtime.durable.stream import EventTooLarge, StreamEvent
from runtime.metrics import Metrics
from runtime.network.transport import MAX_BODY

HELD_SECONDS = 600.0
"""The seconds after which an event that is still not applied is named in the log and in the details of readiness."""
_AGAIN_SECONDS = 3600.0
"""The seconds after which such an event is logged again."""


class SubscriptionState(Enum):
    """What a subscription is doing."""

    NEW = "NEW"
    """It has not run yet."""
    PULLING = "PULLING"
    """It asks the publisher for events, or applies them."""
    WAITING = "WAITING"
    """It has applied everything, and waits for a hint or the next poll."""
    BACKING_OFF = "BACKING_OFF"
    """A transient error occurred: it waits before it tries again."""
    STANDBY = "STANDBY"
    """The cursor lists event types that this version does not handle. Instances of the newer version apply all events."""
    NEEDS_NEWER_VERSION = "NEEDS_NEWER_VERSION"
    """This version cannot decode the next event. It waits until an instance of a newer version has applied it."""
    EVENT_TOO_LARGE = "EVENT_TOO_LARGE"
    """The network does not carry the next event. It waits until the limit is raised, or an operator sets the event aside."""
    STOPPED = "STOPPED"
    """It waits until an operator resumes it."""


_BLOCKED = (
    SubscriptionState.STANDBY,
    SubscriptionState.NEEDS_NEWER_VERSION,
    SubscriptionState.EVENT_TOO_LARGE,
    SubscriptionState.STOPPED,
)


class Blocked(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stream whose events are not applied, for the details of readiness.

    Attributes:
        service: the subscriber.
        state: the state of its subscription.
        reason: why it waits.
        event: the type of the event that holds up all that follow it, and its number.
        seconds: how long it has been tried.
    """

    service: str
    publisher: str
    state: str
    reason: str
    event: str = ""
    seq: int = 0
    seconds: float = 0.0


class StreamStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a service has applied the events of a publisher, for the details of readiness.

    Attributes:
        service: the subscriber.
        lag: how many events it is known not to have applied yet.
        dead_letters: how many of the events are dead letters.
    """

    service: str
    publisher: str
    state: str
    lag: int = 0
    dead_letters: int = 0


class _Held:
    """The next event, which could not be applied."""

    def __init__(self, event: StreamEvent, since: float) -> None:
        self.event = event
        self.since = since
        self.tries = 0
        self.error = ""
        self.log_at = since + HELD_SECONDS


class Progress:
    """The state of one subscription, in its `repr`, the log, gauges, and the details of readiness.

    Args:
        service: the name of the subscribing service.
        publisher: the name of the publisher.

    Attributes:
        reason: why it is in its state.
        dead_letters: how many there are, as counted last.
    """

    def __init__(self, service: str, publisher: str, clock: Clock, metrics: Metrics, log: logging.Logger) -> None:
        self.state: SubscriptionState = SubscriptionState.NEW
        self._service = service
        self._publisher = publisher
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self.reason: str = ""
        self.dead_letters: int = 0
        self._applied = 0
        self._head = 0
        self._held: _Held | None = None
        labels = {"service": service, "publisher": publisher}
        metrics.gauge("subscription_blocked", lambda: self.state in _BLOCKED, **labels)
        metrics.gauge("subscription_held_seconds", lambda: self._held_seconds, **labels)
        metrics.gauge("subscription_lag_events", lambda: self.lag, **labels)
        metrics.gauge("subscription_cursor_events", lambda: self.applied, **labels)
        metrics.begin(**labels)
        metrics.gauge("dead_letters_waiting", lambda: self.dead_letters, **labels)

    def __repr__(self) -> str:
        return f"{self.state.value}: {self.reason}" if self.reason else self.state.value

    def enter(self, state: SubscriptionState, reason: str = "") -> None:
        """Change the state. The states that need an operator or a newer version are logged, once for each reason."""
        if (state, reason) == (self.state, self.reason):
            return
        self.state, self.reason = state, reason
        publisher = self._publisher
        if state is SubscriptionState.STOPPED:
            self._log.error("the stream of %s stopped: %s; resume it when its cause is known", publisher, reason)
        elif state is SubscriptionState.STANDBY:
            self._log.error("the stream of %s stands down: a newer version of this service also takes %s", publisher, reason)
        elif state is SubscriptionState.NEEDS_NEWER_VERSION:
            self._metrics.count("events_need_newer_version_total", service=self._service, publisher=publisher)
            self._log.error(
                "the stream of %s waits: the next event needs a newer version of this service (%s); run that version, or "
                "`callboard resume %s %s --known-types` to continue without what this one cannot decode",
                publisher, reason, self._service, publisher,
            )  # fmt: skip

    @property
    def applied(self) -> int:
        """The number of the last event that was applied."""
        return self._applied

    @property
    def lag(self) -> int:
        """How many events are known not to have been applied yet."""
        return max(self._head - self._applied, 0)

    def reached(self, seq: int, head: int | None = None) -> None:
        """Record the number of the last event that was applied, and that of the publisher's last event if it is known."""
        self._applied = seq
        self._head = max(self._head, seq) if head is None else head

    def hinted(self, head: int) -> None:
        """Record the number of the publisher's last event, as a hint has it."""
        self._head = head

    def status(self) -> StreamStatus | None:
        """Return how far the subscription is, or None if nothing waits and nothing is left."""
        if not (self.lag or self.dead_letters or self.state in _BLOCKED):
            return None
        return StreamStatus(self._service, self._publisher, self.state.value, self.lag, self.dead_letters)

    def too_large(self, error: EventTooLarge) -> None:
        """Enter the state in which the next event is larger than the network carries."""
        if self.state is not SubscriptionState.EVENT_TOO_LARGE:
            self._metrics.count("events_too_large_total", service=self._service, publisher=self._publisher)
        said = f"{error.event} {error.seq} has {error.size:,} bytes, more than the {error.limit:,} that the network carries"
        if (self.state, self.reason) != (SubscriptionState.EVENT_TOO_LARGE, said):
            self._log.error(
                "the stream of %s waits: %s; %s%s",
                self._publisher, said,
                "raise the limit of the broker and transport.mqtt.max_packet or transport.http.max_body, or " * (error.limit < MAX_BODY - 1024),
                self._remedy(error.seq, "to continue without the event"),
            )  # fmt: skip
        self.enter(SubscriptionState.EVENT_TOO_LARGE, said)

    def hold(self, event: StreamEvent, error: object) -> None:
        """Record that the next event could not be applied. After ten minutes it is logged."""
        now = self._clock.monotonic()
        if self._held is None or self._held.event.id != event.id:
            self._held = _Held(event, now)
        held = self._held
        held.tries += 1
        held.error = str(error) or type(error).__name__
        if now >= held.log_at:
            held.log_at = now + _AGAIN_SECONDS
            self._log.error(
                "%s %d of %s could not be applied for %d minutes (%d tries), and holds up all events after it: %s; if it has to "
                "wait no longer, %s",
                event.type, event.seq, self._publisher, (now - held.since) // 60, held.tries, held.error,
                self._remedy(event.seq, "to make it a dead letter"),
            )  # fmt: skip

    def _remedy(self, seq: int, to: str) -> str:
        return f"`callboard resume {self._service} {self._publisher} --set-aside {seq}` {to}"

    def advance(self) -> None:
        """Record that the next event was applied or set aside."""
        self._held = None

    @property
    def held_tries(self) -> int:
        """How often the next event was tried without success."""
        return 0 if self._held is None else self._held.tries

    @property
    def _held_seconds(self) -> float:
        return 0.0 if self._held is None else self._clock.monotonic() - self._held.since

    def blocked(self) -> Blocked | None:
        """Return what the subscription waits for, or None if it makes progress."""
        held, seconds = self._held, self._held_seconds
        if held is not None and seconds >= HELD_SECONDS:
            return Blocked(
                self._service, self._publisher, self.state.value, held.error, held.event.type, held.event.seq, round(seconds)
            )  # fmt: skip
        if self.state in _BLOCKED:
            return Blocked(self._service, self._publisher, self.state.value, self.reason)
        return None
