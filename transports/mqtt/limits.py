"""What a broker can do, as its CONNACK says (MQTT 5, section 3.2.2.3)."""

import mqtt5
import msgspec

from runtime.network import Capabilities, TooLarge
from transports.mqtt.settings import MqttSettings

_SMALL = 64 * 1024
"""Bytes below which a limit of packets is worth a warning: a manifest, or a usual message, may be larger."""
MAX_BODY = Capabilities().max_body
"""The size of the largest body on every transport, in bytes."""
_HEADERS = 1024
"""Bytes of a packet that are left for its headers, at least in a reply and a signal."""


class Limits(msgspec.Struct, frozen=True):
    """What a broker can do. The defaults are those of a broker that announces nothing.

    Attributes:
        shared_subscriptions: it can deliver a message to one of several subscribers. Otherwise the nodes share out
            signals, and clients that are not nodes cannot send requests to a service without naming an instance.
        subscription_ids: it says which subscription a message is for.
        retain: it keeps manifests for nodes that join later. Otherwise these learn of an instance at its next heartbeat.
        acknowledges: it takes messages with QoS 1, and reports if nobody is subscribed to them.
        receive_maximum: how many messages with QoS 1 may await their acknowledgement.
        max_packet: the largest packet that it takes, in bytes, or the setting of this node if that is lower.
        set_here: whether `max_packet` is the setting of this node.
        keepalive: how often it expects to hear from a client, in seconds.
    """

    shared_subscriptions: bool = True
    subscription_ids: bool = True
    retain: bool = True
    acknowledges: bool = True
    receive_maximum: int = 65_535
    max_packet: int = 268_435_455
    set_here: bool = False
    keepalive: float = 60.0

    @property
    def max_body(self) -> int:
        """The size of the largest message, in bytes of JSON: the same as on every transport, unless the broker takes less."""
        return min(MAX_BODY, max(self.max_packet - _HEADERS, self.max_packet * 3 // 4))

    @property
    def shares_out(self) -> bool:
        """Whether the broker can deliver each signal to one instance of every subscribing service.

        Without identifiers, the copies for a shared and for a plain subscription look the same.
        """
        return self.shared_subscriptions and self.subscription_ids

    def restrictions(self) -> list[str]:
        """Return a sentence about each thing that the broker cannot do."""
        found: list[str] = []
        if not self.shared_subscriptions:
            found.append(
                "it has no shared subscriptions: a client that is not a node cannot call a service by name alone (anycast), and "
                "the nodes choose which instance takes a signal"
            )
        elif not self.subscription_ids:
            found.append("it has no subscription identifiers: the nodes choose which instance takes a signal")
        if not self.retain:
            found.append("it retains no messages: a node that joins learns of the others at their next heartbeat")
        if not self.acknowledges:
            found.append("it takes QoS 0 only: a request to an instance that is gone waits until its heartbeats are missed")
        if self.max_packet < _SMALL:
            who = "transport.mqtt.max_packet allows" if self.set_here else "the broker takes"
            found.append(f"{who} packets of at most {self.max_packet} bytes: larger messages fail")
        return found

    def too_large(self, size: int) -> TooLarge:
        """Return the error for a packet of so many bytes, which is too large."""
        return TooLarge(
            f"a message of {size:,} bytes with its headers is more than "
            + (
                f"transport.mqtt.max_packet allows ({self.max_packet:,})"
                if self.set_here
                else f"the broker takes ({self.max_packet:,}): raise its limit (max_packet_size in mosquitto)"
            )
        )


def limits_of(packet: mqtt5.ConnAckPacket, settings: MqttSettings) -> Limits:
    """Return what a broker can do, and where a setting of this node is lower, that."""
    theirs = packet.max_packet_size
    return Limits(
        packet.shared_subscription_available,
        packet.subscription_id_available,
        packet.retain_available,
        int(packet.max_qos) > 0,
        packet.receive_max,
        settings.max_packet if theirs is None else min(settings.max_packet, theirs),
        theirs is None or settings.max_packet < theirs,
        min(settings.keepalive, packet.server_keep_alive or settings.keepalive),
    )
