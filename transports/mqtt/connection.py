"""One connection to an MQTT 5 broker: bytes in, packets out, and when it ends, why.

It knows nothing of what packets mean: `link.py` does.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import mqtt5

from transports.mqtt.settings import MqttSettings
from transports.resolver import Resolver, detect_cut_connection, trusted

Packet = mqtt5.Packet


_AT_ONCE = 1024 * 1024
"""Bytes that are gathered before they are written."""

CLOSED = "the broker has closed the connection"


class Connection(asyncio.Protocol):
    """Splits what comes into packets, and gathers what goes into few writes.

    Args:
        on_packet: is called for each packet, in order. Raising `ValueError` ends the connection as malformed.
        on_end: is called once, when nothing more will come, with the reason.
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
        self._out: list[bytes] = []
        self._gathered = 0
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
            except IndexError:  # the rest is still to come
                if size - at > self._max_packet:
                    self.end(f"a packet is larger than {self._max_packet} bytes", mqtt5.DisconnectReasonCode.PACKET_TOO_LARGE)
                break
            except ValueError as error:
                self.end(f"the broker sent a malformed packet: {error}", mqtt5.DisconnectReasonCode.MALFORMED_PACKET)
                break
            at += length
            self._on_packet(self, packet)
        self._buffer = bytes(view[at:]) if at < size else b""

    @property
    def receiving(self) -> bool:
        """Whether a part of a packet has come, and its rest has not."""
        return bool(self._buffer)

    # Writing

    def send(self, packet: Any) -> None:
        """Sends a packet with the next write, which gathers all of this turn of the event loop."""
        if self._transport is None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        data: bytes = packet.write()
        self._out.append(data)
        self._gathered += len(data)
        if self._gathered > _AT_ONCE:  # a sender that never waits must find out that the network does
            self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._gathered = 0
        if self._transport is not None and out:
            self.sent_at = self._loop.time()
            self._transport.write(b"".join(out) if len(out) > 1 else out[0])

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    @property
    def congested(self) -> bool:
        """Whether whoever wants to send has to wait: more is on its way than the network takes."""
        return self._writable is not None

    async def writable(self) -> None:
        """Waits while the network is congested."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    # The end

    def end(self, reason: str, code: mqtt5.DisconnectReasonCode = mqtt5.DisconnectReasonCode.NORMAL_DISCONNECTION) -> None:
        """Says why, and closes after what is still to be written."""
        if self._transport is None:
            return
        self._reason = reason
        self.send(mqtt5.DisconnectPacket(reason_code=code))
        self._flush()
        self._transport.close()

    def abort(self, reason: str) -> None:
        """Closes at once: the other side does not answer, or is not to hear more."""
        if self._transport is not None:
            self._reason = reason
            self._transport.abort()


async def connect(
    settings: MqttSettings,
    names: Resolver,
    on_packet: Callable[[Connection, Packet], None],
    on_end: Callable[[Connection, str], None],
) -> Connection:
    """A connection to the first of the broker's addresses that answers. The other arguments are as for `Connection`.

    Raises:
        OSError: none does; it says why the last one did not.
        StartError: the certificates to trust cannot be read.
    """
    url = urlsplit(settings.url)
    secure = url.scheme == "mqtts"
    host, port = url.hostname or "", url.port or (8883 if secure else 1883)
    tls = trusted(settings.ca_file, "transport.mqtt.ca_file") if secure else None
    failed = OSError(f"{host} has no address")
    ips = await names.addresses(host, port)
    for ip in ips:
        try:
            async with asyncio.timeout(settings.connect_timeout / len(ips)):
                transport, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(on_packet, on_end, settings.max_packet), ip, port,
                    ssl=tls, server_hostname=host if secure else None,
                )  # fmt: skip
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            failed = error
        else:
            detect_cut_connection(transport.get_extra_info("socket"), settings.keepalive / 2)
            return connection
    raise failed
