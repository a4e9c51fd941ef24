"""Envelopes as HTTP requests and answers: where each header stands. `docs/wire.md` is the specification."""

import json
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec

from runtime.network import Address, Envelope

ASSERTION = "callboard-assertion"
BUDGET = "callboard-budget"
ID = "callboard-id"
LOAD = "callboard-load"
REFUSED = "callboard-refused"
"""Of an answer that the node gave by itself: nobody was asked."""
NODE = "callboard-node"
PARAMS = "callboard-params"
PATH = "callboard-path"
TO = "callboard-to"
KEY = "idempotency-key"
TRACE = "traceparent"
JSON = "application/json"
PROBLEM = "application/problem+json"

_NAMES = msgspec.json.Decoder(tuple[str, ...])
_DIGITS = 12
_LONGEST = 3600.0
"""Seconds that a request may have at most, whatever its caller says."""
_PLAIN = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"
"""What stands in a key as it is; the rest is percent-encoded (RFC 3986)."""


class Fields(Protocol):
    """The header fields of a request, by their names in lower case."""

    def get(self, key: str, default: None = None) -> str | None: ...


def of_request(envelope: Envelope, node: str | None) -> dict[str, str]:
    """The header fields that carry an envelope.

    Args:
        node: the node that is asked, where it has to be that and no other.
    """
    fields = {ID: envelope.id, "content-type": JSON}
    if node is not None:
        fields[TO] = node
    if envelope.reply_to is None:
        fields["prefer"] = "respond-async"
    else:
        fields[NODE] = envelope.reply_to.node
    if envelope.budget is not None:
        fields[BUDGET] = str(round(min(max(0.0, envelope.budget), _LONGEST) * 1000))
    if envelope.token is not None:
        fields["authorization"] = f"Bearer {envelope.token}"
    if envelope.trace is not None:
        fields[TRACE] = envelope.trace
    if envelope.idempotency_key is not None:
        fields[KEY] = quote(envelope.idempotency_key, safe=_PLAIN)
    if envelope.params is not None:
        fields[PARAMS] = urlencode(envelope.params)
    if envelope.path:
        fields[PATH] = json.dumps(envelope.path)
    return fields


def request(fields: Fields, subject: str, caller: str, body: bytes) -> Envelope:
    """The envelope of a request. `id` is empty where the caller named none.

    Raises:
        ValueError: a field cannot be read.
    """
    node, budget, params, path, key = (fields.get(name) for name in (NODE, BUDGET, PARAMS, PATH, KEY))
    authorization = fields.get("authorization")
    token: str | None = None
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise ValueError("Authorization: expected a bearer token")
    one_way = "respond-async" in (fields.get("prefer") or "")
    try:
        return Envelope(
            "request",
            fields.get(ID) or "",
            subject,
            body,
            caller,
            None if one_way else Address(caller, node or "-"),
            None if budget is None else min(number(budget) / 1000, _LONGEST),
            token,
            fields.get(TRACE),
            None if key is None else unquote(key, errors="strict"),
            None if params is None else _params(params),
            () if path is None else _NAMES.decode(path),
        )
    except msgspec.MsgspecError as error:
        raise ValueError(f"Callboard-Path: {error}") from error


def _params(text: str) -> tuple[tuple[str, str], ...]:
    return tuple(parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")) if text else ()


def number(text: str) -> int:
    """A number in a header field.

    Raises:
        ValueError: it is none.
    """
    if not text.isdecimal() or not text.isascii() or len(text) > _DIGITS:
        raise ValueError(f"{text!r:.40}: expected a number of at most {_DIGITS} digits")
    return int(text)


def load(fields: Mapping[str, str]) -> int:
    """What an answer says of how much its sender has to do; nothing, if it cannot be read."""
    try:
        return number(fields.get(LOAD, "0"))
    except ValueError:
        return 0
