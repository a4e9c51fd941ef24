"""Traces by OpenTelemetry, which its own variables turn on and set up: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, and others.

They go to a collector by OTLP over HTTP. Each service is a separate resource, also if several run in one process.
"""

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from config.extras import extra_for
from runtime import StartError

if TYPE_CHECKING:
    from config.otlp import OtlpSpans

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"


def is_on(environment: Mapping[str, str]) -> bool:
    """Return whether traces are wanted.

    Raises:
        StartError: if another exporter or protocol is wanted.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter == "none" or not (exporter or any(environment.get(name) for name in _ENDPOINTS)):
        return False
    if exporter not in ("", "otlp"):
        raise StartError(f"OTEL_TRACES_EXPORTER={exporter}: expected otlp or none")
    protocol = next((name for name in _PROTOCOLS if environment.get(name)), None)
    if protocol is not None and environment[protocol].strip() != _HTTP:
        raise StartError(f"{protocol}={environment[protocol]}: expected {_HTTP}")
    return True


@contextmanager
def otlp_spans() -> "Generator[OtlpSpans | None, None, None]":
    """What sends the spans of this process inside the `with` block, or None if no traces are wanted.

    Raises:
        StartError: if the variables ask for something that there is not, or if OpenTelemetry is not installed.
    """
    if not is_on(os.environ):
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from config.otlp import OtlpSpans
    except ModuleNotFoundError as error:
        extra = extra_for("opentelemetry")
        raise StartError(
            f"traces need OpenTelemetry, which is not installed here: pip install 'callboard[{extra or 'traces'}]'"
        ) from error
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # a collector that is away is said once, by the exporter
    try:
        spans = OtlpSpans(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise StartError(f"OpenTelemetry refuses one of its OTEL_ variables: {error}") from error
    try:
        yield spans
    finally:
        spans.close()
