"""The transport: what carries envelopes between nodes, says who is there, and authenticates the peer.

These docstrings are the specification; `runtime.testing.check_transport` checks it. A transport knows nothing of
services, handlers or databases. It may lose and, where it declares so, duplicate or reorder envelopes: no guarantee of
the runtime leans on it beyond what stands here.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import msgspec

from runtime.contract.errors import CallboardError
from runtime.network.envelope import Address, Envelope, Topic
from runtime.network.manifest import Manifest


class TransportError(CallboardError):
    """The transport cannot do what it was asked, and has not done it. Trying again may help."""


class PeerUnreachable(TransportError):
    """The envelope was not handed over: nobody is at that address, or the link to it is down."""


class LinkLost(TransportError):
    """The link to the network went while the envelope was handed over: it may arrive, or not."""


class Unsendable(TransportError):
    """The envelope cannot be sent, however often it is tried."""


class TooLarge(Unsendable):
    """The envelope is larger than the network takes."""


class Capabilities(msgspec.Struct, frozen=True):
    """What a transport declares about itself; the conformance kit tests it as declared.

    `signals`: multicasts of signals work; those of streams' heads always do. `ordered`: envelopes from one
    sender to one address arrive in the order they were sent. `duplicates`: an envelope may arrive twice. `authenticates`: the
    receiver's `caller` is proven, not only claimed. `max_body`: bytes that a body may have.
    """

    signals: bool = True
    ordered: bool = True
    duplicates: bool = False
    authenticates: bool = True
    max_body: int = 16 * 1024 * 1024


class Receiver(Protocol):
    """A node, as its transport sees it. The methods return at once and never raise."""

    def load(self, service: str) -> int:
        """How many messages the service's instance here works on or has waiting: told to the others with its presence."""
        ...

    def receive(self, envelope: Envelope, to: str) -> None:
        """An envelope has come for the service `to` on this node; for a multicast, once per subscribed service."""

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        """An instance is there, or says again that it is, and how much it has to do. This node's own are told of too."""

    def suspected(self, address: Address) -> None:
        """An instance has been silent: it may be busy, or gone. `joined` or `left` ends the doubt."""

    def left(self, address: Address, *, lost: bool) -> None:
        """An instance is gone. One that withdrew still answers what it has begun; one that is `lost` will not.

        An instance may first withdraw and then, still busy, be lost: both are told.
        """

    def cut(self) -> None:
        """This node's own link is down: what was handed over will not be answered. Members are suspected, and not yet gone."""

    def unreadable(self) -> None:
        """Something came that cannot be read."""

    def failed(self, error: TransportError) -> None:
        """The transport has ended, and will not mend by itself: the node has to stop."""


class Transport(ABC):
    """Carries envelopes for one node.

    `open` comes first, `close` last; between them everything may be called from the event loop's thread, from several
    tasks at a time.
    """

    capabilities: Capabilities = Capabilities()
    zero_copy: bool = False
    """Whether messages between instances in this process skip encoding, and with it validation."""

    @property
    def connected(self) -> bool:
        """Whether the network can be spoken to at the moment."""
        return True

    @abstractmethod
    async def open(self, node: str, receiver: Receiver) -> None:
        """Joins the network as `node`.

        Raises:
            TransportError: the network cannot be joined.
        """

    @abstractmethod
    async def watch(self, service: str | None) -> None:
        """Tells the receiver from now on of a service's members that come and go; of every service's for None.

        When it returns, the receiver has been told of those that the network knows of.
        """

    @abstractmethod
    async def close(self) -> None:
        """Leaves. Withdraws what is still announced; peers see it leave, not as lost. Calling it twice is harmless."""

    @abstractmethod
    async def listen(self, service: str) -> None:
        """Takes anycast requests for `service` from now on."""

    @abstractmethod
    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        """Takes multicasts on `topic` for `service` from now on: each on one of its nodes, or on all (`broadcast`).

        A topic without a key (`-`) stands for all keys.

        Raises:
            TransportError: it is a signal's, and the traits say that there are none.
        """

    @abstractmethod
    async def unsubscribe(self, topic: Topic, service: str) -> None:
        """Takes them no longer; what is on its way may still come. One that was not subscribed to is no error."""

    @abstractmethod
    async def announce(self, manifest: Manifest) -> None:
        """Tells whoever watches, now or later, that the instance is here. Again: replaces what was told."""

    @abstractmethod
    async def withdraw(self, address: Address) -> None:
        """Tells whoever watches that the instance has gone, and stops taking anycast requests and multicasts for it."""

    @abstractmethod
    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        """Hands an envelope to one instance's node, at most once, in order with others to the same address.

        Returns when it is handed over, which is no promise that it arrives; where answers come back on the same way, it may
        be when the answer has come. Waits while the network is congested, or the link to it is being made again.

        Args:
            sender: the service on this node that speaks; the receiver sees it as `envelope.caller`.

        Raises:
            PeerUnreachable: it was not handed over, and will not arrive.
            LinkLost: it may have been handed over.
            Unsendable: it is larger than the network takes (`TooLarge`), or cannot be sent for another reason of its own.
        """

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        """As `unicast`, where that needs no waiting: says whether it was done. Only the quicker way; it need not be there."""
        return False

    @abstractmethod
    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        """Hands an envelope to one listening node of `service`, whichever the network chooses. Else as `unicast`."""

    @abstractmethod
    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        """Hands an envelope to the topic's subscribers: at most once to each group, or to each node that broadcasts.

        Nobody listening is no error. Raises `TransportError` where there are no signals, or no link.
        """
