"""The decision about the root of a trace is the one that OpenTelemetry's own sampler makes."""

import os
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from config.otlp import OtlpSpans
from runtime import Clock, Random
from runtime.otel import OtelTracing

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
RATIO = st.sampled_from(("0", "0.01", "0.5", "1", "1e-05", "0.3333333333333333")) | st.floats(0, 1).map(str)


def spans_with(sampler: str, argument: str) -> tuple[OtlpSpans, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    with patch.dict(os.environ, {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}):
        return OtlpSpans(SimpleSpanProcessor(exporter)), exporter


@given(sampler=st.sampled_from(SAMPLERS), argument=RATIO, trace=st.integers(1, 2**128 - 1))
def test_a_root_is_sampled_if_the_sampler_says_so(sampler: str, argument: str, trace: int) -> None:
    spans, _ = spans_with(sampler, argument)
    with patch.dict(os.environ, {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}):
        expected = TracerProvider(shutdown_on_exit=False).sampler.should_sample(None, trace, "GET")
    assert spans.samples_root(trace, "GET", "SERVER") is (expected.decision.name == "RECORD_AND_SAMPLE")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_of_many_roots_the_wanted_share_is_recorded(sampler: str) -> None:
    spans, exporter = spans_with(sampler, "0.25")
    clock = Clock()
    tracing = OtelTracing(spans, "n1", Random(clock, 7))
    for _ in range(400):
        root = tracing.unsampled("GET", "SERVER")
        if root is None:
            begun = tracing.begin("gateway", "GET", "SERVER", None, {})
            assert begun is not None
            assert tracing.wants(begun.trace)
            begun.end()
        else:
            assert tracing.wants(root) is not spans.follows_parent
    recorded = len(exporter.get_finished_spans())
    if sampler.endswith("ratio"):
        assert 60 < recorded < 140
    elif sampler.endswith("on"):
        assert recorded == 400
    else:
        assert recorded == 0
