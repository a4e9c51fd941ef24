"""Envelopes as MQTT packets: where each header stands. `docs/wire.md` is the specification."""

from typing import Any

import mqtt5
import msgspec

from runtime.network import Address, Envelope, EnvelopeKind

PROBLEM = "application/problem+json"

_KINDS = msgspec.json.Decoder(EnvelopeKind)
_PARAMS = msgspec.json.Decoder(tuple[tuple[str, str], ...])
_PATH = msgspec.json.Decoder(tuple[str, ...])
_IN_INBOXES = ("request", "reply", "error", "cancel")
_DIGITS = 12
_LONGEST = 3600.0
"""Seconds that a request may have at most, whatever its caller says."""


def properties(envelope: Envelope, reply_topic: str | None) -> dict[str, Any]:
    """The properties of the packet that carries an envelope. What follows from the topic is left out."""
    kind, correlation = envelope.kind, envelope.id.encode("latin-1")
    if kind == "reply":
        if not envelope.load:
            return {"correlation_data": correlation}
        return {"correlation_data": correlation, "user_properties": [("load", str(envelope.load))]}
    if kind == "request":
        headers = [("subject", envelope.subject)]
    elif kind == "signal":
        headers = []
    else:
        headers = [("kind", kind)]
    if envelope.budget is not None:
        headers.append(("budget", str(max(0, round(envelope.budget * 1000)))))
    if envelope.token is not None:
        headers.append(("token", envelope.token))
    if envelope.trace is not None:
        headers.append(("traceparent", envelope.trace))
    if envelope.idempotency_key is not None:
        headers.append(("key", envelope.idempotency_key))
    if envelope.params is not None:
        headers.append(("params", msgspec.json.encode(envelope.params).decode()))
    if envelope.path:
        headers.append(("path", msgspec.json.encode(envelope.path).decode()))
    if envelope.load:
        headers.append(("load", str(envelope.load)))
    found: dict[str, Any] = {"user_properties": headers, "correlation_data": correlation}
    if reply_topic is not None:
        found["response_topic"] = reply_topic
    if kind == "error":
        found["content_type"] = PROBLEM
    return found


def envelope(
    packet: mqtt5.PublishPacket,
    kind: EnvelopeKind,
    subject: str,
    caller: str,
    reply_to: Address | None,
    signal_key: str | None = None,
) -> Envelope:
    """The envelope that a packet carries.

    Args:
        kind: what it is: only in an inbox, where there are several kinds, may the packet say something else.
        subject: what it is about; empty in an inbox, whose topic does not say.
        signal_key: the key of a signal, where the topic has one.

    Raises:
        ValueError: a header cannot be read.
    """
    headers = packet.user_properties
    correlation = packet.correlation_data
    found = "" if correlation is None else correlation.decode("latin-1")
    if not headers:
        return Envelope(kind, found, subject, packet.payload, caller, reply_to, signal_key=signal_key)
    said = dict(headers)
    if subject and (said.get("kind", kind), said.get("subject", subject)) != (kind, subject):
        raise ValueError("its headers say otherwise than its topic")
    if not subject and said.get("kind", kind) not in _IN_INBOXES:
        raise ValueError(f"{said['kind']!r:.40} is nothing for an inbox")
    budget, params, path = said.get("budget"), said.get("params"), said.get("path")
    try:
        return Envelope(
            _KINDS.decode(msgspec.json.encode(said["kind"])) if "kind" in said else kind,
            found,
            said.get("subject", subject),
            packet.payload,
            caller,
            reply_to,
            None if budget is None else min(_number(budget) / 1000, _LONGEST),
            said.get("token"),
            said.get("traceparent"),
            None if kind == "signal" else said.get("key"),
            None if params is None else _PARAMS.decode(params),
            () if path is None else _PATH.decode(path),
            load(packet),
            signal_key or (said.get("key") if kind == "signal" else None),
        )
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def load(packet: mqtt5.PublishPacket) -> int:
    """What a packet says of how much its sender has to do.

    Raises:
        ValueError: it is no number.
    """
    for name, value in packet.user_properties:
        if name == "load":
            return _number(value)
    return 0


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > _DIGITS:
        raise ValueError(f"{text!r:.40}: expected a number of at most {_DIGITS} digits")
    return int(text)
