"""Asking a broker for a connection: CONNECT, the reasons for a refusal, and takeovers by clients with the same id."""

from collections import deque
from enum import IntEnum

import mqtt5

from runtime import StartError
from runtime.network import TransportError
from transports.mqtt.settings import MqttSettings

_SHORT = 3.0
"""Seconds. A connection that the broker closes this soon, without a reason, may have been taken over."""
_SHORT_CONNECTIONS = 6
_WINDOW = 30.0
"""Seconds within which that many short connections count as a takeover."""
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


def check_connack(packet: mqtt5.ConnAckPacket) -> None:
    """Check the broker's answer to CONNECT.

    Raises:
        BrokerRefused: if the broker refuses for a reason that trying again does not change.
        TransportError: if the broker refuses for any other reason.
    """
    if packet.reason_code == mqtt5.ConnAckReasonCode.SUCCESS:
        return
    details = f" ({packet.reason_str})" if packet.reason_str else ""
    refusal = _REFUSALS.get(int(packet.reason_code))
    if refusal is not None:
        raise BrokerRefused(f"{refusal}{details}")
    raise TransportError(f"the broker refuses the connection: {describe(packet.reason_code)}{details}")


class TakeoverDetector:
    """Detects that another client uses this node's client id.

    A broker announces a takeover in its DISCONNECT packet (reason code 0x8E). Not every broker does: mosquitto 2.0 just
    closes the connection. Six short connections within half a minute therefore count as a takeover, too.

    Attributes:
        detected: Whether a takeover was detected.
    """

    def __init__(self) -> None:
        self.detected = False
        self._closed_at: deque[float] = deque(maxlen=_SHORT_CONNECTIONS)

    def on_disconnect(self, packet: mqtt5.DisconnectPacket) -> None:
        """Take note of the reason that the broker gives for disconnecting."""
        self.detected = int(packet.reason_code) == int(mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER)

    def on_closed(self, opened_at: float, closed_at: float) -> None:
        """Take note of a connection that the broker had accepted and then closed without a reason. Times are in seconds."""
        if closed_at - opened_at >= _SHORT:
            return
        self._closed_at.append(closed_at)
        if len(self._closed_at) == _SHORT_CONNECTIONS and closed_at - self._closed_at[0] < _WINDOW:
            self.detected = True

    def reset(self) -> None:
        """Forget the short connections: the broker cannot be reached, so it was the broker that closed them."""
        self._closed_at.clear()
