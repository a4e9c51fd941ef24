"""What answers every request: it sends reserved prefixes to the Litestar application and everything else to the dispatcher.

It adds CORS headers (the Fetch standard, section 3.2) to the responses of both.
"""

import logging
from collections.abc import Awaitable, Callable

from gateway.access_log import CLIENT_GONE, PROBES, AccessLog
from gateway.addresses import Addresses, source
from gateway.asgi import App, Page
from gateway.credentials import Credentials
from gateway.exchange import Exchange
from gateway.problems import Headers, Problem, Problems, Response
from gateway.request_ids import KNOWN_METHODS, end_span, identify
from gateway.responses import respond
from gateway.settings import GatewaySettings
from gateway.transfers import Streamed, send
from gateway.unread import Unread
from runtime.contract.rest import RESERVED
from runtime.metrics import Histogram
from runtime.node.proxy import Proxy
from runtime.repeats import fault
from runtime.telemetry import current

Api = Callable[[Exchange], Awaitable[Response | Streamed | None]]
"""Answers a request of the API. It returns None if the client has gone."""

_RESERVED = frozenset(name.encode() for name in RESERVED)
_EXPOSED = b"X-Request-Id, Retry-After"
_ALLOWED_HEADERS = b"Authorization, Content-Type, Idempotency-Key, X-Request-Id, Traceparent, Tracestate, Baggage, Last-Event-ID"
_PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
    (b"access-control-max-age", b"600"),
]


class HttpApp:
    """Answers the requests that the server has read.

    Args:
        settings: the settings of the gateway, which list the origins that CORS admits.
        pages: the Litestar application.
        api: the dispatcher.
        proxy: makes ids, and logs failures.
        addresses: finds the address of a client.
        credentials: finds the access token of a request.
        problems: makes responses to errors.
        own_fields: returns the header fields that the routes read and send, for pages of other origins.

    Attributes:
        closing: whether the gateway is stopping.
        requests: the number of requests so far.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        pages: App,
        api: Api,
        proxy: Proxy,
        addresses: Addresses,
        credentials: Credentials,
        problems: Problems,
        own_fields: Callable[[], tuple[bytes, bytes]],
    ) -> None:
        self._pages = pages
        self._api = api
        self._proxy = proxy
        self._addresses = addresses
        self._credentials = None if credentials.standard else credentials
        self._problems = problems
        self._own_fields = own_fields
        self._access = AccessLog(proxy)
        self._measured: dict[tuple[str, str, int], Histogram] = {}
        self._running = 0
        proxy.metrics.gauge("http_requests_running", lambda: self._running)
        self.closing = False
        self.requests = 0
        self._unread = Unread(settings.max_requests, lambda: self.closing)
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer a request, and log it."""
        began = self._proxy.clock.stopwatch()
        self.requests += 1
        tracing = None if exchange.raw_path in PROBES else self._proxy.tracing
        span = identify(exchange, self._proxy.random, tracing)
        current.set(exchange)
        self._running += 1
        try:
            await self._answer(exchange)
        finally:
            self._running -= 1
            seconds = self._proxy.clock.stopwatch() - began
            status = exchange.status or CLIENT_GONE
            if span is not None:
                end_span(span, exchange, status)
            self._measure(exchange, status, seconds)
            self._access.log(exchange, seconds)
        if not exchange.body_has_come and exchange.is_ended and not exchange.is_unwanted:
            await self._unread.drain(exchange.receive)

    def _measure(self, exchange: Exchange, status: int, seconds: float) -> None:
        key = exchange.method, exchange.route, status
        measured = self._measured.get(key)
        if measured is None:
            method = exchange.method if exchange.method in KNOWN_METHODS else "other"
            labels = {"method": method, "route": exchange.route, "status": str(status)}
            measured = self._proxy.metrics.histogram("http_request_duration_seconds", **labels)
            if method != "other":
                self._measured[key] = measured
        measured.observe(seconds)

    async def _answer(self, exchange: Exchange) -> None:
        fields = exchange.fields
        if self._addresses.has_trusted:
            exchange.source = source(self._addresses.client(exchange.peer, exchange.pairs))
        origin = fields.get(b"origin") if self._origins else None
        cors = self._cors(origin) if origin is not None else []
        if exchange.problem is not None:
            self._fail(exchange, exchange.problem, [])  # which closes the connection
        elif cors and exchange.method == "OPTIONS" and b"access-control-request-method" in fields:
            allowed = (b"access-control-allow-headers", _ALLOWED_HEADERS + self._own_fields()[0])
            exchange.respond(204, [*cors, allowed, *_PREFLIGHT], b"")
        else:
            try:
                if self._credentials is not None:
                    exchange.challenge = self._credentials.challenge
                    self._credentials.read(exchange)
                if exchange.raw_path[1:].partition(b"/")[0] in _RESERVED:
                    await Page(exchange, cors).serve(self._pages)
                elif isinstance(response := await self._api(exchange), Streamed):
                    if (broken := await send(exchange, response, cors)) is not None:
                        self._proxy.repeats.log(
                            self._proxy.log,
                            logging.WARNING,
                            ("stream", exchange.raw_path),
                            "the answer to %s is incomplete: %s",
                            exchange,
                            broken,
                        )
                elif response is not None:
                    respond(exchange, response, cors)
            except Problem as problem:
                self._fail(exchange, problem, cors)
            except Exception as error:
                self._proxy.repeats.log(
                    self._proxy.log, logging.ERROR, fault(error), "answering %s failed: %r", exchange, error, exc_info=error
                )
                if not exchange.is_started:
                    self._fail(exchange, Problem(500, "internal", "The gateway failed. Its log has the reason."), cors)

    def _fail(self, exchange: Exchange, problem: Problem, cors: Headers) -> None:
        status, headers, body = self._problems.of_problem(problem, exchange.request_id)
        respond(exchange, (status, [*headers, (b"x-request-id", exchange.request_id.encode())], body), cors)

    def _cors(self, origin: bytes) -> Headers:
        exposed = (b"access-control-expose-headers", _EXPOSED + self._own_fields()[1])
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), exposed]
        if origin in self._origins:
            return [(b"access-control-allow-origin", origin), (b"vary", b"Origin"), exposed]
        return []
