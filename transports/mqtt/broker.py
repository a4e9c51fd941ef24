"""Asking a broker for a connection: CONNECT, what answers it, the reasons for a refusal, and takeovers by clients with the same id."""

import asyncio
from collections.abc import Callable
from enum import IntEnum

import mqtt5

from runtime import StartError
from runtime.network import TransportError
from transports.mqtt.connection import CLOSED, Connection, Packet
from transports.mqtt.limits import Limits, limits_of
from transports.mqtt.settings import MqttSettings

_REFUSALS = {
    int(mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD): "the user name or the password is wrong",
    int(mqtt5.ConnAckReasonCode.NOT_AUTHORIZED): (
        "the user name or the password is wrong, or the broker does not allow this user to connect"
    ),
    int(mqtt5.ConnAckReasonCode.BANNED): "the broker has banned this client",
    int(mqtt5.ConnAckReasonCode.CLIENT_ID_NOT_VALID): "the broker does not accept this client id",
}
"""Refusals that trying again does not change, by reason code (MQTT 5, section 3.2.2.2)."""


class BrokerRefused(TransportError, StartError):
    """The broker refuses this node. Trying again does not help; the credentials, the certificate, or the settings have to change."""


class NotMqtt5(TransportError):
    """What answers at the broker's URL does not speak MQTT 5, as far as can be seen: it may also be a broker that is starting."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"does not speak MQTT 5: {reason}")


class OnlyMqtt3(NotMqtt5, StartError):
    """The broker speaks MQTT 3.1.1 only. Trying again does not help."""

    def __init__(self) -> None:
        super().__init__("it speaks MQTT 3.1.1 only. Use mosquitto 2, ejabberd, or another MQTT 5 broker")


class QosNotSupported(TransportError):
    """The broker does not take a Will with QoS 1. The next attempt has one with QoS 0."""


class TakenOver(TransportError, StartError):
    """Another client has connected with this node's client id. Reconnecting would only disconnect that client in turn."""

    def __init__(self, url: str, client_id: str) -> None:
        super().__init__(
            f"another client has connected to {url} as {client_id}, and taken this node's place: "
            "give each node its own id, and check who else has these credentials"
        )


_MINIMUM_PACKET = 1024
"""The smallest limit of packets, in bytes, with which a node works: headers alone need some hundred."""
_OLD_CONNACK = b"\x20\x02"
"""How the CONNACK of MQTT 3.1.1 begins. In MQTT 5, it is longer."""
_TLS_ALERT = b"\x15\x03"
"""How a TLS server's complaint about plain text begins (RFC 8446, section 5.1)."""


def describe(code: IntEnum) -> str:
    """Return an MQTT reason code in words."""
    return code.name.lower().replace("_", " ")


def connect_packet(settings: MqttSettings, client_id: str, will: mqtt5.Will, password: str | None) -> mqtt5.ConnectPacket:
    """Return the packet that asks the broker for a connection without a session.

    It announces no Maximum Packet Size. On mosquitto 2.0, one that is smaller than the broker's own limit can stop what the broker
    delivers with QoS 1, for as long as the connection stands. A packet that is too large is dropped here instead.
    """
    return mqtt5.ConnectPacket(
        client_id, username=settings.username, clean_start=True, will=will, keep_alive=settings.keepalive,
        password=None if password is None else password.encode(),
    )  # fmt: skip


class Handshake:
    """Waits for the answer to CONNECT on a connection, which it then hands over.

    Args:
        on_packet: Called for every packet after the answer.
    """

    def __init__(self, on_packet: Callable[[Connection, Packet], None]) -> None:
        self._on_packet = on_packet
        self._answer: asyncio.Future[mqtt5.ConnAckPacket] = asyncio.get_running_loop().create_future()

    def received(self, connection: Connection, packet: Packet) -> None:
        """Handle the first packet of a connection, which can be nothing but the answer."""
        if isinstance(packet, mqtt5.ConnAckPacket) and not self._answer.done():
            connection.accepted(self._on_packet)
            self._answer.set_result(packet)
        else:
            connection.unexpected = packet.write()
            connection.abort(CLOSED)

    def ended(self, connection: Connection, reason: str) -> None:
        """Handle the end of a connection, before or after the answer."""
        if not self._answer.done():
            self._answer.set_exception(_no_answer(connection.unexpected, reason))
            self._answer.exception()  # the attempt may have timed out already

    async def complete(self, connection: Connection, packet: mqtt5.ConnectPacket, timeout: float) -> mqtt5.ConnAckPacket:
        """Send CONNECT, and return the answer.

        Raises:
            NotMqtt5: if something else than an answer comes, or nothing in time, or the connection ends.
        """
        connection.send(packet)
        try:
            async with asyncio.timeout(timeout):
                return await self._answer
        except TimeoutError:
            begins = f", only {connection.unexpected!r}" if connection.unexpected else ""
            raise NotMqtt5(f"no answer to CONNECT within {timeout:g} s{begins} (or it is stuck)") from None


def _no_answer(unexpected: bytes, reason: str) -> TransportError:
    """Return the error for a connection that has ended before the broker answered CONNECT."""
    if unexpected.startswith(_OLD_CONNACK):
        return OnlyMqtt3()
    if unexpected.startswith(_TLS_ALERT):
        return NotMqtt5("it expects TLS here: use mqtts://")
    if unexpected:
        return NotMqtt5(f"its answer begins with {unexpected!r}, as no broker's does")
    if reason.startswith(CLOSED):
        return NotMqtt5("it closed the connection without an answer (or it expects TLS here, mqtts://, or is still starting)")
    return TransportError(reason)


def check_connack(packet: mqtt5.ConnAckPacket, settings: MqttSettings) -> Limits:
    """Check the broker's answer to CONNECT, and return what the broker can do.

    Raises:
        BrokerRefused: if the broker refuses for a reason that trying again does not change.
        OnlyMqtt3: if the broker does not know MQTT 5.
        QosNotSupported: if the broker does not take a Will with QoS 1.
        TransportError: if the broker refuses for any other reason.
    """
    if packet.reason_code == mqtt5.ConnAckReasonCode.SUCCESS:
        if not packet.wildcard_subscription_available:
            raise BrokerRefused("the broker allows no subscriptions with wildcards, which every node needs: allow them there")
        limits = limits_of(packet, settings)
        if limits.max_packet < _MINIMUM_PACKET:
            raise BrokerRefused(
                f"the broker takes packets of at most {limits.max_packet} bytes, and a node needs {_MINIMUM_PACKET:,}: raise its limit "
                "(max_packet_size in mosquitto)"
            )
        return limits
    if packet.reason_code == mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION:
        raise OnlyMqtt3
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
