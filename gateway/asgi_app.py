"""The outermost ASGI callable: it sends reserved prefixes to the Litestar application and everything else to the dispatcher.

It adds security headers, CORS headers (the Fetch standard, section 3.2), and compression to the responses of both.
"""

import gzip
from collections.abc import Callable

from gateway.addresses import Addresses, source
from gateway.client import App, Message, Receive, Scope, Send
from gateway.fields import read_fields
from gateway.problems import Headers, Problem, problem_response
from gateway.settings import GatewaySettings
from gateway.unread import Unread
from runtime.contract.rest import RESERVED

_RESERVED = frozenset(name.encode() for name in RESERVED)
_COMPRESS_FROM = 1024
"""Bytes from which a body is worth compressing."""
_SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"server", b""),  # granian would name itself
]
_EXPOSED = b"X-Request-Id, Retry-After"
_ALLOWED_HEADERS = b"Authorization, Content-Type, Idempotency-Key, X-Request-Id, Traceparent, Tracestate, Baggage, Last-Event-ID"


class AsgiApp:
    """The ASGI application that granian calls.

    Args:
        settings: the settings of the gateway, which list the origins that CORS admits.
        pages: the Litestar application.
        api: the dispatcher.
        new_id: returns an id for a request.
        addresses: finds the address of a client.

    Attributes:
        closing: whether every answer closes its connection, because the gateway is stopping.
        requests: the number of requests so far.
    """

    def __init__(self, settings: GatewaySettings, pages: App, api: App, new_id: Callable[[], str], addresses: Addresses) -> None:
        self._pages = pages
        self._api = api
        self._new_id = new_id
        self._addresses = addresses
        self.closing = False
        self.requests = 0
        self._unread = Unread(settings.max_requests, lambda: self.closing)
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            return
        self.requests += 1
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        scope["raw_path"] = raw_path
        try:
            scope["header"] = header = read_fields(scope)
        except Problem as problem:
            await self._answer(_Response(send, [], accepts_gzip=False), problem)  # which closes the connection
            await self._unread.drain(receive)
            return
        peer = scope.get("client")
        scope["source"] = source(self._addresses.client(peer[0] if peer else "", scope["headers"]))
        accept_encoding, origin = header.get(b"accept-encoding"), header.get(b"origin")
        cors = self._cors(origin) if origin is not None and self._origins else []
        if self.closing:
            send = _closing(send)
        if cors and scope["method"] == "OPTIONS" and b"access-control-request-method" in header:
            await send({"type": "http.response.start", "status": 204, "headers": [*cors, *_preflight()]})
            await send({"type": "http.response.body", "body": b""})
            return
        response = _Response(send, cors, accepts_gzip=accept_encoding is not None and _accepts_gzip(accept_encoding))
        response.head_only = scope["method"] == "HEAD"
        app = self._api
        if raw_path[1:].partition(b"/")[0] in _RESERVED:
            app, response.from_pages = self._pages, True
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET", "head_only": True}
        try:
            await app(scope, receive, response)
        except Exception:  # the client gets a problem document, and the server logs the error that is raised again
            if response.started:
                raise
            await self._answer(response, Problem(500, "internal", "The gateway failed. Its log has the reason."))
            raise
        if (b"content-length" in header or b"transfer-encoding" in header) and "body_was_read" not in scope:
            await self._unread.drain(receive)

    async def _answer(self, response: "_Response", problem: Problem) -> None:
        request_id = self._new_id()
        status, headers, body = problem_response(problem, request_id)
        headers += [(b"x-request-id", request_id.encode()), (b"content-length", str(len(body)).encode())]
        await response({"type": "http.response.start", "status": status, "headers": headers})
        await response({"type": "http.response.body", "body": body})

    def _cors(self, origin: bytes) -> Headers:
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        if origin in self._origins:
            return [(b"access-control-allow-origin", origin), (b"vary", b"Origin"), (b"access-control-expose-headers", _EXPOSED)]
        return []


def _closing(send: Send) -> Send:
    """Return a callable that sends a response after which the connection is closed."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start" and not any(name == b"connection" for name, _ in message["headers"]):
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return send_and_close


def _preflight() -> Headers:
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-max-age", b"600"),
        (b"server", b""),
    ]


class _Response:
    """Sends a response with the added headers. It compresses a body if the client accepts gzip and the body arrives in one piece.

    Attributes:
        head_only: whether to leave out the body, because the request's method is HEAD.
        from_pages: whether the Litestar application sends the response. The security headers that it sets take precedence.
        started: whether the head of the response has been sent.
    """

    __slots__ = ("_cors", "_gzip", "_head", "_send", "from_pages", "head_only", "started")

    def __init__(self, send: Send, cors: Headers, *, accepts_gzip: bool) -> None:
        self._send = send
        self._cors = cors
        self._gzip = accepts_gzip
        self._head: Message | None = None
        self.head_only = False
        self.from_pages = False
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
            if self.from_pages:
                present = {name for name, _ in headers}
                headers += [pair for pair in _SECURITY if pair[0] not in present]
            else:
                headers += _SECURITY
            self.started = True
            await self._send({"type": "http.response.start", "status": head["status"], "headers": headers + self._cors})
        await self._send({**message, "body": b""} if self.head_only else message)


def _accepts_gzip(accept_encoding: bytes) -> bool:
    """Return whether an Accept-Encoding field (RFC 9110, section 12.5.3) lists gzip with a weight above zero."""
    for part in accept_encoding.split(b","):
        coding, _, weight = part.replace(b" ", b"").partition(b";q=")
        if coding.lower() == b"gzip":
            return weight.strip(b"0.") != b"" or weight == b""
    return False


def _compressible(headers: Headers) -> bool:
    content_types = [value for name, value in headers if name == b"content-type"]
    encoded = any(name == b"content-encoding" for name, _ in headers)
    return (
        not encoded
        and bool(content_types)
        and content_types[0].startswith((b"application/json", b"application/problem+json", b"text/", b"image/svg"))
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
