"""Envelopes as MQTT packets: where each header stands. `docs/wire.md` is the specification."""

from typing import Any

import mqtt5
import msgspec

from runtime.envelope import Address, Envelope, EnvelopeKind

FOREIGN = "-"
"""The service in the address of a client that is none of ours: its node is the Response Topic, as it came."""

_KINDS = msgspec.json.Decoder(EnvelopeKind)
_PARAMS = msgspec.json.Decoder(tuple[tuple[str, str], ...])
_PATH = msgspec.json.Decoder(tuple[str, ...])


def properties(envelope: Envelope, reply_topic: str | None) -> dict[str, Any]:
    """The properties of the packet that carries an envelope."""
    headers = [("kind", envelope.kind), ("subject", envelope.subject)]
    if envelope.budget is not None:
        headers.append(("budget", str(max(0, round(envelope.budget * 1000)))))
    if envelope.token is not None:
        headers.append(("token", envelope.token))
    if envelope.trace is not None:
        headers.append(("traceparent", envelope.trace))
    if envelope.key is not None:
        headers.append(("key", envelope.key))
    if envelope.params is not None:
        headers.append(("params", msgspec.json.encode(envelope.params).decode()))
    if envelope.path:
        headers.append(("path", msgspec.json.encode(envelope.path).decode()))
    found: dict[str, Any] = {"user_properties": headers, "correlation_data": envelope.id.encode()}
    if reply_topic is not None:
        found["response_topic"] = reply_topic
    return found


def envelope(packet: mqtt5.PublishPacket, kind: EnvelopeKind, subject: str, caller: str, reply_to: Address | None) -> Envelope:
    """The envelope that a packet carries.

    Args:
        kind: what it is if the packet does not say.
        subject: what it is about if the packet does not say.

    Raises:
        ValueError: a header cannot be read.
    """
    headers = dict(packet.user_properties)
    budget, params, path = headers.get("budget"), headers.get("params"), headers.get("path")
    try:
        return Envelope(
            _KINDS.decode(msgspec.json.encode(headers["kind"])) if "kind" in headers else kind,
            (packet.correlation_data or b"").decode(),
            headers.get("subject", subject),
            packet.payload,
            caller,
            reply_to,
            None if budget is None else int(budget) / 1000,
            headers.get("token"),
            headers.get("traceparent"),
            headers.get("key"),
            None if params is None else _PARAMS.decode(params),
            () if path is None else _PATH.decode(path),
        )
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
