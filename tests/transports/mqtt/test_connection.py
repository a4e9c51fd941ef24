"""A connection: how it splits what arrives into packets."""

import asyncio

import mqtt5
import pytest

from transports.mqtt.connection import Connection, Packet

MAX_PACKET = 150_000
SMALL = (b"", b"x", b"y" * 200, b"z" * 20_000)
LARGE = (*SMALL, b"v" * 70_000, b"w" * 140_000, b"last")


@pytest.mark.parametrize(
    ("size", "payloads"), [(1, SMALL), (2, SMALL), (5, SMALL), (6, SMALL), (999, LARGE), (65_536, LARGE), (1_000_000, LARGE)]
)
async def test_packets_arrive_whole_in_whatever_pieces_they_come(size: int, payloads: tuple[bytes, ...]) -> None:
    arrived: list[bytes] = []
    dropped: list[tuple[str, int]] = []
    connection = Connection(lambda _, packet: None, lambda _, reason: None, MAX_PACKET, lambda *what: dropped.append(what))
    connection.connection_made(asyncio.Transport())

    def on_packet(_: Connection, packet: Packet) -> None:
        assert isinstance(packet, mqtt5.PublishPacket)
        arrived.append(packet.payload)

    connection.accepted(on_packet)
    too_large = mqtt5.PublishPacket("large", b"u" * (MAX_PACKET + 1)).write()
    sent = b"".join(mqtt5.PublishPacket("topic", payload).write() for payload in payloads)
    data = sent + (too_large if payloads is LARGE else b"") + sent
    for at in range(0, len(data), size):
        connection.data_received(data[at : at + size])
    assert arrived == [*payloads, *payloads]
    assert dropped == ([("large", len(too_large))] if payloads is LARGE else [])
    assert not connection.receiving
    connection.data_received(sent[:1])
    assert connection.receiving
