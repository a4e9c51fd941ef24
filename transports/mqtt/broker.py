"""Asking a broker for a connection: CONNECT, the reasons for a refusal, and takeovers by clients with the same id."""

from enum import IntEnum

import mqtt5

from runtime import StartError
from runtime.network import TransportError
from transports.mqtt.connection import CLOSED, OLD_VERSION
from transports.mqtt.limits import Limits, limits_of
from transports.mqtt.settings import MqttSettings

_REFUSALS = {
    int(mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD): "the user name or the password is wrong",
    int(mqtt5.ConnAckReasonCode.NOT_AUTHORIZED): (
        "the user name or the password is wrong, or the broker does not allow this user to connect"
    ),
    int(mqtt5.ConnAckReasonCode.BANNED): "the broker has banned this client",
    int(mqtt5.ConnAckReasonCode.CLIENT_ID_NOT_VALID): "the broker does not accept this client id",
    int(mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION): "the broker does not support MQTT 5",
}
"""Refusals that trying again does not change, by reason code (MQTT 5, section 3.2.2.2)."""


class BrokerRefused(TransportError, StartError):
    """The broker refuses this node. Trying again does not help; the credentials, the certificate, or the settings have to change."""


class QosNotSupported(TransportError):
    """The broker does not take a Will with QoS 1. The next attempt has one with QoS 0."""


class TakenOver(TransportError, StartError):
    """Another client has connected with this node's client id. Reconnecting would only disconnect that client in turn."""

    def __init__(self, url: str, client_id: str) -> None:
        super().__init__(
            f"another client has connected to {url} as {client_id}, and taken this node's place: "
            "give each node its own id, and check who else has these credentials"
        )


def describe(code: IntEnum) -> str:
    """Return an MQTT reason code in words."""
    return code.name.lower().replace("_", " ")


def connect_packet(settings: MqttSettings, client_id: str, will: mqtt5.Will) -> mqtt5.ConnectPacket:
    """Return the packet that asks the broker for a connection without a session."""
    return mqtt5.ConnectPacket(
        client_id, username=settings.username, clean_start=True, will=will, keep_alive=settings.keepalive,
        password=None if settings.password is None else settings.password.encode(), max_packet_size=settings.max_packet,
    )  # fmt: skip


def no_connack(reason: str) -> TransportError:
    """Return the error for a connection that has ended before the broker answered CONNECT."""
    if reason == OLD_VERSION:
        return BrokerRefused(reason)
    if reason == CLOSED:
        return TransportError(f"{reason} without an answer: is it an MQTT 5 broker, and does it expect TLS (mqtts://) here?")
    return TransportError(reason)


def check_connack(packet: mqtt5.ConnAckPacket, settings: MqttSettings) -> Limits:
    """Check the broker's answer to CONNECT, and return what the broker can do.

    Raises:
        BrokerRefused: if the broker refuses for a reason that trying again does not change.
        QosNotSupported: if the broker does not take a Will with QoS 1.
        TransportError: if the broker refuses for any other reason.
    """
    if packet.reason_code == mqtt5.ConnAckReasonCode.SUCCESS:
        if not packet.wildcard_subscription_available:
            raise BrokerRefused("the broker allows no subscriptions with wildcards, which every node needs: allow them there")
        return limits_of(packet, settings)
    if packet.reason_code == mqtt5.ConnAckReasonCode.QUALITY_NOT_SUPPORTED:
        raise QosNotSupported("the broker takes QoS 0 only")
    details = f" ({packet.reason_str})" if packet.reason_str else ""
    refusal = _REFUSALS.get(int(packet.reason_code))
    if refusal is not None:
        raise BrokerRefused(f"{refusal}{details}")
    raise TransportError(f"the broker refuses the connection: {describe(packet.reason_code)}{details}")


def says_taken_over(packet: mqtt5.DisconnectPacket) -> bool:
    """Return whether the broker disconnects this client because another one has connected with its id."""
    return int(packet.reason_code) == int(mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER)
