"""The envelope: a message with its headers, as transports carry it."""

from typing import Any, Literal, NamedTuple

import msgspec

from runtime.contract.rest import Params

EnvelopeKind = Literal["request", "reply", "error", "cancel", "signal", "head"]


class Address(NamedTuple):
    """Where an instance is: a service on a node."""

    service: str
    node: str

    def __str__(self) -> str:
        return f"{self.service}@{self.node}"


class Topic(NamedTuple):
    """What a multicast is about: a service's signal (with its key, if it has one), or the head of its stream."""

    kind: Literal["signal", "stream"]
    service: str
    name: str = "-"
    key: str = "-"


class Envelope(msgspec.Struct, frozen=True, eq=False):
    """A message with its headers. `caller` is written by the receiving transport, which vouches for it.

    A `reply`, `error` or `cancel` has the id of its request. `budget` is what remains of the deadline, in seconds,
    when the envelope is handed over. `idempotency_key` belongs to a request, `signal_key` to a signal.
    `load`, of an answer, is how much more its instance has to do. `body` is JSON text, or the message itself between nodes that share it.
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

    def __repr__(self) -> str:
        return f"<Envelope {self.kind} {self.subject} {self.id} from {self.caller or '?'}>"  # no body, no token


class Head(msgspec.Struct, frozen=True):
    """How far a publisher's stream goes: the body of a `head` envelope."""

    epoch: str
    seq: int
