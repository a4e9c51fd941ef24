"""The API dispatcher: it turns an HTTP request into a request of a service, and the reply into a response."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from functools import partial

from gateway.bodies import accepts, expected_types, is_unchanged, to_json, to_response, unchanged
from gateway.client import bearer_token, require_token
from gateway.exchange import Exchange
from gateway.limits import Limits
from gateway.manifests import Manifests
from gateway.problems import Headers, Problem, Problems, Response, log_if_refused
from gateway.request_ids import trace_fields
from gateway.routing import Route, Routes, query_params
from gateway.settings import GatewaySettings
from gateway.transfers import INCOMPLETE, TOO_SLOW, BodyStream, Streamed, too_large
from runtime import Context, Forbidden, NoInstance, ServiceError, Unauthenticated
from runtime.contract.byte_stream import stream_of
from runtime.contract.rest import METHODS, RestParts
from runtime.network import Params
from runtime.node.proxy import Proxy
from runtime.telemetry import log_refusal

_log = logging.getLogger("callboard.gateway")

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_JSON: Headers = [(b"content-type", b"application/json")]


class Dispatcher:
    """Routes REST requests to the services and returns their replies.

    Args:
        home: the page to which `/` leads, if no service has a route for it.
    """

    def __init__(
        self, settings: GatewaySettings, proxy: Proxy, limits: Limits, manifests: Manifests, problems: Problems, home: str
    ) -> None:
        self.routes = Routes()
        self._home = home.encode()
        self._manifests = manifests
        self._problems = problems
        self._settings = settings
        self._proxy = proxy
        self._limits = limits
        self._max_url, self._max_header = settings.max_url, settings.max_header
        proxy.registry.watch(self.update_routes)
        self.update_routes()

    def update_routes(self) -> None:
        """Rebuild the routes. Those of a service that is away answer 503, not 404."""
        self.routes = self._manifests.routes()

    async def __call__(self, exchange: Exchange) -> Response | Streamed | None:
        """Answer one request. None if the client has gone."""
        headers, request_id = exchange.fields, exchange.request_id
        try:
            self._limits.admit(exchange.source)
            response = await self._respond(exchange, headers)
            if isinstance(response, Streamed):
                response.headers.append((b"x-request-id", request_id.encode()))
                return response
            status, response_headers, body = response
        except Problem as problem:
            status, response_headers, body = self._problems.of_problem(problem, request_id)
        except ServiceError as error:
            log_if_refused(self._proxy.repeats, error, exchange, request_id, await self._user(error, headers))
            repeatable = not error.maybe_delivered or self._is_repeatable(exchange)
            status, response_headers, body = self._problems.of_error(error, request_id, repeatable=repeatable)
        except asyncio.CancelledError:
            if exchange.was_cancelled and exchange.task.uncancel() == 0:
                return None
            raise
        return status, [*response_headers, (b"x-request-id", request_id.encode())], body

    async def _respond(self, exchange: Exchange, headers: dict[bytes, bytes]) -> Response | Streamed:
        token = bearer_token(headers)  # before the size is checked, so that a token that is too large is answered 401
        if len(exchange.raw_path) + len(exchange.query) > self._max_url or exchange.fields_size > self._max_header:
            self._check_size(exchange)
        method = exchange.method
        match = self.routes.find("GET" if method == "HEAD" else method, exchange.raw_path)
        if match is None:
            return self._without_route(method, exchange)
        route, values = match
        exchange.route = route.name.partition(" ")[2]
        if exchange.has_cookie and token is not None and route.allow.anyone and not await self._is_valid(token):
            token = None  # a page cannot take back its cookie, and has to be able to log in again
        if route.takes_body and not route.allow.anyone:
            await self._authorize(route, token)
        query: Params = query_params(exchange.query) if exchange.query else ()
        has_body = b"content-type" in headers or b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        if route.takes_only_stream:
            self._check_body(route, headers, self._settings.max_stream, is_empty=not (has_body or route.needs_body))
            body = b""
        else:
            body = await self._read_body(exchange, route, headers) if route.takes_body else b""
        ctx = self._proxy.context(
            exchange.request_id,
            token,
            exchange.trace,
            self._settings.stream_timeout if route.takes_stream else self._settings.request_timeout,
            exchange.source or None,
            trace_fields(exchange),
        )
        key = _idempotency_key(headers)
        if key is not None and token is None and route.allow.anyone and route.is_once:
            raise Problem(400, "bad-idempotency-key", "An Idempotency-Key is one user's: send an access token, or no key.")
        exchange.cancel_if_gone()
        content_type = headers.get(b"content-type")
        if route.takes_stream and has_body:
            return await self._forward_stream(exchange, route, ctx, RestParts(values, query, headers), body, key)
        convert = None if content_type is None else partial(to_json, content_type, None)
        parts = RestParts(values, query, headers, convert)
        if not route.is_login:
            return await self._forward(route, ctx, parts, body, key)
        await self._begin_login(exchange.source, exchange.request_id)
        try:
            return await self._forward(route, ctx, parts, body, key)
        finally:
            self._limits.end_login(exchange.source)

    async def _begin_login(self, client: str, request_id: str) -> None:
        try:
            await self._limits.begin_login(client)
        except Problem:
            reason = "too many from this address"
            log_refusal(self._proxy.repeats, "login", reason, service="gateway", client=client, message=request_id)
            raise

    async def _forward_stream(
        self, exchange: Exchange, route: Route, ctx: Context, parts: RestParts, body: bytes, key: str | None
    ) -> Response | Streamed:
        """Make a request whose body is a stream, for some versions of the service or for all: then it was not read yet."""
        fields, client = parts.fields, exchange.source
        coming = BodyStream(exchange, self._settings.max_stream, self._settings.body_timeout)
        length = fields.get(b"content-length")
        if not route.takes_only_stream:
            stream = ctx.offer(_whole(body), len(body))
        else:
            stream = ctx.offer(coming.pieces(), None if length is None else int(length))
        convert = partial(to_json, fields.get(b"content-type", b""), stream)
        async with self._proxy.holding(stream):
            await self._limits.begin_body(client)
            try:
                return await self._forward(route, ctx, parts._replace(convert=convert, stream=stream), body, key)
            except ServiceError:
                if coming.problem is not None:
                    raise coming.problem from None
                raise
            finally:
                self._limits.end_body(client)

    async def _forward(self, route: Route, ctx: Context, parts: RestParts, body: bytes, key: str | None) -> Response | Streamed:
        self._limits.begin_request()
        try:
            http, reply = await self._proxy.forward(ctx, route.service, route.name, parts, body, key)
        finally:
            self._limits.end_request()
        if http.outputs and reply in (b"null", b""):  # the stored reply of a version that had none
            return 204, [], b""
        if http.stream is not None and (stream := stream_of(http.stream.field, reply)) is not None:
            status, headers, _ = response = to_response(http, reply)
            close = partial(self._proxy.close_stream, stream)
            if http.method == "GET" and is_unchanged(headers, parts.fields.get(b"if-none-match")):
                await close()
                return unchanged(response[1])
            chunks = self._running(ctx.read(stream))
            return Streamed(status, headers, chunks, stream.size, close, self._settings.stream_patience)
        if http.outputs:
            response = to_response(http, reply)
            changed = http.method != "GET" or not is_unchanged(response[1], parts.fields.get(b"if-none-match"))
            return response if changed else unchanged(response[1])
        if http.status != 204:
            return http.status, _JSON, reply
        return (204, [], b"") if reply in (b"null", b"") else (200, _JSON, reply)  # the stored reply of a version that had one

    async def _running(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a body. Meanwhile its request counts as running."""
        self._limits.begin_request()
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            self._limits.end_request()
            await chunks.aclose()

    def _is_repeatable(self, exchange: Exchange) -> bool:
        """Return whether a request that may have run may be made again: it is idempotent, or `once` and the client sent a key."""
        method = "GET" if exchange.method == "HEAD" else exchange.method
        match = self.routes.find(method, exchange.raw_path)
        if match is None:
            return False
        return match[0].repeatable_with_key if b"idempotency-key" in exchange.fields else match[0].repeatable

    def _without_route(self, method: str, exchange: Exchange) -> Response:
        """Answer OPTIONS, and refuse a request for which there is no route."""
        raw_path = exchange.raw_path
        methods = set(METHODS) if raw_path == b"*" else self.routes.methods(raw_path)
        if raw_path == b"*" and method != "OPTIONS":
            raise Problem(400, "bad-request", "The target * is for OPTIONS alone.")
        if raw_path != b"*" and (missing := self._manifests.missing()):
            _log.debug("%s %s has no route yet: waiting for %s", method, exchange.path, ", ".join(missing))
            raise Problem(503, "not-ready", "The gateway does not know all routes yet: try again.", [(b"retry-after", b"1")])
        if raw_path != b"*" and (owner := self.routes.awaited("GET" if method == "HEAD" else method, raw_path)) is not None:
            raise NoInstance(owner)
        allowed = ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})).encode()
        if methods and method == "OPTIONS":
            return 204, [(b"allow", allowed)], b""
        if not methods and raw_path == b"/" and method in ("GET", "HEAD"):
            return 307, [(b"location", self._home)], b""
        if not methods:
            raise Problem(404, "not-found", f"Nothing is served at {exchange.path[:200]}.")
        raise Problem(405, "method-not-allowed", f"This path allows {allowed.decode()}.", [(b"allow", allowed)])

    def _check_size(self, exchange: Exchange) -> None:
        if len(exchange.raw_path) + len(exchange.query) > self._max_url:
            raise Problem(414, "uri-too-long", f"The URL is longer than {self._max_url} bytes.")
        limit = self._max_header
        if sum(len(name) + len(value) for name, value in exchange.pairs) > limit:
            raise Problem(431, "headers-too-large", f"The header fields are longer than {limit} bytes.")

    async def _authorize(self, route: Route, token: str | None) -> None:
        """Refuse a request that the service would refuse anyway, before its body is read."""
        token = require_token(token)
        identity = self._proxy.known_identity(token) or await self._proxy.identify(token)
        route.allow.require_user(identity.roles, identity.scopes)

    async def _is_valid(self, token: str) -> bool:
        try:
            return bool(self._proxy.known_identity(token) or await self._proxy.identify(token))
        except Unauthenticated:
            return False

    async def _user(self, error: ServiceError, headers: dict[bytes, bytes]) -> str | None:
        """Return the user whose authorization an error refuses. Perhaps only the service has verified the token."""
        if error.contract != Forbidden.contract or error.code != Forbidden.code:
            return None
        try:
            return (await self._proxy.identify(require_token(bearer_token(headers)))).subject
        except ServiceError:
            return None

    def _check_body(self, route: Route, headers: dict[bytes, bytes], limit: int, *, is_empty: bool = False) -> None:
        """Refuse a body by what the header fields say of it."""
        length = headers.get(b"content-length", b"")
        if length and int(length) > limit:
            raise too_large(limit)
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
            accepted = [(b"accept-encoding", b"identity")]
            raise Problem(415, "unsupported-media-type", "Expected a body without Content-Encoding.", accepted)
        if not is_empty and not accepts(route.bindings, headers.get(b"content-type", b"")):
            raise Problem(415, "unsupported-media-type", f"Expected a body with Content-Type: {expected_types(route.bindings)}.")

    async def _read_body(self, exchange: Exchange, route: Route, headers: dict[bytes, bytes]) -> bytes:
        limit = self._settings.max_body
        length = headers.get(b"content-length", b"")
        if length and int(length) > limit:
            raise too_large(limit)
        client = exchange.source
        await self._limits.begin_body(client)
        try:
            body = exchange.whole_body()
            if body is None:
                body = await self._receive_body(exchange, limit)
            elif len(body) > limit:
                raise too_large(limit)
        finally:
            self._limits.end_body(client)
        self._check_body(route, headers, limit, is_empty=not (body or route.needs_body))
        return body

    async def _receive_body(self, exchange: Exchange, limit: int) -> bytes:
        """Wait for a body and return it."""
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await exchange.receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "incomplete", INCOMPLETE, [(b"connection", b"close")])
                    size += len(message["body"])
                    if size > limit:
                        raise too_large(limit)
                    chunks.append(message["body"])
                    if not message["more_body"]:
                        return b"".join(chunks)
        except TimeoutError:
            raise Problem(408, "body-too-slow", TOO_SLOW, [(b"connection", b"close")]) from None


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _idempotency_key(headers: dict[bytes, bytes]) -> str | None:
    value = headers.get(b"idempotency-key")
    if value is None:
        return None
    key = value.decode("latin-1").strip('"')
    if not _KEY.fullmatch(key):
        raise Problem(400, "bad-idempotency-key", "Expected an Idempotency-Key of 1 to 255 visible ASCII characters.")
    return key
