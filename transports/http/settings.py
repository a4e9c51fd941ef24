"""The HTTP transport's settings."""

from typing import Annotated, ClassVar

from msgspec import Meta

from runtime import Struct

Peer = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]*=https?://[^/@\s?#]+$")]


class HttpSettings(Struct):
    """Where this node listens, where the others are, and who they are. Durations are in seconds, sizes in bytes."""

    __secret__: ClassVar = frozenset({"key"})

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8100
    """Where it listens for other services; 0 takes a free port."""
    peers: tuple[Peer, ...] = ()
    """Where services are, as `wallet=http://wallet:8100`. A name that resolves to several addresses stands for as many instances."""
    key: str | None = None
    """The private Ed25519 keys of the services on this node: a JWK set, each key's `kid` the service's name."""
    peer_keys: str | None = None
    """The public halves of every service's key, as a JWK set."""
    certificate_file: str | None = None
    """With `private_key_file`: this node listens with TLS, and its peers' URLs begin with https."""
    private_key_file: str | None = None
    ca_file: str | None = None
    """The certificates that peers' are verified by; without one, the system's."""
    heartbeat: Annotated[float, Meta(gt=0)] = 5.0
    """How long a peer is asked to wait before it says again that it is there; after three that are missed it counts as lost."""
    connect_timeout: Annotated[float, Meta(gt=0)] = 2.0
    max_connections: Annotated[int, Meta(ge=1)] = 512
    """To one address at once; further requests wait for one of them."""
    max_body: Annotated[int, Meta(ge=1024)] = 16 * 1024 * 1024
