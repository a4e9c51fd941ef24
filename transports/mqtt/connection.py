"""One connection to an MQTT 5 broker: turns bytes into packets and packets into bytes, and reports why it ended.

`link.py` gives the packets their meaning.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import mqtt5

from runtime import StartError
from runtime.sockets import detect_cut_connection
from transports.mqtt.settings import MqttSettings
from transports.resolver import Resolver
from transports.sockets import tls_context

Packet = mqtt5.Packet


_WRITE_SIZE = 1024 * 1024
"""Bytes to collect before writing them."""

CLOSED = "the broker has closed the connection"
_SHOWN = 20
"""Bytes of something that is not an MQTT packet, which are shown."""
_PUBLISH, _QOS = 0x30, 0x06
"""The type of PUBLISH, and the bits of its QoS, in the first byte of a packet."""
_LONGEST_LENGTH = 5
"""Bytes in which the type and the length of each packet are."""
_LONGEST_HEAD = 5 + 2 + 65_535 + 2
"""Bytes of the longest beginning of a PUBLISH: lengths, topic, and packet id."""


class Connection(asyncio.Protocol):
    """Splits incoming bytes into packets, and combines outgoing packets into few writes.

    Args:
        on_packet: Called for each packet, in order.
        on_end: Called once with the reason, when the connection has ended.
        max_packet: The largest packet to accept, in bytes.
        on_too_large: Called with the topic and the size of each message that is larger, and is dropped.

    Attributes:
        unexpected: What came instead of the first packet, if it was not one: how it begins.
        congested: Whether senders have to wait because the network is congested.
    """

    def __init__(
        self,
        on_packet: Callable[["Connection", Packet], None],
        on_end: Callable[["Connection", str], None],
        max_packet: int,
        on_too_large: Callable[[str, int], None] = lambda _topic, _size: None,
    ) -> None:
        self._on_packet = on_packet
        self._on_end = on_end
        self._on_too_large = on_too_large
        self._max_packet = max_packet
        self._suspicious = min(max_packet, _LONGEST_HEAD)
        """Bytes of a packet that has arrived in part, from which on it may be too large."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        """What has arrived of a packet whose end is still to come."""
        self._missing = 0
        """The bytes that are still to come of that packet, as far as its length is known."""
        self._dropping = 0
        """The bytes of a packet that is too large, which are still to come."""
        self._accepted = False
        self.unexpected: bytes = b""
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.congested: bool = False
        self._writable: asyncio.Future[None] | None = None
        self._reason = CLOSED
        self.heard_at = self.sent_at = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        self._on_end(self, self._reason if exc is None else f"{self._reason}: {exc}")

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        if self._dropping:
            dropped = min(self._dropping, len(data))
            self._dropping -= dropped
            data = data[dropped:]
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        view, at, size, ahead = memoryview(data), 0, len(data), 0
        while at < size and self._transport is not None:
            try:
                packet, length = mqtt5.read(view[at:])
            except IndexError:  # the rest has not arrived yet
                if not self._accepted:
                    self.unexpected = data[:_SHOWN]
                else:
                    if size - at > self._suspicious:
                        at += self._drop_if_too_large(view[at:])
                    ahead = self._length_ahead(view[at:])
                break
            except ValueError as error:
                if self._accepted:
                    self.end(f"the broker sent a malformed packet: {error}", mqtt5.DisconnectReasonCode.MALFORMED_PACKET)
                else:
                    self.unexpected = data[:_SHOWN]
                    self.abort(CLOSED)
                break
            at += length
            if length > self._max_packet and isinstance(packet, mqtt5.PublishPacket):
                self._drop(packet.topic, packet.packet_id, length)
            else:
                self._on_packet(self, packet)
        if at < size:
            self._parts.append(bytes(view[at:]))
            self._missing = ahead - (size - at)

    def _length_ahead(self, view: memoryview) -> int:
        """Return the length of a packet that has arrived in part; 0 if it is not known, or if the packet may have to be dropped."""
        if len(view) < _LONGEST_LENGTH:
            return 0
        length, _ = _length(view)
        return length if length <= self._max_packet else 0

    def accepted(self, on_packet: Callable[["Connection", Packet], None]) -> None:
        """Have another function called for each packet from now on, because the broker has answered CONNECT."""
        self._accepted = True
        self.unexpected = b""
        self._on_packet = on_packet

    def _drop_if_too_large(self, view: memoryview) -> int:
        """Look at a packet that has arrived in part. If it is too large, drop this part and what follows of it.

        Other brokers and clients decide how large a message may be, so one that is too large must not cost the connection. Returns
        how many bytes were dropped.
        """
        length, start = _length(view)
        if length <= self._max_packet:
            return 0
        if view[0] & 0xF0 != _PUBLISH:
            self.end(f"a packet is larger than {self._max_packet} bytes", mqtt5.DisconnectReasonCode.PACKET_TOO_LARGE)
            return 0
        end_of_topic = start + 2 + int.from_bytes(view[start : start + 2], "big")
        if len(view) < end_of_topic + 2:
            return 0
        packet_id = int.from_bytes(view[end_of_topic : end_of_topic + 2], "big") if view[0] & _QOS else None
        self._dropping = length - len(view)
        self._drop(bytes(view[start + 2 : end_of_topic]).decode("utf-8", "replace"), packet_id, length)
        return len(view)

    def _drop(self, topic: str, packet_id: int | None, length: int) -> None:
        if packet_id is not None:  # otherwise the broker would send less and less
            self.send(mqtt5.PubAckPacket(packet_id, reason_code=mqtt5.PubAckReasonCode.QUOTA_EXCEEDED))
        self._on_too_large(topic, length)

    @property
    def receiving(self) -> bool:
        """Whether a packet has arrived only in part."""
        return bool(self._parts or self._dropping)

    # Writing

    def send(self, packet: Any) -> None:
        """Send a packet like `send_bytes`."""
        self.send_bytes(packet.write())

    def send_bytes(self, data: bytes) -> None:
        """Send an encoded packet with the next write, which combines all packets of this turn of the event loop."""
        if self._transport is None:
            return
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > _WRITE_SIZE:  # a sender that never waits has to notice congestion
            self._flush()

    def _flush(self) -> None:
        packets, self._pending = self._pending, []
        self._pending_bytes = 0
        if self._transport is not None and packets:
            self.sent_at = self._loop.time()
            self._transport.write(b"".join(packets) if len(packets) > 1 else packets[0])

    def pause_writing(self) -> None:
        self.congested = True
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        self.congested = False
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    async def writable(self) -> None:
        """Wait while the network is congested."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    # The end

    def end(self, reason: str, code: mqtt5.DisconnectReasonCode = mqtt5.DisconnectReasonCode.NORMAL_DISCONNECTION) -> None:
        """Send DISCONNECT with a reason code, and close the connection after everything is written."""
        if self._transport is None:
            return
        self._reason = reason
        self.send(mqtt5.DisconnectPacket(reason_code=code))
        self._flush()
        self._transport.close()

    def abort(self, reason: str) -> None:
        """Close the connection at once, without sending anything more."""
        if self._transport is not None:
            self._reason = reason
            self._transport.abort()


def _length(view: memoryview) -> tuple[int, int]:
    """Return the length of a packet, and where its content starts (MQTT 5, section 2.1.4)."""
    length, at = 0, 1
    while True:
        byte = view[at]
        length |= (byte & 0x7F) << 7 * (at - 1)
        at += 1
        if not byte & 0x80:
            return length + at, at


async def connect(
    settings: MqttSettings,
    broker: str,
    resolver: Resolver,
    on_packet: Callable[[Connection, Packet], None],
    on_end: Callable[[Connection, str], None],
    on_too_large: Callable[[str, int], None],
) -> Connection:
    """Connect to the first address of the broker with this URL that accepts. The functions are those of `Connection`.

    Raises:
        OSError: if no address accepts a connection; this is the error of the last one.
        StartError: if the broker's certificate cannot be verified, or the file of trusted certificates cannot be read.
    """
    url = urlsplit(broker)
    secure = url.scheme == "mqtts"
    host, port = url.hostname or "", url.port or (8883 if secure else 1883)
    tls = tls_context(settings.ca_file, "transport.mqtt.ca_file") if secure else None
    failure = OSError(f"{host} has no address")
    ips = await resolver.addresses(host, port)
    for ip in ips:
        try:
            async with asyncio.timeout(settings.connect_timeout / len(ips)):
                transport, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(on_packet, on_end, settings.max_packet, on_too_large), ip, port,
                    ssl=tls, server_hostname=host if secure else None,
                )  # fmt: skip
        except ssl.SSLCertVerificationError as error:
            raise StartError(f"its certificate is not to be trusted: {error.verify_message}") from error
        except OSError as error:
            failure = error
        else:
            detect_cut_connection(transport.get_extra_info("socket"), settings.keepalive / 2)
            return connection
    raise failure
