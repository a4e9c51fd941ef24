"""Spans: what a node did for a message and how long it took.

A span's parent is the `traceparent` of its message, so that the spans of all services make one trace. Names and attributes follow
the semantic conventions of OpenTelemetry for HTTP, RPC, messaging, and databases. `runtime/otel.py` sends spans to a collector;
`runtime/recorder.py` keeps them for the console.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

Attributes = Mapping[str, str | int]

Kind = Literal["SERVER", "CLIENT", "PRODUCER", "CONSUMER", "INTERNAL"]

CALLER = "callboard.caller"
"""The attribute with the service that has sent the message."""
MESSAGE = "callboard.message"
"""The attribute with the kind of a message: `event` or `signal`."""
REQUEST_ID = "callboard.request_id"
"""The attribute with the id of the client's request."""


class Begun(ABC):
    """A span that has begun, in the current task.

    Attributes:
        trace: the `traceparent` of what happens within it.
    """

    __slots__ = ("trace",)

    trace: str

    @abstractmethod
    def add(self, attributes: Attributes) -> None:
        """Add attributes."""

    @abstractmethod
    def rename(self, name: str) -> None:
        """Give the span the name that is known now."""

    @abstractmethod
    def end(self, error: BaseException | None = None, code: str = "") -> None:
        """End the span.

        Args:
            error: why it has failed; None if it has not.
            code: names the error, and says that it has failed.
        """


class Tracing(ABC):
    """Begins the spans of the services of a node.

    Attributes:
        exports: whether spans go to a collector.
    """

    exports: bool

    @abstractmethod
    def unsampled(self, name: str, kind: Kind) -> str | None:
        """Return the `traceparent` of a new trace that nobody wants, or None if a span has to begin it.

        Where few traces are sampled, nearly every request of a client asks this, and then begins no span.
        """

    @abstractmethod
    def wants(self, parent: str) -> bool:
        """Return whether anybody wants a span whose cause has this `traceparent`. Its attributes need not be made otherwise."""

    @abstractmethod
    def begin(
        self, service: str, name: str, kind: Kind, parent: str | None, attributes: Attributes, *, link: bool = False
    ) -> Begun | None:
        """Begin a span. Return None if nobody wants it.

        Args:
            service: the service that does it.
            name: what is done.
            parent: the `traceparent` of its cause; None for the root of a new trace.
            link: whether the span has a link to its cause, too.
        """


def error_name(error: BaseException | None, code: str) -> str:
    """Return the name of the error with which a span ends, or an empty text if it has not failed."""
    return code or ("" if error is None else type(error).__qualname__)
