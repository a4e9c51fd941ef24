"""Envelopes as MQTT packets: which property carries what. `docs/wire.md` is the specification."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import mqtt5
import msgspec

from runtime.network import Address, Envelope, EnvelopeKind, TooLarge, Unsendable
from runtime.trace import TraceFields
from transports.header_values import (
    PROBLEM,
    decode_text,
    encode_json,
    encode_list,
    encode_text,
    format_budget,
    parse_address,
    parse_budget,
    parse_number,
)
from transports.mqtt.limits import MAX_BODY, Limits
from transports.mqtt.manifest_parts import HEADER, Part

_subject = lru_cache(4096)(encode_text)
_KINDS = msgspec.json.Decoder(EnvelopeKind)
_PARAMS = msgspec.json.Decoder(tuple[tuple[str, str], ...])
_PATH = msgspec.json.Decoder(tuple[str, ...])
_KNOWN = frozenset(
    {"subject", "kind", "budget", "token", "traceparent", "tracestate", "baggage", "key", "params", "path", "load", "client"}
)
"""The headers that may come once. Properties of other names are a client's own."""
_budget = lru_cache(4096)(parse_budget)
_number = lru_cache(4096)(parse_number)
_LONGEST = 65_535
"""Bytes of the longest string in MQTT (section 1.5.4)."""
_IN_INBOXES = ("request", "reply", "error", "cancel")


def properties(envelope: Envelope, reply_topic: str | None) -> dict[str, Any]:
    """Return the properties of the packet that carries an envelope. They leave out what the topic already says.

    Raises:
        Unsendable: if a text has no encoding.
    """
    kind, correlation = envelope.kind, envelope.id.encode("latin-1")
    if kind == "reply":
        if not envelope.load:
            return {"correlation_data": correlation}
        return {"correlation_data": correlation, "user_properties": [("load", str(envelope.load))]}
    try:
        if kind == "request":
            headers = [("subject", _subject(envelope.subject))]
        elif kind == "signal":
            headers = []
        else:
            headers = [("kind", kind)]
        if envelope.budget is not None:
            headers.append(("budget", format_budget(envelope.budget)))
        if envelope.token is not None:
            headers.append(("token", encode_text(envelope.token)))
        if envelope.trace is not None:
            headers.append(("traceparent", encode_text(envelope.trace)))
        if envelope.trace_fields is not None:
            headers += [(name, encode_list(value)) for name, value in envelope.trace_fields.present().items()]
        if envelope.idempotency_key is not None:
            headers.append(("key", encode_text(envelope.idempotency_key)))
        if envelope.params is not None:
            headers.append(("params", encode_json(envelope.params)))
        if envelope.path:
            headers.append(("path", encode_json(envelope.path)))
        if envelope.load:
            headers.append(("load", str(envelope.load)))
        if envelope.client is not None:
            headers.append(("client", envelope.client))
    except ValueError as error:
        raise Unsendable(f"a header has no encoding: {error}") from None
    properties: dict[str, Any] = {"user_properties": headers, "correlation_data": correlation}
    if reply_topic is not None:
        properties["response_topic"] = reply_topic
    if kind == "error":
        properties["content_type"] = PROBLEM
    return properties


def envelope(
    packet: mqtt5.PublishPacket,
    kind: EnvelopeKind,
    subject: str,
    caller: str,
    reply_to: Address | None,
    signal_key: str | None = None,
) -> Envelope:
    """Return the envelope that a packet carries.

    Args:
        kind: The kind that the topic implies. Only the headers of a packet in an inbox may name another one.
        subject: The subject that the topic implies; empty for a packet in an inbox.
        signal_key: The key of a signal, if the topic has one.

    Raises:
        ValueError: if a header cannot be read.
    """
    headers = packet.user_properties
    correlation = packet.correlation_data
    message_id = "" if correlation is None else correlation.decode("latin-1")
    if not headers:
        return Envelope(
            kind, message_id, subject, packet.payload, caller, reply_to, None, None, None, None, None, (), 0, signal_key
        )
    if len(headers) > 1 and len(dict(headers)) != len(headers) and (twice := _KNOWN & _repeated(headers)):
        raise ValueError(f"it has the header {min(twice)} more than once")
    named_kind, named_subject = kind, subject
    budget = token = trace = key = params = client = state = baggage = None
    path: tuple[str, ...] = ()
    load = 0
    try:
        for name, value in headers:  # the most frequent ones first
            if name == "subject":
                named_subject = decode_text(value) if "%" in value else value
            elif name == "budget":
                budget = _budget(value)
            elif name == "traceparent":
                trace = decode_text(value) if "%" in value else value
            elif name == "token":
                token = decode_text(value) if "%" in value else value
            elif name == "load":
                load = _number(value)
            elif name == "path":
                path = _PATH.decode(value)
            elif name == "kind":
                named_kind = _KINDS.decode(msgspec.json.encode(value))
            elif name == "key":
                key = decode_text(value)
            elif name == "params":
                params = _PARAMS.decode(value)
            elif name == "client":
                client = parse_address(value)
            elif name == "tracestate":
                state = value
            elif name == "baggage":
                baggage = value
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    if subject and (named_kind != kind or named_subject != subject):
        raise ValueError("its headers contradict its topic")
    if named_kind != kind and not subject and named_kind not in _IN_INBOXES:
        raise ValueError(f"{named_kind!r:.40} is not a kind for an inbox")
    fields = None if state is None and baggage is None else TraceFields(state or "", baggage or "")
    if kind == "signal":
        key = None
    return Envelope(
        named_kind, message_id, named_subject, packet.payload, caller, reply_to, budget, token, trace, key, params, path, load,
        signal_key, client, fields,
    )  # fmt: skip


def _repeated(headers: Sequence[tuple[str, str]]) -> set[str]:
    """Return the names that come more than once."""
    return {name for name, count in Counter(name for name, _ in headers).items() if count > 1}


def part(packet: mqtt5.PublishPacket) -> Part | None:
    """Return which part of a manifest a packet carries; None if it is a whole one.

    Raises:
        ValueError: if the header is not that of a part.
    """
    for name, value in packet.user_properties:
        if name == HEADER:
            return Part(value)
    return None


def load(packet: mqtt5.PublishPacket) -> int:
    """Return how many messages the sender of a packet has running or waiting; 0 if the header is missing.

    Raises:
        ValueError: if the header is not a number.
    """
    for name, value in packet.user_properties:
        if name == "load":
            return parse_number(value)
    return 0


def encode_publish(topic: str, payload: bytes, limits: Limits, properties: Mapping[str, Any]) -> bytes:
    """Return a PUBLISH packet as bytes. One that the broker would not take must not be sent, because it would end the connection.

    Args:
        limits: What the broker accepts.

    Raises:
        TooLarge: if the packet is larger.
        Unsendable: if a header or the topic is longer than MQTT allows.
    """
    try:
        data: bytes = mqtt5.PublishPacket(topic, payload, **properties).write()
    except ValueError as error:
        too_long = [f"the header {name!r}" for name, value in properties.get("user_properties", ()) if len(value) > _LONGEST]
        raise Unsendable(f"{too_long[0] if too_long else 'the topic'} is too long ({error})") from None
    if len(payload) > MAX_BODY:
        raise TooLarge(f"a message of {len(payload):,} bytes is more than {MAX_BODY:,}, the most on every transport")
    if len(data) > limits.max_packet:
        raise limits.too_large(len(data))
    return data


class _Instance(msgspec.Struct):
    """The part of a manifest that identifies an instance."""

    instance: str


def instance_of(manifest: bytes) -> str:
    """Return the id of the instance that a manifest announces."""
    return msgspec.json.decode(manifest, type=_Instance).instance
