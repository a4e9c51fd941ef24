"""The multicasts that the services of a node subscribe to, and which of these services an arriving one is for.

Most brokers deliver a signal to one instance of each subscribing service (shared subscriptions), and say which subscription
a message is for (subscription identifiers). With a broker that cannot do both, every instance receives every signal, and
all of them choose the same one to take it, from the membership and the message itself.
"""

from collections import deque
from collections.abc import Callable, Iterable, Set
from hashlib import blake2b

import mqtt5

from runtime.network import Topic
from transports.mqtt.topics import Topics

_LARGEST_ID = 268_435_455
"""The largest subscription identifier (MQTT 5, section 3.8.2.1.2)."""
_REMEMBERED = 1024
"""The number of messages that are remembered to drop further copies of them."""
_NONE: frozenset[str] = frozenset()


class Multicasts:
    """The subscriptions of a node's services to multicasts.

    Args:
        node: the node's id.
        members: returns the ids of the nodes on which a service has an instance.
        shares_out: whether the broker delivers each signal to one instance of a subscribing service, and says for which.
    """

    def __init__(self, node: str, topics: Topics, members: Callable[[str], Iterable[str]], *, shares_out: bool) -> None:
        self.shares_out: bool = shares_out
        self._node = node
        self._topics = topics
        self._members = members
        self._subscribed: dict[tuple[Topic, str], tuple[str, bool]] = {}
        """By topic and service: the topic filter, and whether every instance takes the messages."""
        self._ids: dict[str, int] = {}
        self._services: dict[int, frozenset[str]] = {}
        """By subscription identifier: the services that its messages are for."""
        self._last_id = 0
        self._recent: deque[bytes] = deque(maxlen=_REMEMBERED)

    def topics_of(self, service: str) -> list[Topic]:
        """Return the topics to which a service subscribes."""
        return [topic for topic, subscriber in self._subscribed if subscriber == service]

    def add(self, topic: Topic, service: str, *, broadcast: bool) -> tuple[str, int]:
        """Add a subscription. Return the topic filter to subscribe to, and its subscription identifier."""
        pattern = self._topics.multicasts(topic, service if self.shares_out and not broadcast else None)
        self._subscribed[topic, service] = pattern, broadcast
        number = self._ids.get(pattern)
        if number is None:
            number = self._ids[pattern] = self._last_id = self._last_id % _LARGEST_ID + 1
        self._services[number] = self._services.get(number, _NONE) | {service}
        return pattern, number

    def remove(self, topic: Topic, service: str) -> str | None:
        """Remove a subscription. Return the topic filter to unsubscribe from, or None if it is still needed or was not there."""
        pattern, _ = self._subscribed.pop((topic, service), (None, False))
        if pattern is None:
            return None
        left = {subscriber for (_, subscriber), (other, _) in self._subscribed.items() if other == pattern}
        if left:
            self._services[self._ids[pattern]] = frozenset(left)
            return None
        del self._services[self._ids.pop(pattern)]
        return pattern

    def subscribers(self, packet: mqtt5.PublishPacket) -> Set[str]:
        """Return the services on this node that have to take a multicast."""
        if self.shares_out:
            numbers, services = packet.subscription_ids, self._services
            if len(numbers) == 1:
                return services.get(numbers[0], _NONE)
            return _NONE.union(*(services.get(number, _NONE) for number in numbers))
        return self._chosen(packet)

    def _chosen(self, packet: mqtt5.PublishPacket) -> set[str]:
        identity = packet.topic.encode() + b"\0" + (packet.correlation_data or packet.payload)
        patterns = {pattern for pattern, number in self._ids.items() if number in packet.subscription_ids}
        if not patterns:  # without identifiers, the copies for several subscriptions are equal
            if packet.correlation_data and identity in self._recent:
                return set()
            self._recent.append(identity)
            every_key = packet.topic.rpartition("/")[0] + "/+"
            patterns = {packet.topic, every_key}
        digest = blake2b(identity, digest_size=8).digest()
        return {
            service
            for (_, service), (pattern, broadcast) in self._subscribed.items()
            if pattern in patterns and (broadcast or self._takes(service, digest))
        }

    def _takes(self, service: str, digest: bytes) -> bool:
        """Return whether this node's instance of a service takes a signal: the same one on every node (rendezvous hashing)."""
        nodes = list(self._members(service))
        if not nodes:  # not announced yet, as is every other
            return True
        return self._node == max(nodes, key=lambda node: blake2b(node.encode(), key=digest, digest_size=8).digest())
