"""The in-memory transport: several nodes in one process that behave as if there were a network between them.

Envelopes from one sender to one address arrive in order, each in a later turn of the event loop. Bodies are JSON text by
default, as on every other transport; with `zero_copy` the messages themselves are passed on.
"""

import asyncio
import contextvars
from collections.abc import Iterable, Iterator

import msgspec

from runtime import Struct
from runtime.network import (
    Address,
    Capabilities,
    Envelope,
    Manifest,
    PeerUnreachable,
    Receiver,
    TooLarge,
    Topic,
    Transport,
    TransportError,
)


class MemorySettings(Struct):
    """`zero_copy`: messages skip encoding and thus validation. This is safe because they are deeply immutable."""

    zero_copy: bool = False


class MemoryNetwork:
    """A network that nodes of one process join. A transport created without one is alone on its own network."""

    def __init__(self) -> None:
        self.joined: dict[str, MemoryTransport] = {}
        self._turns: dict[tuple[str, Topic | str], int] = {}

    def __repr__(self) -> str:
        return f"<MemoryNetwork {', '.join(self.joined)}>"

    def turn(self, service: str, topic: Topic | str, nodes: list["MemoryTransport"]) -> "MemoryTransport":
        """Return the node of a group whose turn it is."""
        count = self._turns[service, topic] = self._turns.get((service, topic), -1) + 1
        return nodes[count % len(nodes)]

    def others(self, node: str) -> Iterator["MemoryTransport"]:
        return (transport for transport in list(self.joined.values()) if transport.node != node)


class MemoryTransport(Transport):
    """A node on a `MemoryNetwork`."""

    capabilities = Capabilities(authenticates=True)

    def __init__(self, network: MemoryNetwork | None = None, settings: MemorySettings | None = None) -> None:
        self.node = ""
        self.network = network or MemoryNetwork()
        self.zero_copy = (settings or MemorySettings()).zero_copy
        self._receiver: Receiver | None = None
        self._manifests: dict[str, Manifest] = {}
        self._watched: set[str | None] = set()
        self._withdrawn: set[Address] = set()
        self._listening: set[str] = set()
        self._subscribed: dict[Topic, dict[str, bool]] = {}

    def __repr__(self) -> str:
        return f"<MemoryTransport {self.node or '-'} [{'CLOSED' if self._receiver is None else 'OPEN'}]>"

    async def open(self, node: str, receiver: Receiver) -> None:
        if self._receiver is not None or node in self.network.joined:
            raise TransportError(f"{node} is open already: a transport serves one node")
        self.node, self._receiver = node, receiver
        self.network.joined[node] = self

    async def watch(self, service: str | None) -> None:
        receiver = self._opened()
        self._watched.add(service)
        for other in list(self.network.joined.values()):
            for manifest in list(other._manifests.values()):
                if service in (None, manifest.service):
                    receiver.joined(manifest, other.load(manifest.service))

    async def close(self) -> None:
        for manifest in list(self._manifests.values()):
            await self.withdraw(manifest.address)
        self.crash()  # from now on nothing answers: peers give up the requests that they sent last

    def crash(self) -> None:
        """Disappear: peers see its instances as lost. Without `close`, this is what a killed process does."""
        addresses = {manifest.address for manifest in self._manifests.values()} | self._withdrawn
        self._end()
        for other in self.network.others(self.node):
            for address in addresses:
                other.later_left(address, lost=True)

    def _end(self) -> None:
        self.network.joined.pop(self.node, None)
        self._receiver = None
        self._manifests.clear()
        self._watched.clear()
        self._withdrawn.clear()
        self._listening.clear()
        self._subscribed.clear()

    async def listen(self, service: str) -> None:
        self._listening.add(service)

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        self._subscribed.setdefault(topic, {})[service] = broadcast

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        self._subscribed.get(topic, {}).pop(service, None)
        if not self._subscribed.get(topic, True):
            del self._subscribed[topic]

    async def announce(self, manifest: Manifest) -> None:
        self._opened()
        self._manifests[manifest.service] = manifest
        self._withdrawn.discard(manifest.address)
        for transport in list(self.network.joined.values()):
            transport.later_joined(manifest, self.load(manifest.service))

    async def withdraw(self, address: Address) -> None:
        self._listening.discard(address.service)
        for services in self._subscribed.values():
            services.pop(address.service, None)
        if self._manifests.pop(address.service, None) is None:
            return
        self._withdrawn.add(address)
        for transport in list(self.network.joined.values()):
            transport.later_left(address, lost=False)

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        self.unicast_now(to, envelope, sender)

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        self._opened()
        self._require_fits(envelope)
        peer = self.network.joined.get(to.node)
        if peer is None:
            raise PeerUnreachable(f"{to} is not there")
        self._deliver(peer, envelope, to.service, sender)
        return True

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        self._opened()
        listening = [transport for transport in self.network.joined.values() if service in transport._listening]
        if not listening:
            raise PeerUnreachable(f"no instance listens for {service}")
        self._require_fits(envelope)
        self._deliver(self.network.turn(service, service, listening), envelope, service, sender)

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        self._opened()
        self._require_fits(envelope)
        groups: dict[str, list[MemoryTransport]] = {}
        for transport in self.network.joined.values():
            for service, broadcast in transport.subscribers(topic):
                if broadcast:
                    self._deliver(transport, envelope, service, sender)
                else:
                    groups.setdefault(service, []).append(transport)
        for service, nodes in groups.items():
            self._deliver(self.network.turn(service, topic, nodes), envelope, service, sender)

    def subscribers(self, topic: Topic) -> Iterable[tuple[str, bool]]:
        """Return the services on this node that subscribe to a topic, by its key or by all keys, and whether they broadcast."""
        found = dict(self._subscribed.get(topic, {}))
        if topic.key is not None:
            found |= self._subscribed.get(topic._replace(key=None), {})
        return found.items()

    def _opened(self) -> Receiver:
        if self._receiver is None:
            raise PeerUnreachable("this transport is closed")
        return self._receiver

    def _require_fits(self, envelope: Envelope) -> None:
        """Refuse an envelope that no other transport would carry. Raises `TooLarge`."""
        if not self.zero_copy and len(envelope.body) > self.capabilities.max_body:
            raise TooLarge(f"a message of {len(envelope.body):,} bytes is more than {self.capabilities.max_body:,}")

    def load(self, service: str) -> int:
        """Return how many messages a service's instance on this node has running or waiting."""
        return 0 if self._receiver is None else self._receiver.load(service)

    def _deliver(self, peer: "MemoryTransport", envelope: Envelope, service: str, sender: str) -> None:
        arrived = msgspec.structs.replace(envelope, caller=sender)
        asyncio.get_running_loop().call_soon(
            peer.take, arrived, service, context=contextvars.Context()
        )  # an empty context, so that nothing of the sender's leaks into the receiver

    def take(self, envelope: Envelope, service: str) -> None:
        """Receive an envelope."""
        if self._receiver is not None:
            self._receiver.receive(envelope, service)

    def later_joined(self, manifest: Manifest, load: int) -> None:
        """Report an instance to the receiver in a later turn of the event loop."""

        def report() -> None:
            if self._receiver is not None and not self._watched.isdisjoint((manifest.service, None)):
                self._receiver.joined(manifest, load)

        asyncio.get_running_loop().call_soon(report)

    def later_left(self, address: Address, *, lost: bool) -> None:
        """Report in a later turn of the event loop that an instance has left."""

        def report() -> None:
            if self._receiver is not None:
                self._receiver.left(address, lost=lost)

        asyncio.get_running_loop().call_soon(report)
