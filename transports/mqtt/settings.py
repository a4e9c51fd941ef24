"""The MQTT transport's settings."""

from typing import Annotated, ClassVar

from msgspec import Meta

from runtime import Struct


class MqttSettings(Struct):
    """Which broker, as whom, and how. Durations are in seconds, sizes in bytes."""

    __secret__: ClassVar = frozenset({"password"})

    url: Annotated[str, Meta(pattern=r"^mqtts?://[^/@\s]+$")] = "mqtt://127.0.0.1:1883"
    """`mqtt://host:port`, or `mqtts://` for TLS (port 8883 by default)."""
    username: str | None = None
    """By the broker's access rules the name of the service, where a node runs one."""
    password: str | None = None
    ca_file: str | None = None
    """The certificates that the broker's is verified by; without one, the system's."""
    namespace: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+$")] = "callboard"
    """The first level of every topic: systems with different ones do not meet on a broker."""
    keepalive: Annotated[int, Meta(ge=1, le=600)] = 10
    """How soon each side notices that the other is gone without a word: after one and a half of it; after half of it where the network is cut."""
    heartbeat: Annotated[float, Meta(gt=0)] = 5.0
    """How often an instance announces itself again; after three that are missed it counts as lost."""
    connect_timeout: Annotated[float, Meta(gt=0)] = 5.0
    max_packet: Annotated[int, Meta(ge=1024)] = 17 * 1024 * 1024
    """The largest packet that is taken."""
