"""The gateway's settings."""

from typing import Annotated, Literal

from msgspec import Meta

from runtime import Secret, Struct
from runtime.contract.rest import METHODS
from runtime.issuers import IssuerSettings

_SEGMENTS = r"(/([A-Za-z0-9._~-]+|\{[A-Za-z0-9._~-]*\}))+"
RouteOwner = Annotated[str, Meta(pattern=rf"^((({'|'.join(METHODS)}) )?{_SEGMENTS}/?|/)=[a-z][a-z0-9_-]*$")]
"""The owner of a route or of a prefix. A text that no route can match is refused, because it would protect nothing."""


class IdentitySettings(Struct):
    """Who issues access tokens, and how clients send them to the gateway."""

    scheme: Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")] = "Bearer"
    """The scheme in `Authorization`, such as `Bearer` or `Token`. Upper and lower case are the same."""
    cookie: Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]*$")] = ""
    """The name of a cookie that counts if there is no `Authorization`, for pages in browsers. A request that changes something and
    that a page of another origin has caused is refused with it. Empty for none."""
    issuers: tuple[IssuerSettings, ...] = ()
    """Who issues access tokens beside the auth service, such as an OpenID Connect provider. Every node verifies them itself."""


class GatewaySettings(Struct):
    """Where the gateway listens and which limits it sets. Durations are in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    """The address to listen on, or a name that has one, such as `localhost`. `0.0.0.0` and `::` are all addresses of the machine."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """The port to listen on; 0 takes a free one."""
    share_port: bool = False
    """Whether other gateways on this machine may listen on the same port. The operating system distributes the connections (SO_REUSEPORT)."""
    drain_delay: Annotated[float, Meta(ge=0)] = 0.0
    """How long it keeps serving after the signal to stop, with `/readyz` at 503, so that load balancers notice
    and clients close the connections that they keep. `dev` does not wait, and `up` only if it runs several gateways."""
    expects: tuple[str, ...] = ()
    """The services whose routes it has to know before it is ready. Until then it answers 503, not 404, where it knows no route.
    `dev` and `up` set it to the services that they run. If it is empty, any service with routes is enough."""
    forget_after: Annotated[float, Meta(gt=0)] = 4 * 3600.0
    """How long it keeps the routes of a service without an instance, which answer 503 and stay in `/openapi.json`. After that they
    are unknown: 404. The same holds for a route that the instances of a newer or older version do not have. A service in `expects`
    or `owners` is never forgotten while it is away."""
    metrics: Literal["guarded", "public"] = "guarded"
    """Who may read `/metrics`: operators and holders of `metrics_token`, or everybody. `dev` shows it to everybody. The port
    `health.port` of each node has the same page, for collectors within the network."""
    metrics_token: Annotated[Secret[str], Meta(min_length=16)] | None = None
    """The bearer token with which a collector reads `/metrics`."""
    console: Literal["off", "operators"] = "off"
    """Who may use the console at `/console`: nobody, or operators and admins after a login. `dev` opens it to everybody on this machine."""
    request_timeout: Annotated[float, Meta(gt=0)] = 30.0
    """The deadline of a request, which is passed on to the services."""
    body_timeout: Annotated[float, Meta(gt=0)] = 10.0
    """The time limit for reading a request body."""
    max_body: Annotated[int, Meta(ge=1)] = 1024 * 1024
    """The largest request body."""
    max_stream: Annotated[int, Meta(ge=1)] = 1024 * 1024 * 1024
    """The largest request body that a service takes as a `ByteStream`, which the gateway passes on in pieces."""
    stream_timeout: Annotated[float, Meta(gt=0)] = 600.0
    """The deadline of a request whose body is such a stream. For each piece, `body_timeout` applies, and `stream_patience` for the pieces of a
    response."""
    max_header: Annotated[int, Meta(ge=1024)] = 16 * 1024
    """The largest total size of a request's header fields."""
    max_url: Annotated[int, Meta(ge=64)] = 8 * 1024
    """The longest URL."""
    max_requests: Annotated[int, Meta(ge=1)] = 1024
    """The most requests handled at once, and the most bodies read at once. Further requests get status 503."""
    rate: Annotated[float, Meta(ge=0)] = 0
    """The average number of requests per second that one client address may make. 0 means no limit."""
    burst: Annotated[int, Meta(ge=1)] = 100
    """The number of requests that one client address may make at once before `rate` applies."""
    bodies_per_address: Annotated[int, Meta(ge=1)] = 128
    """The most request bodies of one client address read at once; others wait. Of IPv6, all addresses of a /64 network count as one."""
    logins_per_address: Annotated[int, Meta(ge=1)] = 16
    """The most logins, registrations, and changes of a password that one client address may have under way at once; others wait."""
    login_rate: Annotated[float, Meta(ge=0)] = 5.0
    """The average number of those per second that one client address may make. 0 means no limit."""
    login_burst: Annotated[int, Meta(ge=1)] = 500
    """The number of those that one client address may make at once before `login_rate` applies."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies, such as `10.0.0.0/8`. From them, `Forwarded` or `X-Forwarded-For` names the client's address."""
    owners: tuple[RouteOwner, ...] = ()
    """The service to which a route or all paths below a prefix belong: `/sessions=auth`, `POST /rides=rides`. Others belong to the first
    service that announces them. While the owner is away, its requests get 503."""
    max_streams: Annotated[int, Meta(ge=0)] = 10_000
    """The most streams of `/live` and `/console/tail` open at once. Further requests for one get status 503."""
    streams_per_user: Annotated[int, Meta(ge=1)] = 16
    """The most streams open at once for one user. When a further one opens, the oldest ends."""
    stream_heartbeat: Annotated[float, Meta(gt=0)] = 15.0
    """The interval between the heartbeats of a stream."""
    stream_patience: Annotated[float, Meta(gt=0)] = 10.0
    """How long the client of a stream may take to receive one write. Slower clients are disconnected."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API. `*` admits all."""
    errors: str = ""
    """The class that makes the bodies of responses to errors, as `package.module:Class`. Empty for problem documents (RFC 9457)."""
    title: str = "Callboard"
    """The title of the API in its documentation."""
    version: str = "0"
    """The version of the API, which `/docs` and `/openapi.json` show."""
