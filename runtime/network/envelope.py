"""Envelopes: messages with their headers, as transports carry them."""

from typing import Any, Literal, NamedTuple

import msgspec

from runtime.contract.parameters import Params
from runtime.trace import TraceFields

EnvelopeKind = Literal["request", "reply", "error", "cancel", "signal", "head"]
"""What an envelope carries."""


class Address(NamedTuple):
    """The address of an instance: a service on a node."""

    service: str
    node: str

    def __str__(self) -> str:
        return f"{self.service}@{self.node}"


class Topic(NamedTuple):
    """The topic of a multicast: a signal, with its key if it has one, or the head of a service's stream.

    A key is any text. To subscribe without a key is to subscribe to all keys.
    """

    kind: Literal["signal", "stream"]
    service: str
    name: str = "-"
    key: str | None = None


class Envelope(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A message with its headers.

    A new header is a field here. `transports/mqtt/packets.py` and `transports/http/fields.py` encode and decode it,
    `docs/wire.md` specifies it, and `runtime/execution/caller.py` and `runtime/node/inbound.py` set it.

    Attributes:
        kind: the kind of message.
        id: the id of the message. A `reply`, `error`, or `cancel` has the id of its request.
        subject: the full name of the message, for example `wallet.Hold`.
        body: JSON text, or the message itself between nodes in one process with zero-copy.
        caller: the sending service. The receiving transport sets it, and authenticates it.
        reply_to: the address for the reply; None if no reply is wanted.
        budget: the time until the deadline when the envelope is sent, in seconds.
        token: the user's access token.
        trace: the W3C `traceparent`, as it came: `Context.trace` accepts it or begins a new trace.
        idempotency_key: the idempotency key of a request.
        params: the parameters of a REST request's path and query.
        path: the instances that wait for this request.
        load: how many messages the replying instance handles or has waiting.
        signal_key: the key of a signal.
        client: the address of the client outside for whom a gateway made the request; of IPv6, its /64 network.
        trace_fields: the W3C `tracestate` and `baggage`, as they came; None without both.
    """

    kind: EnvelopeKind
    id: str
    subject: str
    body: Any = b""
    caller: str = ""
    reply_to: Address | None = None
    budget: float | None = None
    token: str | None = None
    trace: str | None = None
    idempotency_key: str | None = None
    params: Params | None = None
    path: tuple[str, ...] = ()
    load: int = 0
    signal_key: str | None = None
    client: str | None = None
    trace_fields: TraceFields | None = None

    def __repr__(self) -> str:
        return f"<Envelope {self.kind} {self.subject} {self.id} from {self.caller or '?'}>"  # no body, no token


class Head(msgspec.Struct, frozen=True):
    """The head of a publisher's stream: the body of a `head` envelope."""

    epoch: str
    seq: int
