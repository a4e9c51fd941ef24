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
OLD_VERSION = "the broker speaks MQTT 3.1.1 and not MQTT 5, which is needed: use mosquitto 2, ejabberd, or another MQTT 5 broker"
_OLD_CONNACK = b"\x20\x02"
"""How the CONNACK of MQTT 3.1.1 begins. In MQTT 5, it is longer."""


class Connection(asyncio.Protocol):
    """Splits incoming bytes into packets, and combines outgoing packets into few writes.

    Args:
        on_packet: Called for each packet, in order.
        on_end: Called once with the reason, when the connection has ended.
        max_packet: The largest packet to accept, in bytes.
    """

    def __init__(
        self, on_packet: Callable[["Connection", Packet], None], on_end: Callable[["Connection", str], None], max_packet: int
    ) -> None:
        self._on_packet = on_packet
        self._on_end = on_end
        self._max_packet = max_packet
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._pending: list[bytes] = []
        self._pending_bytes = 0
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
        if self._buffer:
            data = self._buffer + data
        view, at, size = memoryview(data), 0, len(data)
        while at < size and self._transport is not None:
            try:
                packet, length = mqtt5.read(view[at:])
            except IndexError:  # the rest has not arrived yet
                if size - at > self._max_packet:
                    self.end(f"a packet is larger than {self._max_packet} bytes", mqtt5.DisconnectReasonCode.PACKET_TOO_LARGE)
                break
            except ValueError as error:
                if bytes(view[at : at + 2]) == _OLD_CONNACK:
                    self.abort(OLD_VERSION)
                else:
                    self.end(f"the broker sent a malformed packet: {error}", mqtt5.DisconnectReasonCode.MALFORMED_PACKET)
                break
            at += length
            self._on_packet(self, packet)
        self._buffer = bytes(view[at:]) if at < size else b""

    @property
    def receiving(self) -> bool:
        """Whether a packet has arrived only in part."""
        return bool(self._buffer)

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
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    @property
    def congested(self) -> bool:
        """Whether senders have to wait because the network is congested."""
        return self._writable is not None

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


async def connect(
    settings: MqttSettings,
    broker: str,
    resolver: Resolver,
    on_packet: Callable[[Connection, Packet], None],
    on_end: Callable[[Connection, str], None],
) -> Connection:
    """Connect to the first address of the broker with this URL that accepts. `on_packet` and `on_end` are those of `Connection`.

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
                    lambda: Connection(on_packet, on_end, settings.max_packet), ip, port,
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
