"""The gateway's settings."""

from typing import Annotated

from msgspec import Meta

from runtime import Struct


class GatewaySettings(Struct):
    """How the gateway listens, and what it accepts. Durations are in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """Where it listens; 0 takes a free port."""
    share_port: bool = False
    """Whether other gateways on this machine may listen there too: the system spreads the connections (SO_REUSEPORT)."""
    request_timeout: Annotated[float, Meta(gt=0)] = 30.0
    """The deadline of a request, carried to the services."""
    body_timeout: Annotated[float, Meta(gt=0)] = 10.0
    """How long a body may take to come."""
    max_body: Annotated[int, Meta(ge=1)] = 1024 * 1024
    max_header: Annotated[int, Meta(ge=1024)] = 16 * 1024
    """All header fields of a request together."""
    max_url: Annotated[int, Meta(ge=64)] = 8 * 1024
    max_requests: Annotated[int, Meta(ge=1)] = 1024
    """Requests under way at once, and bodies being read at once; a further one is answered 503."""
    rate: Annotated[float, Meta(ge=0)] = 0
    """Requests a second that one client address may make, on average; 0 sets no limit."""
    burst: Annotated[int, Meta(ge=1)] = 100
    """Requests that one client address may make at once before `rate` counts."""
    max_streams: Annotated[int, Meta(ge=0)] = 10_000
    """Clients that may follow `/live` and `/console/tail` at once; a further one is answered 503."""
    streams_per_user: Annotated[int, Meta(ge=1)] = 16
    """Of one user; a further one is answered 429."""
    stream_heartbeat: Annotated[float, Meta(gt=0)] = 15.0
    """How often a stream on which nothing happens says that it is there."""
    stream_patience: Annotated[float, Meta(gt=0)] = 10.0
    """How long a client may take to receive what it is sent; a slower one is cut off."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API; `*` for all."""
    title: str = "Callboard"
