"""What a transport is written against: envelopes, addresses, manifests, and the transport itself.

`runtime.testing.check_transport` checks a transport against the docstrings here.
"""

from runtime.contract.parameters import Params
from runtime.contract.rest import HttpBinding
from runtime.network.envelope import Address, Envelope, EnvelopeKind, Head, Topic
from runtime.network.manifest import ErrorInfo, LiveInfo, Manifest, RequestInfo
from runtime.network.registry import Member, Registry
from runtime.network.transport import (
    Capabilities,
    LinkLost,
    PeerUnreachable,
    Receiver,
    TooLarge,
    Transport,
    TransportError,
    Unsendable,
)

__all__ = [
    "Address",
    "Capabilities",
    "Envelope",
    "EnvelopeKind",
    "ErrorInfo",
    "Head",
    "HttpBinding",
    "LinkLost",
    "LiveInfo",
    "Manifest",
    "Member",
    "Params",
    "PeerUnreachable",
    "Receiver",
    "Registry",
    "RequestInfo",
    "TooLarge",
    "Topic",
    "Transport",
    "TransportError",
    "Unsendable",
]
