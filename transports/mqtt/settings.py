"""The MQTT transport's settings."""

from typing import Annotated, ClassVar

from msgspec import Meta

from runtime import Struct

Url = Annotated[str, Meta(pattern=r"^mqtts?://[^/@\s]+$")]


class MqttSettings(Struct):
    """Which broker to connect to, as which user, and how. Durations are in seconds, sizes in bytes."""

    __secret__: ClassVar = frozenset({"password"})

    url: Url = "mqtt://127.0.0.1:1883"
    """`mqtt://host:port`, or `mqtts://` for TLS (port 8883 by default)."""
    urls: tuple[Url, ...] = ()
    """The brokers of a cluster, which are tried in turn. If there are any, `url` is not used."""
    username: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")] | None = None
    """On a broker with access rules, the name of the service that the node runs."""
    password: str | None = None
    ca_file: str | None = None
    """The certificates by which the broker's is verified; by default, the system's."""
    namespace: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+$")] = "callboard"
    """The first level of every topic. Systems with different namespaces can share a broker."""
    keepalive: Annotated[int, Meta(ge=1, le=600)] = 10
    """How soon each side notices that the other has disappeared: after one and a half keepalives, or after half of one if the network is cut."""
    heartbeat: Annotated[float, Meta(gt=0)] = 5.0
    """The time between two announcements of an instance; after three missed ones it counts as lost."""
    connect_timeout: Annotated[float, Meta(gt=0)] = 5.0
    max_packet: Annotated[int, Meta(ge=1024)] = 17 * 1024 * 1024
    """The largest packet that the node sends or takes; the broker's own limit counts, too, if it is lower. Give all nodes the same value."""

    @property
    def brokers(self) -> tuple[str, ...]:
        """The URLs of all brokers."""
        return self.urls or (self.url,)
