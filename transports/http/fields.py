"""Envelopes as HTTP requests and answers: which header field carries what. `docs/wire.md` is the specification."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

import msgspec

from runtime.network import Address, Envelope
from runtime.trace import TraceFields
from transports.header_values import (
    decode_text,
    encode_json,
    encode_list,
    encode_text,
    format_budget,
    parse_address,
    parse_budget,
    parse_number,
)
from transports.http.messages import Headers

ASSERTION = "callboard-assertion"
BUDGET = "callboard-budget"
CLIENT = "callboard-client"
ID = "callboard-id"
LOAD = "callboard-load"
REFUSED = "callboard-refused"
"""Marks an answer of the node itself: the request was not handed to an instance."""
NODE = "callboard-node"
PARAMS = "callboard-params"
PATH = "callboard-path"
TO = "callboard-to"
KEY = "idempotency-key"
TRACE = "traceparent"
JSON = "application/json"

ONCE = frozenset(
    {ASSERTION, BUDGET, CLIENT, ID, NODE, PARAMS, PATH, TO, KEY, TRACE, "authorization", "content-type", "content-length"}
)
"""The fields of a request that may come once. Of two, neither counts: a proxy and the node could each read another one."""

_NAMES = msgspec.json.Decoder(tuple[str, ...])


def repeated(fields: Headers) -> str | None:
    """Return the name of a field that came more than once although it may not, or None."""
    return next((name for name, _ in fields.more if name in ONCE), None)


def of_route(to: Address, reply_to: Address | None, assertion: str) -> dict[str, str]:
    """Return the header fields that all requests from one sender to one address share.

    Args:
        to: The service, and the node that has to answer; an empty node if any may.
        reply_to: Who waits for an answer; None if nobody does.
    """
    fields = {"content-type": JSON, ASSERTION: assertion}
    if to.node:
        fields[TO] = to.node
    if reply_to is None:
        fields["prefer"] = "respond-async"
    else:
        fields[NODE] = reply_to.node
    return fields


def of_request(envelope: Envelope) -> dict[str, str]:
    """Return the other header fields of a request: those that carry its envelope.

    Raises:
        ValueError: if a text has a surrogate, which has no encoding.
    """
    fields = {ID: encode_text(envelope.id)}
    if envelope.budget is not None:
        fields[BUDGET] = format_budget(envelope.budget)
    if envelope.token is not None:
        fields["authorization"] = f"Bearer {encode_text(envelope.token)}"
    if envelope.trace is not None:
        fields[TRACE] = encode_text(envelope.trace)
    if envelope.trace_fields is not None:
        fields |= {name: encode_list(value) for name, value in envelope.trace_fields.present().items()}
    if envelope.idempotency_key is not None:
        fields[KEY] = encode_text(envelope.idempotency_key)
    if envelope.params is not None:
        fields[PARAMS] = urlencode(envelope.params)
    if envelope.path:
        fields[PATH] = encode_json(envelope.path)
    if envelope.client is not None:
        fields[CLIENT] = envelope.client
    return fields


def request(fields: Headers, subject: str, caller: str, body: bytes) -> Envelope:
    """Return the envelope of a request. Its `id` is empty if the caller gave none.

    Raises:
        ValueError: if a field cannot be read.
    """
    if not "".join(fields.values()).isascii():
        _check_ascii(fields)
    given = fields.get
    params, path, key, trace = given(PARAMS), given(PATH), given(KEY), given(TRACE)
    authorization = given("authorization")
    token: str | None = None
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise ValueError("Authorization: expected a bearer token")
    one_way = "respond-async" in given("prefer", "")
    try:
        return Envelope(
            "request",
            decode_text(given(ID, "")),
            subject,
            body,
            caller,
            None if one_way else Address(caller, given(NODE) or "-"),
            parse_budget(given(BUDGET)),
            None if token is None else decode_text(token),
            None if trace is None else decode_text(trace),
            None if key is None else decode_text(key),
            None if params is None else _params(params),
            () if path is None else _NAMES.decode(path),
            client=parse_address(given(CLIENT)),
            trace_fields=_trace_fields(fields),
        )
    except msgspec.MsgspecError as error:
        raise ValueError(f"Callboard-Path: {error}") from error


def _check_ascii(fields: Headers) -> None:
    """Refuse a value outside ASCII in one of our fields. Those of other software may have one.

    Raises:
        ValueError: if there is one.
    """
    for name in (*ONCE, "prefer"):
        if not fields.get(name, "").isascii():
            raise ValueError(f"{name}: expected ASCII characters")


def _trace_fields(fields: Headers) -> TraceFields | None:
    """Return `tracestate` and `baggage`. Either may come in several fields, whose values are one list."""
    if not any(name in fields for name in TraceFields._fields):
        return None
    lists = ([value for value in fields.get_all(name) if value and value.isascii()] for name in TraceFields._fields)
    return TraceFields(*map(",".join, lists))


def _params(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")) if text else ()


def load(fields: Mapping[str, str]) -> int:
    """Return how many messages the sender of an answer has running or waiting; 0 if the field is missing or cannot be read."""
    try:
        return parse_number(fields.get(LOAD, "0"))
    except ValueError:
        return 0
