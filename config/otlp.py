"""The spans of this process, on their way to a collector."""

import re
import threading

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Tracer

from runtime.tracing import Kind

_NO_PARENT = Context()
_RATIO = re.compile(r"(ParentBased\{root:)?TraceIdRatioBased\{(?P<rate>[0-9.e-]+)\}.*")
"""The description of the samplers that keep a share of the traces. They are asked for every request of a client, and their `should_sample`
would take longer than all the rest that a trace without spans costs."""
_LAST_SECONDS = 3.0
"""The seconds that the last spans may take to be sent when the process ends. The exporter itself would try for longer."""


class OtlpSpans:
    """Sends the spans of this process to a collector.

    Attributes:
        follows_parent: whether a message in a trace that is not sampled makes no span either.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = processor
        self._sampler = TracerProvider(shutdown_on_exit=False).sampler
        self._ids = _TraceIds()
        ratio = _RATIO.fullmatch(self._sampler.get_description())
        self._bound = None if ratio is None else TraceIdRatioBased.get_bound_for_rate(float(ratio["rate"]))
        self.follows_parent: bool = isinstance(self._sampler, ParentBased)

    def samples_root(self, trace: int, name: str, kind: Kind) -> bool:
        """Return whether a new trace is sampled. If it is, the next span without a parent has its id."""
        if self._bound is None:
            found = self._sampler.should_sample(_NO_PARENT, trace, name, SpanKind[kind])
            is_sampled = found.decision is Decision.RECORD_AND_SAMPLE
        else:
            is_sampled = trace & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        if is_sampled:
            self._ids.next = trace
        return is_sampled

    def tracer(self, service: str, node: str) -> Tracer:
        """Return the tracer of a service on a node, for its separate resource."""
        resource = Resource.create({"service.name": service, "service.instance.id": f"{service}@{node}"})
        provider = TracerProvider(self._sampler, resource, shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(self._processor)
        return provider.get_tracer("callboard")

    def close(self) -> None:
        """Send the last spans, but wait for the collector no longer than a few seconds."""
        closing = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(_LAST_SECONDS)


class _TraceIds(RandomIdGenerator):
    """Gives the next trace the id for which the sampler has decided already.

    Attributes:
        next: the id; 0 for a random one.
    """

    next: int = 0

    def generate_trace_id(self) -> int:
        chosen, self.next = self.next, 0
        return chosen or super().generate_trace_id()
