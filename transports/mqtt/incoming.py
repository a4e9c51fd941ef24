"""What arrives from the broker: each message becomes an envelope for the node, a report about an instance, or is dropped and counted."""

import logging
from collections.abc import Callable, Iterable

import mqtt5
import msgspec

from runtime import Malformed, Random
from runtime.network import Address, Envelope, EnvelopeKind, Receiver
from runtime.repeats import Repeats
from runtime.telemetry import logger
from transports.mqtt import packets
from transports.mqtt.topics import Topics, key_of


class Incoming:
    """The messages that a link receives for a node.

    Args:
        node: The node's id.
        subscribers: Returns the services on this node that have to take a multicast.
        on_manifest: Called with service, node, and packet for each manifest.
        on_gone: Called with the id of each node that has ended.
        repeats: Logs what clients may cause as often as they like.
        answer: Publishes the answer to a request that cannot be read, in the name of a service on this node.
    """

    def __init__(
        self,
        node: str,
        topics: Topics,
        receiver: Receiver,
        random: Random,
        subscribers: Callable[[mqtt5.PublishPacket], Iterable[str]],
        on_manifest: Callable[[str, str, mqtt5.PublishPacket], None],
        on_gone: Callable[[str], None],
        answer: Callable[[Address, Envelope, str], None],
        repeats: Repeats,
    ) -> None:
        self._node = node
        self._topics = topics
        self._receiver: Receiver | None = receiver
        self._random = random
        self._subscribers = subscribers
        self._on_manifest = on_manifest
        self._on_gone = on_gone
        self._answer = answer
        self._log = logger("mqtt")
        self._repeats = repeats
        self._retained = 0
        self._too_large = 0

    def close(self) -> None:
        """Ignore whatever still arrives."""
        self._receiver = None
        self._repeats.close()

    def handle(self, packet: mqtt5.PublishPacket) -> None:
        """Handle a message from the broker."""
        if self._receiver is None:
            return
        levels = self._topics.levels(packet.topic)
        if packet.retain and levels[:1] != ("presence",):
            self._drop_retained(packet)
            return
        try:
            if "" in levels and not (levels[0] == "signal" and "" not in levels[:3]):  # only a key can be empty
                raise ValueError("a level of its topic is empty")
            match levels:
                case ("inbox", service, node, caller) if node == self._node:
                    response_topic = packet.response_topic
                    if response_topic is None:
                        self._receiver.receive(packets.envelope(packet, "reply", "", caller, None), service)
                    else:
                        reply_to = self._topics.reply_address(response_topic, caller)
                        self._deliver(packet, "request", "", caller, (service,), reply_to)
                case ("signal", service, name, key):
                    self._deliver(packet, "signal", f"{service}.{name}", service, self._subscribers(packet), key=key_of(key))
                case ("request", service, name, caller):
                    reply_to = self._topics.reply_address(packet.response_topic, caller)
                    self._deliver(packet, "request", f"{service}.{name}", caller, (service,), reply_to)
                case ("stream", service):
                    self._deliver(packet, "head", f"{service}.head", service, self._subscribers(packet))
                case ("presence", service, node):
                    self._on_manifest(service, node, packet)
                case ("gone", node):
                    self._on_gone(node)
                case _:
                    raise ValueError("its topic is unknown")
        except Exception as error:  # no message whatsoever may end the link
            self._receiver.unreadable()
            self._repeats.log(
                self._log, logging.WARNING, (*levels[:2], levels[-1]),
                "a message on %.200s cannot be read, and is dropped: %s; it begins with %r", packet.topic, error, packet.payload[:64],
            )  # fmt: skip
            if levels[:1] in (("inbox",), ("request",)) and self._topics.is_level(levels[1]):
                self._refuse(packet, levels[1], levels[-1], error)

    def _drop_retained(self, packet: mqtt5.PublishPacket) -> None:
        """Drop a message from the broker's memory, which is handed out again at each connection: only manifests belong there.

        A message that was published with the retain flag reaches those who listened at that time without the flag, as any other.
        """
        assert self._receiver is not None
        self._receiver.retained()
        self._retained += 1
        if self._retained == 1:
            self._log.warning(
                "a message on %.200s comes from the broker's memory (retain flag), so it is not new, and is dropped; further ones will "
                "be dropped without a log entry: publish without the retain flag, and delete the message with an empty one that has "
                "the flag (mosquitto_pub -r -n -t TOPIC)",
                packet.topic,
            )

    def too_large(self, topic: str, size: int) -> None:
        """Count a message that was dropped because it is too large."""
        if self._receiver is None:
            return
        self._receiver.unreadable()
        self._too_large += 1
        if self._too_large == 1:
            self._log.warning(
                "a message on %.200s was dropped, because its %d bytes are more than transport.mqtt.max_packet; further ones will be "
                "dropped without a log entry",
                topic, size,
            )  # fmt: skip

    def _deliver(
        self,
        packet: mqtt5.PublishPacket,
        kind: EnvelopeKind,
        subject: str,
        caller: str,
        services: Iterable[str],
        reply_to: Address | None = None,
        key: str | None = None,
    ) -> None:
        assert self._receiver is not None
        envelope = packets.envelope(packet, kind, subject, caller, reply_to, key)
        if not envelope.id and envelope.kind == "request":
            envelope = msgspec.structs.replace(envelope, id=self._random.hex(32))
        for service in services:
            self._receiver.receive(envelope, service)

    def _refuse(self, packet: mqtt5.PublishPacket, service: str, caller: str, error: Exception) -> None:
        """Answer a request that cannot be read, if it has a response topic."""
        try:
            reply_to = self._topics.reply_address(packet.response_topic, caller)
        except ValueError:
            return
        if reply_to is not None:
            request_id = "" if packet.correlation_data is None else packet.correlation_data.decode("latin-1")
            self._answer(reply_to, Envelope("error", request_id, "", msgspec.json.encode(Malformed(str(error)).data())), service)
