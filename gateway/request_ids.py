"""The ids of a request: its own one, and that of the trace which it belongs to (W3C Trace Context, W3C Baggage)."""

import re

from gateway.exchange import Exchange
from runtime import Random
from runtime.trace import TraceFields, accept_parent, new_trace, trace_id, with_request_id

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def identify(exchange: Exchange, random: Random) -> None:
    """Give a request its ids. Those of the client count, if they are valid; by default, both ids are the same.

    A client that sends a `traceparent` may make many requests in one trace, so that its request id differs.
    """
    fields = exchange.fields
    sent = fields.get(b"traceparent")
    trace = None if sent is None else accept_parent(sent.decode("latin-1"))
    exchange.trace = new_trace(random) if trace is None else trace
    chosen = fields.get(b"x-request-id")
    if chosen is not None and _REQUEST_ID.fullmatch(chosen):
        exchange.request_id = chosen.decode()
    else:
        exchange.request_id = trace_id(exchange.trace) if trace is None else random.hex(32)


def trace_fields(exchange: Exchange) -> TraceFields | None:
    """Return what travels with the `traceparent` of a request: what the client has sent, and the request's id where it differs."""
    fields = exchange.fields
    sent: TraceFields | None = None
    if b"tracestate" in fields or b"baggage" in fields:
        state, baggage = fields.get(b"tracestate", b""), fields.get(b"baggage", b"")
        sent = TraceFields(state.decode("latin-1"), baggage.decode("latin-1"))
    return with_request_id(exchange.trace, sent, exchange.request_id)
