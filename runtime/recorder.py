"""The recorder: what a node does, kept in bounded memory for the console while somebody looks at it.

It counts who has sent what to whom, with durations and errors, and keeps the last spans. It records every message, whatever part of
the traces goes to a collector. Under load it keeps the spans of some traces only, and of all that fail: the same ones on every node.
"""

from collections import deque
from collections.abc import Callable

from runtime.clock import Clock, Random
from runtime.contract.messages import Struct
from runtime.metrics import SECONDS, Histogram
from runtime.trace import child, new_trace, trace_id
from runtime.tracing import CALLER, MESSAGE, REQUEST_ID, Attributes, Begun, Kind, Tracing, error_name

_MOST_SPANS = 2_000
_MOST_EDGES = 1_000
_OWN = ("console.", "stream.", "gateways.")
"""What begins the names of messages by which Callboard itself works."""
CLIENTS = "clients"
"""Who sends requests to the gateway, as an edge names them."""


def is_own_page(path: str) -> bool:
    """Return whether a path is one of the console's own pages and streams."""
    return path.startswith(("/console", "/live"))


class RecordedSpan(Struct):
    """What a node did for a message.

    Attributes:
        trace: the id of the trace.
        parent: the id of the span that has caused it, which may be on another node; empty for none.
        began: the seconds since 1970.
        error: the name of the error; empty if it has not failed.
        attributes: names and values.
    """

    trace: str
    id: str
    parent: str
    service: str
    node: str
    name: str
    kind: Kind
    began: float
    seconds: float
    error: str
    attributes: tuple[tuple[str, str], ...]


class Edge(Struct):
    """The messages of one kind from one service to another, since the node has begun to record.

    Attributes:
        kind: `call`, `event`, `signal`, or `http` (requests of clients).
        buckets: the number of messages by duration. The upper bounds are `SECONDS` in `runtime/metrics.py`; the last has none.
    """

    caller: str
    service: str
    name: str
    kind: str
    count: int
    errors: int
    seconds: float
    buckets: tuple[int, ...]


class _Counted:
    __slots__ = ("errors", "histogram")

    def __init__(self) -> None:
        self.errors = 0
        self.histogram = Histogram(SECONDS)


class Recorder(Tracing):
    """Records the spans of a node.

    Args:
        within: sends spans to a collector; None if there is none.

    Attributes:
        recorded: how many spans were kept so far. The last 2,000 of them are still here.
        one_in: of so many traces, one is kept.
    """

    def __init__(self, node: str, clock: Clock, random: Random, within: Tracing | None) -> None:
        self.recorded: int = 0
        self.one_in: int = 1
        self.exports: bool = within is not None and within.exports
        self._node = node
        self._within = within
        self._random = random
        self._time: Callable[[], float] = clock.timestamp
        self._stopwatch: Callable[[], float] = clock.stopwatch
        self._spans: deque[RecordedSpan] = deque(maxlen=_MOST_SPANS)
        self._edges: dict[tuple[str, str, str, str], _Counted] = {}

    def __repr__(self) -> str:
        return f"<Recorder {self.recorded} spans, {len(self._edges)} edges>"

    def unsampled(self, name: str, kind: Kind) -> str | None:
        return None

    def wants(self, parent: str) -> bool:
        return True

    def begin(
        self, service: str, name: str, kind: Kind, parent: str | None, attributes: Attributes, *, link: bool = False
    ) -> Begun | None:
        within = None if self._within is None else self._within.begin(service, name, kind, parent, attributes, link=link)
        if within is None and name.startswith(_OWN):
            return None
        return _Recording(self, within, service, name, kind, parent, attributes)

    def trace_within(self, parent: str | None) -> str:
        """Return the `traceparent` of what happens within a new span that no collector gets."""
        return new_trace(self._random) if parent is None else child(parent, self._random)

    def now(self) -> tuple[float, float]:
        """Return the seconds since 1970, and those of the stopwatch."""
        return self._time(), self._stopwatch()

    def note(
        self, trace: str, parent: str | None, service: str, name: str, kind: Kind, began: tuple[float, float], error: str,
        attributes: dict[str, str | int],
    ) -> None:  # fmt: skip
        """Take note of a span that has ended."""
        if name.startswith(_OWN) or is_own_page(str(attributes.get("url.path", ""))):
            return
        seconds = self._stopwatch() - began[1]
        edge = _edge_of(service, name, kind, attributes)
        if edge is not None:
            self._count(edge, seconds, failed=bool(error))
        id = trace_id(trace)
        if not error and int(id[-8:], 16) % self.one_in:
            return
        named = tuple((key, str(value)) for key, value in attributes.items())
        self._spans.append(
            RecordedSpan(
                id, trace[36:52], "" if parent is None else parent[36:52], service, self._node, name, kind, began[0], seconds, error, named,
            )
        )  # fmt: skip
        self.recorded += 1

    def _count(self, edge: tuple[str, str, str, str], seconds: float, *, failed: bool) -> None:
        counted = self._edges.get(edge)
        if counted is None:
            if len(self._edges) >= _MOST_EDGES:
                return
            counted = self._edges[edge] = _Counted()
        counted.histogram.observe(seconds)
        counted.errors += failed

    def edges(self) -> tuple[Edge, ...]:
        """Return what was counted."""
        return tuple(
            Edge(*edge, one.histogram.count, one.errors, one.histogram.sum, tuple(one.histogram.counts))
            for edge, one in self._edges.items()
        )

    def spans(self, after: int, limit: int) -> tuple[tuple[RecordedSpan, ...], int]:
        """Return the spans after the given number, at most so many, and the number of the last of them."""
        first = self.recorded - len(self._spans)
        begin = min(max(after - first, 0), len(self._spans))
        found = tuple(self._spans[at] for at in range(begin, min(begin + limit, len(self._spans))))
        return found, first + begin + len(found)


class _Recording(Begun):
    __slots__ = ("_attributes", "_began", "_kind", "_name", "_parent", "_recorder", "_service", "_within")

    def __init__(
        self, recorder: Recorder, within: Begun | None, service: str, name: str, kind: Kind, parent: str | None, attributes: Attributes
    ) -> None:  # fmt: skip
        self._recorder = recorder
        self._within = within
        self._service = service
        self._name = name
        self._kind: Kind = kind
        self._parent = parent
        self._attributes = dict(attributes)
        self._began = recorder.now()
        self.trace: str = recorder.trace_within(parent) if within is None else within.trace

    def add(self, attributes: Attributes) -> None:
        self._attributes.update(attributes)
        if self._within is not None:
            self._within.add(attributes)

    def rename(self, name: str) -> None:
        self._name = name
        if self._within is not None:
            self._within.rename(name)

    def end(self, error: BaseException | None = None, code: str = "") -> None:
        if self._within is not None:
            self._within.end(error, code)
        name = error_name(error, code)
        self._recorder.note(
            self.trace, self._parent, self._service, self._name, self._kind, self._began, name, self._attributes
        )  # fmt: skip


def _edge_of(service: str, name: str, kind: Kind, attributes: dict[str, str | int]) -> tuple[str, str, str, str] | None:
    """Return the edge that a message has come along: caller, service, name, and kind; None for what no message has caused."""
    if kind == "SERVER":
        if "http.request.method" in attributes:
            return CLIENTS, service, name, "http"
        return str(attributes.get(CALLER) or CLIENTS), service, name, "call"
    if kind == "CONSUMER":
        return str(attributes.get(CALLER, "")), service, name.removeprefix("process "), str(attributes.get(MESSAGE, "event"))
    return None


def request_id_of(span: RecordedSpan) -> str:
    """Return the id of the client's request that a span belongs to; empty if it is not known."""
    return dict(span.attributes).get(REQUEST_ID, "")
