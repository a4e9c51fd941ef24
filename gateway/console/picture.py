"""The picture of the running system: what its nodes have recorded, summed up for the console in bounded memory."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from runtime.metrics import SECONDS
from runtime.node.observation import LogLine, Observe, Observed
from runtime.recorder import Edge, RecordedSpan, request_id_of
from runtime.tracing import CALLER

_WINDOW = 10
"""The ticks, about one a second, over which rates and percentiles are counted."""
_MISSED = 60
"""The ticks for which a node that does not answer is remembered."""
_MOST_TRACES, _MOST_SPANS = 300, 200
_MOST_LOGS = 2_000
_SPANS_A_TICK = 200
"""The spans that the console takes in a tick, from all nodes; of more, it takes those of fewer traces. Those that have failed do not count."""
_SPARSEST = 1 << 16
_HIDDEN = "runtime"
"""Who asks for keys and revoked sessions, in every node."""

_Key = tuple[str, str, str, str]


class _Node:
    """What is known of the recording of a node."""

    def __init__(self, found: Observed) -> None:
        self.recording = found.recording
        self.edges: dict[_Key, Edge] = {}
        self.span, self.log = found.last_span, found.last_log
        self.missed = 0


class _Tick(NamedTuple):
    """What went along an edge in a tick."""

    messages: int
    errors: int
    buckets: Sequence[int]


class Picture:
    """What the console shows of the system."""

    def __init__(self) -> None:
        self.one_in: int = 1
        """Of so many traces, the nodes record one."""
        self._nodes: dict[str, _Node] = {}
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._flows: dict[_Key, deque[_Tick]] = {}
        self._traces: dict[str, dict[tuple[str, str], RecordedSpan]] = {}
        self._changed: dict[str, None] = {}
        self._logs: deque[LogLine] = deque(maxlen=_MOST_LOGS)
        self._new_logs: list[LogLine] = []

    def __repr__(self) -> str:
        return f"<Picture {len(self._flows)} flows, {len(self._traces)} traces, {len(self._logs)} log lines>"

    def question(self, node: str) -> Observe:
        """Return the request for what a node has recorded since its last answer."""
        known = self._nodes.get(node)
        return Observe(one_in=self.one_in) if known is None else Observe(known.recording, known.span, known.log, self.one_in)

    def tick(self, answers: Mapping[str, Observed], seconds: float) -> None:
        """Take the answers of nodes, by their ids. A node that has not answered in time has its share in a later tick.

        Args:
            seconds: the time since the last tick.
        """
        self._seconds.append(seconds)
        new: dict[_Key, list[Edge]] = {}
        for node, found in answers.items():
            for key, difference in self._differences(node, found):
                new.setdefault(key, []).append(difference)
            self._add_spans(found.spans)
            self._new_logs += found.logs
            self._logs += found.logs
        for node, known in list(self._nodes.items()):
            known.missed = 0 if node in answers else known.missed + 1
            if known.missed > _MISSED:
                del self._nodes[node]
        for key in new.keys() - self._flows.keys():
            self._flows[key] = deque(maxlen=_WINDOW)
        for key, ticks in list(self._flows.items()):
            parts = new.get(key, [])
            buckets = _sum(one.buckets for one in parts)
            ticks.append(_Tick(sum(one.count for one in parts), sum(one.errors for one in parts), buckets))
            if not any(tick.messages for tick in ticks):
                del self._flows[key]
        self._adapt(sum(not span.error for found in answers.values() for span in found.spans))

    def _differences(self, node: str, found: Observed) -> Iterable[tuple[_Key, Edge]]:
        """Return what is new along each edge. Of a recording that was not known, nothing is: it may run for somebody else already."""
        known = self._nodes.get(node)
        edges = {
            (edge.caller, edge.service, edge.name, edge.kind): edge
            for edge in found.edges
            if edge.caller != _HIDDEN and len(edge.buckets) == len(SECONDS) + 1
        }
        before = edges if known is None or known.recording != found.recording else known.edges
        if known is None or known.recording != found.recording:
            known = self._nodes[node] = _Node(found)
        known.edges, known.span, known.log = edges, found.last_span, found.last_log
        differences = ((key, _minus(edge, before.get(key))) for key, edge in edges.items())
        return [(key, difference) for key, difference in differences if difference.count > 0]

    def _adapt(self, spans: int) -> None:
        if spans > _SPANS_A_TICK and self.one_in < _SPARSEST:
            self.one_in *= 2
        elif spans < _SPANS_A_TICK // 4 and self.one_in > 1:
            self.one_in //= 2

    def _add_spans(self, spans: Sequence[RecordedSpan]) -> None:
        for span in spans:
            of_trace = self._traces.get(span.trace)
            if of_trace is None:
                if span.kind == "INTERNAL" and not span.error and not span.parent:
                    continue  # a timer that has done nothing worth showing
                while len(self._traces) >= _MOST_TRACES:
                    del self._traces[next(iter(self._traces))]
                of_trace = self._traces[span.trace] = {}
            if len(of_trace) < _MOST_SPANS:
                of_trace[span.node, span.id] = span
                self._changed[span.trace] = None

    def flows(self) -> list[dict[str, Any]]:
        """Return the edges between services with what goes along each, and the messages that it consists of."""
        by_edge: dict[tuple[str, str, str], list[tuple[str, deque[_Tick]]]] = {}
        for (caller, service, name, kind), ticks in self._flows.items():
            by_edge.setdefault((caller, service, kind), []).append((name, ticks))
        return [
            {
                "caller": caller,
                "service": service,
                "kind": kind,
                **self._summary([ticks for _, ticks in parts]),
                "messages": [{"name": name, **self._summary([ticks])} for name, ticks in sorted(parts, key=lambda one: one[0])],
            }
            for (caller, service, kind), parts in sorted(by_edge.items(), key=lambda one: one[0])
        ]

    def services(self) -> dict[str, dict[str, Any]]:
        """Return what each service takes: its rate, errors, and percentiles."""
        by_service: dict[str, list[deque[_Tick]]] = {}
        for (_, service, _, _), ticks in self._flows.items():
            by_service.setdefault(service, []).append(ticks)
        return {service: self._summary(parts) for service, parts in by_service.items()}

    def _summary(self, parts: Sequence[deque[_Tick]]) -> dict[str, Any]:
        ticks = [tick for part in parts for tick in part]
        seconds = sum(list(self._seconds)[-max(len(part) for part in parts) :])
        buckets = _sum(tick.buckets for tick in ticks if tick.buckets)
        return {
            "rate": round(sum(tick.messages for tick in ticks) / seconds, 2),
            "errors": round(sum(tick.errors for tick in ticks) / seconds, 2),
            "p50": _percentile(buckets, 0.5),
            "p99": _percentile(buckets, 0.99),
        }

    def new_traces(self) -> list[dict[str, Any]]:
        """Return summaries of the traces that have changed since this was asked."""
        changed, self._changed = self._changed, {}
        return self._summaries(changed)

    def traces(self) -> list[dict[str, Any]]:
        """Return summaries of all traces, the oldest first."""
        return self._summaries(self._traces)

    def _summaries(self, ids: Iterable[str]) -> list[dict[str, Any]]:
        found = [list(self._traces[id].values()) for id in ids if id in self._traces]
        return [_trace_summary(spans) for spans in found if not any((CALLER, _HIDDEN) in span.attributes for span in spans)]

    def trace(self, id: str) -> list[RecordedSpan]:
        """Return the spans of a trace, in the order in which they have begun; empty if it is not known."""
        return sorted(self._traces.get(id, {}).values(), key=lambda span: span.began)

    def new_logs(self) -> list[LogLine]:
        """Return the log records that have come since this was asked."""
        found, self._new_logs = self._new_logs, []
        return found

    def logs(self, trace: str = "") -> list[LogLine]:
        """Return the log records, or those of one trace."""
        return [line for line in self._logs if not trace or line.trace == trace]


def _trace_summary(spans: Sequence[RecordedSpan]) -> dict[str, Any]:
    """Return what a list of traces shows of one: of the span that has begun first, and how long all of them took."""
    ordered = sorted(spans, key=lambda span: span.began)
    first, end = ordered[0], max(span.began + span.seconds for span in spans)
    return {
        "trace": first.trace,
        "request": next((id for span in ordered if (id := request_id_of(span))), ""),
        "name": first.name,
        "service": first.service,
        "services": sorted({span.service for span in spans}),
        "began": first.began,
        "ms": round((end - first.began) * 1000, 3),
        "spans": len(spans),
        "error": next((span.error for span in ordered if span.error), ""),
    }


def _minus(edge: Edge, before: Edge | None) -> Edge:
    if before is None:
        return edge
    buckets = tuple(now - then for now, then in zip(edge.buckets, before.buckets, strict=True))
    count, errors, seconds = edge.count - before.count, edge.errors - before.errors, edge.seconds - before.seconds
    return Edge(edge.caller, edge.service, edge.name, edge.kind, count, errors, seconds, buckets)


def _sum(buckets: Iterable[Sequence[int]]) -> Sequence[int]:
    return [sum(column) for column in zip(*buckets, strict=True)]


def _percentile(buckets: Sequence[int], share: float) -> float | None:
    """Return a percentile in milliseconds, between the bounds of its bucket in proportion; None without messages."""
    total = sum(buckets)
    if not total:
        return None
    wanted, below = share * total, 0
    for at, count in enumerate(buckets):
        if count and below + count >= wanted:
            lower = SECONDS[at - 1] if at else 0.0
            upper = SECONDS[min(at, len(SECONDS) - 1)]
            return round((lower + (upper - lower) * (wanted - below) / count) * 1000, 3)
        below += count
    raise AssertionError("the last bucket has the last message")
