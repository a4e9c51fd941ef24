"""Manifests that are larger than a packet: they are published in parts, each retained under a topic of its own."""

from hashlib import blake2b

import mqtt5

from runtime.network import Address
from transports.mqtt.limits import Limits

HEADER = "part"
"""The User Property of a part: its number, how many there are, and a digest of the whole manifest."""
_SIGN = "~"
"""Stands between the id of a node and the number of a part in a topic. No id has it."""
_MOST = 4096
"""The largest number of parts."""
_LENGTHS = 3
"""Bytes by which the length of a packet may become longer (MQTT 5, section 1.5.5)."""

Headers = list[tuple[str, str]]


def digest_of(manifest: bytes) -> str:
    """Return the digest by which the parts of a manifest are known."""
    return blake2b(manifest, digest_size=8).hexdigest()


def split(manifest: bytes, topic: str, limits: Limits, headers: Headers) -> list[tuple[str, bytes, Headers]]:
    """Return what to publish for a manifest: topic, payload, and headers of each part. One that fits into a packet has one part.

    The first part is the last of the list: when it arrives, the others have arrived before.

    Args:
        topic: The topic of the manifest, which is also the topic of its first part.
        headers: The headers of each part.

    Raises:
        TooLarge: if it would have too many parts.
    """
    if len(manifest) <= _room(topic, limits, headers):
        return [(topic, manifest, headers)]
    digest = digest_of(manifest)
    size = _room(_topic(topic, _MOST), limits, [*headers, (HEADER, f"{_MOST}/{_MOST}/{digest}")])
    pieces = [manifest[start : start + size] for start in range(0, len(manifest), size)]
    if len(pieces) > _MOST:
        raise limits.too_large(len(manifest))
    return [
        (_topic(topic, number), piece, [*headers, (HEADER, f"{number}/{len(pieces)}/{digest}")])
        for number, piece in reversed(list(enumerate(pieces, start=1)))
    ]


def _room(topic: str, limits: Limits, headers: Headers) -> int:
    """Return how many bytes of payload fit into a packet."""
    packet = mqtt5.PublishPacket(
        topic, b"", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1, message_expiry_interval=1, user_properties=headers
    )
    return max(1, limits.max_packet - len(packet.write()) - _LENGTHS)


def _topic(topic: str, number: int) -> str:
    return topic if number == 1 else f"{topic}{_SIGN}{number}"


def node_of(level: str) -> str:
    """Return the node that a topic level names, with or without the number of a part."""
    return level.partition(_SIGN)[0]


class Part:
    """One part of a manifest, as its header describes it.

    Raises:
        ValueError: if the header cannot be read.
    """

    def __init__(self, header: str) -> None:
        number, _, rest = header.partition("/")
        total, _, self.digest = rest.partition("/")
        if not (number.isascii() and number.isdigit() and total.isascii() and total.isdigit()):
            raise ValueError(f"the header {HEADER} is not like 1/3/0123456789abcdef: {header!r:.60}")
        self.number, self.total = int(number), int(total)
        if not 1 <= self.number <= self.total <= _MOST:
            raise ValueError(f"the header {HEADER} is not like 1/3/0123456789abcdef: {header!r:.60}")


class ManifestParts:
    """The parts of manifests that have arrived."""

    def __init__(self) -> None:
        self._arrived: dict[Address, tuple[str, dict[int, bytes]]] = {}

    def add(self, address: Address, part: Part, packet: mqtt5.PublishPacket) -> bytes | None:
        """Add a part. Return the manifest if this part completes it, or is its first part and the others are there."""
        digest, pieces = self._arrived.get(address, ("", {}))
        if digest != part.digest:
            pieces = {}
            self._arrived[address] = part.digest, pieces
        complete = len(pieces) == part.total
        pieces[part.number] = packet.payload
        if len(pieces) < part.total or (complete and part.number != 1):
            return None
        manifest = b"".join(pieces[number] for number in sorted(pieces))
        if digest_of(manifest) != part.digest:
            raise ValueError(f"the parts of the manifest of {address} do not fit together")
        return manifest

    def forget(self, node: str) -> None:
        """Forget what has arrived of the manifests of a node."""
        for address in [address for address in self._arrived if address.node == node]:
            del self._arrived[address]
