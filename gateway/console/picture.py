"""The picture of the running system: what its nodes have recorded, summed up for the console in bounded memory."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runtime.metrics import SECONDS
from runtime.node.observation import LogLine, Observed
from runtime.recorder import Edge, RecordedSpan, request_id_of

_WINDOW = 10
"""The ticks, one a second, over which rates and percentiles are counted."""
_MOST_TRACES, _MOST_SPANS = 300, 200
_MOST_LOGS = 2_000
_SPANS_A_SECOND = 200
"""The spans that the console takes each second, from all nodes; of more, it takes those of fewer traces."""
_SPARSEST = 1 << 16
_HIDDEN = "runtime"
"""Who asks for keys and revoked sessions, in every node."""

_Key = tuple[str, str, str, str]


class _Flow:
    """What went along an edge: one entry for each tick."""

    def __init__(self) -> None:
        self.counts: deque[tuple[int, int, Sequence[int]]] = deque(maxlen=_WINDOW)

    def summary(self) -> dict[str, Any]:
        """Return the rate, the errors, and the percentiles, in milliseconds."""
        return _summary(self.counts, len(self.counts))


class Picture:
    """What the console shows of the system.

    Attributes:
        one_in: of so many traces, the nodes record one.
        bounds: for each node, the numbers up to which its records are known.
    """

    def __init__(self) -> None:
        self.one_in: int = 1
        self._before: dict[str, tuple[str, dict[_Key, Edge]]] = {}
        self._flows: dict[_Key, _Flow] = {}
        self._traces: dict[str, list[RecordedSpan]] = {}
        self._changed: dict[str, None] = {}
        self._logs: deque[LogLine] = deque(maxlen=_MOST_LOGS)
        self._new_logs: list[LogLine] = []

    def __repr__(self) -> str:
        return f"<Picture {len(self._flows)} flows, {len(self._traces)} traces, {len(self._logs)} log lines>"

    def tick(self, observed: Mapping[str, Observed]) -> None:
        """Take what the nodes have recorded since the last tick, by the ids of the nodes."""
        new: dict[_Key, list[Edge]] = {}
        for node, found in observed.items():
            recording, before = self._before.get(node, ("", {}))
            if recording != found.recording:
                before = {}
            edges = {(edge.caller, edge.service, edge.name, edge.kind): edge for edge in found.edges}
            for key, edge in edges.items():
                if key[0] != _HIDDEN and (difference := _minus(edge, before.get(key))).count:
                    new.setdefault(key, []).append(difference)
            self._before[node] = found.recording, edges
            self._add_spans(found.spans)
            self._new_logs += found.logs
            self._logs += found.logs
        for node in self._before.keys() - observed.keys():
            del self._before[node]
        for key in new.keys() - self._flows.keys():
            self._flows[key] = _Flow()
        for key, flow in list(self._flows.items()):
            parts = new.get(key, [])
            flow.counts.append(
                (sum(one.count for one in parts), sum(one.errors for one in parts), _sum(one.buckets for one in parts))
            )
            if not any(count for count, _, _ in flow.counts):
                del self._flows[key]
        self._adapt(sum(len(found.spans) for found in observed.values()))

    def _adapt(self, spans: int) -> None:
        if spans > _SPANS_A_SECOND and self.one_in < _SPARSEST:
            self.one_in *= 2
        elif spans < _SPANS_A_SECOND // 4 and self.one_in > 1:
            self.one_in //= 2

    def _add_spans(self, spans: Sequence[RecordedSpan]) -> None:
        for span in spans:
            of_trace = self._traces.get(span.trace)
            if of_trace is None:
                if span.kind == "INTERNAL" and not span.error and not span.parent:
                    continue  # a timer that has done nothing worth showing
                while len(self._traces) >= _MOST_TRACES:
                    del self._traces[next(iter(self._traces))]
                of_trace = self._traces[span.trace] = []
            if len(of_trace) < _MOST_SPANS:
                of_trace.append(span)
                self._changed[span.trace] = None

    def flows(self) -> list[dict[str, Any]]:
        """Return the edges between services with what goes along each, and the messages that it consists of."""
        by_edge: dict[tuple[str, str, str], list[tuple[str, _Flow]]] = {}
        for (caller, service, name, kind), flow in self._flows.items():
            by_edge.setdefault((caller, service, kind), []).append((name, flow))
        return [
            {
                "caller": caller,
                "service": service,
                "kind": kind,
                **_summed(flow for _, flow in parts),
                "messages": [{"name": name, **flow.summary()} for name, flow in sorted(parts)],
            }
            for (caller, service, kind), parts in sorted(by_edge.items(), key=lambda one: one[0])
        ]

    def services(self) -> dict[str, dict[str, Any]]:
        """Return what each service takes: its rate, errors, and percentiles."""
        by_service: dict[str, list[_Flow]] = {}
        for (_, service, _, _), flow in self._flows.items():
            by_service.setdefault(service, []).append(flow)
        return {service: _summed(flows) for service, flows in by_service.items()}

    def new_traces(self) -> list[dict[str, Any]]:
        """Return summaries of the traces that have changed since this was asked."""
        changed, self._changed = self._changed, {}
        return [trace_summary(self._traces[id]) for id in changed if id in self._traces]

    def new_logs(self) -> list[LogLine]:
        """Return the log records that have come since this was asked."""
        found, self._new_logs = self._new_logs, []
        return found

    def traces(self) -> list[dict[str, Any]]:
        """Return summaries of all traces, the oldest first."""
        return [trace_summary(spans) for spans in self._traces.values()]

    def trace(self, id: str) -> list[RecordedSpan]:
        """Return the spans of a trace, in the order in which they have begun; empty if it is not known."""
        return sorted(self._traces.get(id, ()), key=lambda span: span.began)

    def logs(self, request: str = "", trace: str = "") -> list[LogLine]:
        """Return the log records, or those of one request or one trace."""
        return [line for line in self._logs if (not request or line.request == request) and (not trace or line.trace == trace)]


def trace_summary(spans: Sequence[RecordedSpan]) -> dict[str, Any]:
    """Return what a list of traces shows of one: of the span that has begun first, and how long all of them took."""
    first = min(spans, key=lambda span: span.began)
    end = max(span.began + span.seconds for span in spans)
    failed = next((span.error for span in sorted(spans, key=lambda span: span.began) if span.error), "")
    return {
        "trace": first.trace,
        "request": next((id for span in spans if (id := request_id_of(span))), ""),
        "name": first.name,
        "service": first.service,
        "services": sorted({span.service for span in spans}),
        "began": first.began,
        "ms": round((end - first.began) * 1000, 3),
        "spans": len(spans),
        "error": failed,
    }


def _minus(edge: Edge, before: Edge | None) -> Edge:
    if before is None:
        return edge
    buckets = tuple(now - then for now, then in zip(edge.buckets, before.buckets, strict=True))
    count, errors, seconds = edge.count - before.count, edge.errors - before.errors, edge.seconds - before.seconds
    return Edge(edge.caller, edge.service, edge.name, edge.kind, count, errors, seconds, buckets)


def _sum(buckets: Iterable[Sequence[int]]) -> Sequence[int]:
    return [sum(column) for column in zip(*buckets, strict=True)]


def _summed(flows: Iterable[_Flow]) -> dict[str, Any]:
    every = list(flows)
    return _summary([one for flow in every for one in flow.counts], max(len(flow.counts) for flow in every))


def _summary(counts: Iterable[tuple[int, int, Sequence[int]]], ticks: int) -> dict[str, Any]:
    found = list(counts)
    buckets = _sum(one for _, _, one in found if one)
    return {
        "rate": round(sum(count for count, _, _ in found) / ticks, 2),
        "errors": round(sum(errors for _, errors, _ in found) / ticks, 2),
        "p50": _percentile(buckets, 0.5),
        "p99": _percentile(buckets, 0.99),
    }


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
