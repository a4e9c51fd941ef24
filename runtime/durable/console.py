"""The console contract: the requests by which operators see and repair a service's streams. Every service answers them.

The gateway makes them for operators. `operations.py` answers them.
"""

from typing import Annotated, ClassVar

from msgspec import Meta

from runtime.contract.errors import ServiceError
from runtime.contract.messages import Contract, Request, Struct
from runtime.durable.dead_letters import DeadLetter
from runtime.storage.values import LARGEST

console: Contract = Contract("console")
"""The requests that every service answers to the gateway, for operators."""

MOST_LETTERS = 500
"""The number of dead letters in one page, and that one request drops, at most."""


class StreamReader(Struct):
    """A service for which a stream retains its events.

    Attributes:
        seq: the number of the last event that it is known to have applied.
        behind: how many events followed.
        silent: the seconds since it asked for events, without the time in which the publisher was not running.
    """

    reader: str
    seq: int
    behind: int
    silent: float


class StreamSubscription(Struct):
    """How far a service has applied the events of a publisher.

    Attributes:
        epoch: the epoch of the cursor; empty before the first event.
        seq: the number of the last event that was applied or skipped.
        head: the number of the publisher's last event; None if it is not known here.
        state: a name of `SubscriptionState`, or empty if the service is not running and nothing has stopped it.
        reason: why it is in this state.
        dead_letters: how many there are, of at most 10,000.
    """

    publisher: str
    epoch: str
    seq: int
    head: int | None
    state: str
    reason: str
    dead_letters: int

    @property
    def lag(self) -> int | None:
        """How many events have not been applied yet; None if the publisher's last event is not known."""
        return None if self.head is None else max(self.head - self.seq, 0)


class StreamReport(Struct):
    """The stream of a service, its readers, and its subscriptions.

    Attributes:
        head: the number of the last event; 0 if there is none.
        oldest: the number of the first event that is retained.
    """

    service: str
    epoch: str
    head: int
    oldest: int
    readers: tuple[StreamReader, ...]
    subscriptions: tuple[StreamSubscription, ...]


@console.message
class ShowStreams(Request[StreamReport]):
    """The stream of a service, its readers, and its subscriptions."""


class Resumed(Struct):
    """The types of events with which a subscription continues."""

    types: tuple[str, ...]


@console.message
class ResumeStream(Request[Resumed]):
    """Let a subscription continue that waits for an operator.

    Attributes:
        skip_to: the number of the event to continue with. By default, that is the oldest one that the publisher still has.
        known_types: continue without the events that this version cannot decode or does not take.
        set_aside: the number of an event to continue without.
    """

    publisher: str
    skip_to: Annotated[int, Meta(ge=1, le=LARGEST)] | None = None
    known_types: bool = False
    set_aside: Annotated[int, Meta(ge=1, le=LARGEST)] | None = None


@console.message
class ForgetReader(Request[None]):
    """Retain no more events for a reader."""

    reader: str


class DeadLetterInfo(Struct):
    """A dead letter without its body.

    Attributes:
        id: the id of the event.
        attempts: how often its handler has failed.
        error: the last error.
    """

    id: str
    publisher: str
    seq: int
    type: str
    at: str
    attempts: int
    error: str


class DeadLetterPage(Struct):
    """Some of the dead letters, the oldest first.

    Attributes:
        next: the id after which the next page begins; empty at the end.
    """

    items: tuple[DeadLetterInfo, ...]
    next: str = ""


@console.message
class ListDeadLetters(Request[DeadLetterPage]):
    """The dead letters of a service.

    Attributes:
        publisher: whose events; of all publishers, if empty.
        type: which events; of all types, if empty.
        after: the id after which the page begins.
    """

    publisher: str = ""
    type: str = ""
    after: str = ""
    limit: Annotated[int, Meta(ge=1, le=MOST_LETTERS)] = MOST_LETTERS


@console.message
class ShowDeadLetter(Request[DeadLetter]):
    """A dead letter with its body."""

    id: str


class RetryOutcome(Struct):
    """What has become of a dead letter.

    Attributes:
        error: the error of its handler; empty if it was applied.
        found: whether there is such a dead letter; somebody else may have applied or dropped it.
    """

    error: str
    found: bool = True


@console.message
class RetryDeadLetter(Request[RetryOutcome]):
    """Apply a dead letter again."""

    id: str


class Dropped(Struct):
    """How many dead letters were deleted."""

    count: int


@console.message
class DropDeadLetters(Request[Dropped]):
    """Delete dead letters. Their events are never applied."""

    ids: Annotated[tuple[str, ...], Meta(max_length=MOST_LETTERS)]


@console.message
class Drain(Request[None]):
    """Let the node finish its work and stop, as SIGTERM does."""


@console.message
class Refused(ServiceError):
    """The operator's request does not fit what is stored."""

    code: ClassVar[str] = "refused"
    status: ClassVar[int] = 409
    reason: str

    def __str__(self) -> str:
        return self.reason
