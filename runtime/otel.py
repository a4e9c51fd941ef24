"""Spans as OpenTelemetry records them. Where a trace is not sampled, no span is made at all."""

from contextvars import Token
from typing import Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.context import Context as OtelContext
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer

from runtime.clock import Random
from runtime.trace import new_trace
from runtime.tracing import Attributes, Begun, Kind, Tracing, error_name

_SAMPLED = "13579bdf"
"""The last digits of a `traceparent` whose trace is sampled."""


class Spans(Protocol):
    """Makes the spans of a service.

    Attributes:
        follows_parent: whether a message in a trace that is not sampled makes no span either.
    """

    follows_parent: bool

    def samples_root(self, trace: int, name: str, kind: Kind) -> bool:
        """Return whether a new trace is sampled. If it is, the next span without a parent has its id."""
        ...

    def tracer(self, service: str, node: str) -> Tracer:
        """Return the tracer of a service on a node."""
        ...


class _OtelSpan(Begun):
    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        found = span.get_span_context()
        self.trace: str = f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"
        self._token: Token[OtelContext] = otel_context.attach(otel.set_span_in_context(span))

    def add(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def end(self, error: BaseException | None = None, code: str = "") -> None:
        name = error_name(error, code)
        if name:
            self._span.set_attribute("error.type", name)
            self._span.set_status(Status(StatusCode.ERROR, name))
        self._span.end()
        otel_context.detach(self._token)


class OtelTracing(Tracing):
    """Begins the spans of the services of a node, for a collector."""

    def __init__(self, spans: Spans, node: str, random: Random) -> None:
        self.exports: bool = True
        self._random = random
        self._spans = spans
        self._node = node
        self._tracers: dict[str, Tracer] = {}

    def unsampled(self, name: str, kind: Kind) -> str | None:
        root = new_trace(self._random, is_sampled=False)
        return None if self._spans.samples_root(int(root[3:35], 16), name, kind) else root

    def wants(self, parent: str) -> bool:
        return parent[-1] in _SAMPLED or not self._spans.follows_parent

    def begin(
        self, service: str, name: str, kind: Kind, parent: str | None, attributes: Attributes, *, link: bool = False
    ) -> Begun | None:
        if parent is not None and not self.wants(parent):
            return None
        tracer = self._tracers.get(service)
        if tracer is None:
            tracer = self._tracers[service] = self._spans.tracer(service, self._node)
        cause = None if parent is None else _cause(parent)
        within = OtelContext() if cause is None else otel.set_span_in_context(NonRecordingSpan(cause), OtelContext())
        links = [Link(cause)] if link and cause is not None else None
        return _OtelSpan(tracer.start_span(name, within, SpanKind[kind], attributes, links))


def _cause(parent: str) -> SpanContext:
    return SpanContext(
        int(parent[3:35], 16), int(parent[36:52], 16), is_remote=True, trace_flags=TraceFlags(int(parent[53:55], 16))
    )
