"""The ids of a request: its own one, and that of the trace which it belongs to (W3C Trace Context, W3C Baggage)."""

import re

from gateway.exchange import Exchange
from runtime import Random
from runtime.contract.rest import METHODS
from runtime.trace import TraceFields, accept_parent, new_trace, trace_id, with_request_id
from runtime.tracing import Begun, Tracing

KNOWN_METHODS = frozenset((*METHODS, "HEAD", "OPTIONS"))
_LONGEST_PATH = 500
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def identify(exchange: Exchange, random: Random, tracing: Tracing | None) -> Begun | None:
    """Give a request its ids, and begin its span if there is tracing. Return the span.

    The ids of the client count, if they are valid; by default, both ids are the same. A client that sends a `traceparent` may make
    many requests in one trace, so that its request id differs.
    """
    fields = exchange.fields
    sent = fields.get(b"traceparent")
    trace = None if sent is None else accept_parent(sent.decode("latin-1"))
    known, span = trace, None
    method = exchange.method if exchange.method in KNOWN_METHODS else "_OTHER"
    if tracing is not None:
        known = tracing.unsampled(method, "SERVER") if trace is None else trace
        if known is None or tracing.wants(known):
            span = _begin_span(tracing, exchange, method, known)
    exchange.trace = span.trace if span is not None else new_trace(random) if known is None else known
    chosen = fields.get(b"x-request-id")
    if chosen is not None and _REQUEST_ID.fullmatch(chosen):
        exchange.request_id = chosen.decode()
    else:
        exchange.request_id = trace_id(exchange.trace) if trace is None else random.hex(32)
    if span is not None:
        span.add({"callboard.request_id": exchange.request_id})
    return span


def _begin_span(tracing: Tracing, exchange: Exchange, method: str, trace: str | None) -> Begun | None:
    attributes = {
        "http.request.method": method, "url.path": exchange.path[:_LONGEST_PATH], "url.scheme": "http",
    }  # fmt: skip
    return tracing.begin("gateway", method, "SERVER", trace, attributes)


def end_span(span: Begun, exchange: Exchange, status: int) -> None:
    """End the span of a request that was answered."""
    span.add({"http.response.status_code": status, "client.address": exchange.source or exchange.peer})
    if exchange.route:
        span.add({"http.route": exchange.route})
        span.rename(f"{exchange.method} {exchange.route}")
    span.end(code=str(status) if status >= 500 else "")


def trace_fields(exchange: Exchange) -> TraceFields | None:
    """Return what travels with the `traceparent` of a request: what the client has sent, and the request's id where it differs."""
    fields = exchange.fields
    sent: TraceFields | None = None
    if b"tracestate" in fields or b"baggage" in fields:
        state, baggage = fields.get(b"tracestate", b""), fields.get(b"baggage", b"")
        sent = TraceFields(state.decode("latin-1"), baggage.decode("latin-1"))
    return with_request_id(exchange.trace, sent, exchange.request_id)
