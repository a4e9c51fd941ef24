"""The transport: what carries envelopes between nodes, reports membership, and authenticates peers.

These docstrings are the specification; `runtime.testing.check_transport` checks it. A transport knows nothing of services,
handlers, or databases. It may lose envelopes and, where it declares so, duplicate or reorder them. The runtime relies on
nothing beyond what is written here.
"""

from abc import ABC, abstractmethod

import msgspec

from runtime.contract.errors import CallboardError
from runtime.network.envelope import Address, Envelope, Topic
from runtime.network.manifest import Manifest


class TransportError(CallboardError):
    """The transport could not do what it was asked to do, and has not done it. A retry may help."""


class PeerUnreachable(TransportError):
    """The envelope was not sent: the address is unknown, or the link to it is down."""


class LinkLost(TransportError):
    """The link was lost while the envelope was being sent: it may or may not arrive."""


class Unsendable(TransportError):
    """The envelope cannot be sent, and a retry would not help."""


class TooLarge(Unsendable):
    """The envelope is larger than the network accepts."""


MAX_BODY = 16 * 1024 * 1024
"""The size of the largest body on every transport, in bytes of JSON as it is sent."""


class Capabilities(msgspec.Struct, frozen=True):
    """What a transport declares about itself. The conformance kit tests it as declared.

    Attributes:
        signals: signals can be multicast. Heads of streams always can.
        anycast: the network can choose an instance for a request. Some brokers cannot, so this may change when a transport opens.
        ordered: envelopes from one sender to one address arrive in the order in which they were sent.
        duplicates: an envelope may arrive twice.
        authenticates: the `caller` of a received envelope is proven, not only claimed.
        max_body: the size of the largest body, in bytes of JSON as it is sent. The runtime refuses larger messages before the
            effect that they describe commits. A broker may take less, so this may change when a transport opens or reconnects.
        max_signal: the same for signals.
    """

    signals: bool = True
    anycast: bool = True
    ordered: bool = True
    duplicates: bool = False
    authenticates: bool = True
    max_body: int = MAX_BODY
    max_signal: int = MAX_BODY


class Receiver:
    """A node, as its transport sees it. The methods return immediately and never raise.

    The methods here do nothing, so that a test of a transport can subclass this and implement only what it looks at.
    """

    def load(self, service: str) -> int:
        """Return how many messages the service's instance on this node runs or has waiting. Presence reports carry it."""
        return 0

    def receive(self, envelope: Envelope, to: str) -> None:
        """Take an envelope for the service `to` on this node. A multicast arrives once for each subscribed service."""

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        """Called when an instance is live, with its load. Heartbeats repeat this. The instances of this node are reported, too."""

    def suspected(self, address: Address) -> None:
        """Called when an instance has been silent: it may be busy, or gone. `joined` or `left` follows."""

    def left(self, address: Address, *, lost: bool) -> None:
        """Called when an instance is gone. One that withdrew still replies to its running requests; a lost one does not.

        An instance that withdrew is lost, too, once its node has left, so that no request waits for it any longer. A transport
        whose requests end with their connection need not report that.
        """

    def cut(self) -> None:
        """Called when this node's own link is down: sent requests will get no reply. Members are suspected, but not gone yet."""

    def unreadable(self) -> None:
        """Called when something arrived that cannot be read."""

    def retained(self) -> None:
        """Called when an old message was dropped, which the network had kept although it is of a kind that must not be kept."""

    def failed(self, error: TransportError) -> None:
        """Called when the transport has ended for good: the node has to stop."""


class Transport(ABC):
    """Carries envelopes for one node.

    `open` comes first and `close` last. Between them, everything may be called in the event loop's thread, by several tasks
    at a time.

    Attributes:
        capabilities: the declared capabilities.
        settling: how long `watch` may have returned before the last member is reported, in seconds.
        zero_copy: whether messages between instances in this process skip encoding, and with it validation.
    """

    capabilities: Capabilities = Capabilities()
    settling: float = 0.0
    zero_copy: bool = False

    @property
    def connected(self) -> bool:
        """Whether the network can be reached now."""
        return True

    @abstractmethod
    async def open(self, node: str, receiver: Receiver) -> None:
        """Join the network as the node with this id.

        Raises:
            TransportError: if the network cannot be joined.
        """

    @abstractmethod
    async def watch(self, service: str | None) -> None:
        """Report the members of a service to the receiver from now on, or of all services if `service` is None.

        When it returns, the receiver has learned of the members that the network knows.
        """

    @abstractmethod
    async def close(self) -> None:
        """Leave the network. Peers see announced instances withdraw, and then no request to them waits. Calling it twice is harmless."""

    @abstractmethod
    async def listen(self, service: str) -> None:
        """Receive anycast requests for a service from now on."""

    @abstractmethod
    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        """Receive multicasts on a topic for a service from now on: each on one of its nodes, or with `broadcast` on all.

        A topic without a key includes all keys.

        Raises:
            TransportError: if the topic is a signal's and the capabilities exclude signals.
        """

    @abstractmethod
    async def unsubscribe(self, topic: Topic, service: str) -> None:
        """Stop receiving multicasts on a topic. Those on their way may still arrive. Harmless if it was not subscribed to."""

    @abstractmethod
    async def announce(self, manifest: Manifest) -> None:
        """Report an instance to all who watch its service, now or later. A second call replaces its manifest."""

    @abstractmethod
    async def withdraw(self, address: Address) -> None:
        """Report to all who watch that an instance is gone, and receive no anycast requests or multicasts for it any more."""

    @abstractmethod
    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        """Send an envelope to the node of one instance, in order and at most once unless the capabilities say otherwise.

        Returns when it has been handed to the network, which does not mean that it arrives. A transport whose replies come
        back on the same connection may return only when the reply has come. Waits while the network is congested, and
        while the link reconnects.

        Args:
            sender: the name of the sending service on this node. The receiver sees it as `envelope.caller`.

        Raises:
            PeerUnreachable: if it was not sent, and will not arrive.
            LinkLost: if it may have been sent.
            Unsendable: if it is larger than the network accepts (`TooLarge`), or cannot be sent for another reason.
        """

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        """Send an envelope like `unicast` if that is possible without waiting. Return whether it was sent.

        This is only a faster path. A transport need not have it. Raises like `unicast`.
        """
        return False

    @abstractmethod
    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        """Send an envelope to one listening node of a service, which the network chooses. Otherwise like `unicast`.

        Raises `TransportError` if the capabilities exclude it.
        """

    @abstractmethod
    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        """Send an envelope to the subscribers of a topic: at most once to each service, or to each node that broadcasts.

        It is not an error if there are no subscribers. Raises `TransportError` if there are no signals, or no link.
        """
