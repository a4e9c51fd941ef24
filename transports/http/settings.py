"""The HTTP transport's settings."""

from typing import Annotated, ClassVar

from msgspec import Meta

from runtime import Struct

Peer = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]*=https?://[^/@\s?#]+$")]


StreamReader = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]*=[a-z][a-z0-9_-]*$")]


class HttpSettings(Struct):
    """Where this node listens, where its peers are, and how they prove who they are. Durations are in seconds, sizes in bytes."""

    __secret__: ClassVar = frozenset({"key"})

    host: str = "127.0.0.1"
    """The address to listen on, or a name that has one, such as `localhost`. `0.0.0.0` and `::` are all addresses of the machine."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8100
    """The port on which the node listens for other services; 0 chooses a free one."""
    peers: tuple[Peer, ...] = ()
    """Where services are, such as `wallet=http://wallet:8100`. A name that resolves to several addresses stands for as many instances."""
    key: str | None = None
    """The private Ed25519 keys of the services on this node: a JWK set in which each key's `kid` is the service's name."""
    peer_keys: str | None = None
    """The public keys of every service, as a JWK set."""
    stream_readers: tuple[StreamReader, ...] = ()
    """Services that may read a stream, besides the subscribers in the setting `services`: `rides=audit` lets audit read that of rides."""
    certificate_file: str | None = None
    """The node's TLS certificate. With this and `private_key_file` the node listens with TLS, and its peers' URLs for it begin with https."""
    private_key_file: str | None = None
    ca_file: str | None = None
    """The certificates by which those of peers are verified; by default, the system's."""
    heartbeat: Annotated[float, Meta(gt=0)] = 5.0
    """How long a peer may wait before it answers again that it is alive; after three missed answers it counts as lost."""
    connect_timeout: Annotated[float, Meta(gt=0)] = 2.0
    max_connections: Annotated[int, Meta(ge=1)] = 512
    """The number of concurrent connections to one address; further requests wait for one of them."""
    max_body: Annotated[int, Meta(ge=1024)] = 16 * 1024 * 1024
    """The largest request and the largest answer, as on every transport. A smaller limit has to be the same on all nodes; a larger one has no effect."""
