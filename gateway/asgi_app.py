"""The outermost ASGI callable: reserved prefixes go to the Litestar application, everything else to the dispatcher.

One layer lies around both: security headers, CORS (the Fetch standard, section 3.2), compression.
"""

import gzip

from gateway.client import App, Message, Receive, Scope, Send
from gateway.problems import Headers, Problem, of_problem
from gateway.settings import GatewaySettings
from runtime.contract.rest import RESERVED

_RESERVED = frozenset(name.encode() for name in RESERVED)
_COMPRESS_FROM = 1024
_SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_EXPOSED = b"X-Request-Id, Retry-After"
_ALLOWED_HEADERS = b"Authorization, Content-Type, Idempotency-Key, X-Request-Id, Traceparent, Last-Event-ID"


class Front:
    """What granian calls.

    Args:
        pages: the Litestar application.
        api: the dispatcher.
    """

    def __init__(self, settings: GatewaySettings, pages: App, api: App) -> None:
        self._pages = pages
        self._api = api
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            return
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        scope["raw_path"] = raw_path
        scope["header"] = header = dict(scope["headers"])
        accepts, origin = header.get(b"accept-encoding"), header.get(b"origin")
        cors = self._cors(origin) if origin is not None and self._origins else []
        if cors and scope["method"] == "OPTIONS" and b"access-control-request-method" in header:
            await send({"type": "http.response.start", "status": 204, "headers": [*cors, *_preflight()]})
            await send({"type": "http.response.body", "body": b""})
            return
        edge = _Edge(send, cors, accepts is not None and _takes_gzip(accepts))
        app = self._api
        if raw_path[1:].partition(b"/")[0] in _RESERVED:
            app, edge.of_pages = self._pages, True
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET", "head_only": True}
                edge.head_only = True
        try:
            await app(scope, receive, edge)
        except Exception:  # whatever it was, the client gets a problem document; the server logs what is raised again
            if edge.started:
                raise
            status, headers, body = of_problem(Problem(500, "internal", "The gateway failed; its log says why."), "")
            await edge({"type": "http.response.start", "status": status, "headers": headers})
            await edge({"type": "http.response.body", "body": body})
            raise

    def _cors(self, origin: bytes) -> Headers:
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        if origin in self._origins:
            return [(b"access-control-allow-origin", origin), (b"vary", b"Origin"), (b"access-control-expose-headers", _EXPOSED)]
        return []


def _preflight() -> Headers:
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", b"600"),
    ]


class _Edge:
    """The layer around an answer. A body that comes whole is compressed if that is worth it and wanted."""

    __slots__ = ("_cors", "_gzip", "_head", "_send", "head_only", "of_pages", "started")

    def __init__(self, send: Send, cors: Headers, gzip_wanted: bool) -> None:
        self._send = send
        self._cors = cors
        self._gzip = gzip_wanted
        self._head: Message | None = None
        self.head_only = False
        self.of_pages = False
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        head, self._head = self._head, None
        if head is not None:
            headers: Headers = list(head["headers"])
            body = message.get("body", b"")
            if self._gzip and len(body) >= _COMPRESS_FROM and not message.get("more_body", False) and _compressible(headers):
                body = gzip.compress(body, 5)
                headers = [(name, value) for name, value in headers if name != b"content-length"]
                headers += [
                    (b"content-encoding", b"gzip"),
                    (b"vary", b"Accept-Encoding"),
                    (b"content-length", str(len(body)).encode()),
                ]
                message = {"type": "http.response.body", "body": body}
            if self.of_pages:
                given = {name for name, _ in headers}
                headers += [pair for pair in _SECURITY if pair[0] not in given]
            else:
                headers += _SECURITY
            self.started = True
            await self._send({"type": "http.response.start", "status": head["status"], "headers": headers + self._cors})
        await self._send({**message, "body": b""} if self.head_only else message)


def _takes_gzip(accepts: bytes) -> bool:
    """Whether an Accept-Encoding field (RFC 9110, section 12.5.3) has gzip, and not to exclude it."""
    for part in accepts.split(b","):
        coding, _, weight = part.replace(b" ", b"").partition(b";q=")
        if coding.lower() == b"gzip":
            return weight.strip(b"0.") != b"" or weight == b""
    return False


def _compressible(headers: Headers) -> bool:
    kinds = [value for name, value in headers if name == b"content-type"]
    encoded = any(name == b"content-encoding" for name, _ in headers)
    return (
        not encoded
        and bool(kinds)
        and kinds[0].startswith((b"application/json", b"application/problem+json", b"text/", b"image/svg"))
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
