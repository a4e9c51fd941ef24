"""The API dispatcher: it turns an HTTP request into a request of a service, and the reply into a response."""

import asyncio
import logging
import re
from collections.abc import Coroutine
from typing import Any

from gateway.client import ClientDisconnected, Receive, Scope, Send, bearer_token, cancel_on_disconnect, require_token
from gateway.limits import Limits
from gateway.manifests import Manifests
from gateway.problems import Headers, Problem, error_response, log_if_refused, problem_response
from gateway.routing import Route, Routes, query_params
from gateway.settings import GatewaySettings
from runtime import Context, Forbidden, NoInstance, ServiceError
from runtime.contract.rest import METHODS
from runtime.network import Params
from runtime.node.proxy import Proxy
from runtime.tasks import Started
from runtime.telemetry import log_refusal
from runtime.trace import TraceFields

_log = logging.getLogger("callboard.gateway")

Response = tuple[int, Headers, bytes]
"""The status, headers, and body of an HTTP response."""
_Work = Coroutine[Any, Any, tuple[int, bytes]]
"""Makes a request. Returns the status and the JSON text of its reply."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_JSON: Headers = [(b"content-type", b"application/json")]


class Dispatcher:
    """Routes REST requests to the services and returns their replies."""

    def __init__(self, settings: GatewaySettings, proxy: Proxy, limits: Limits, manifests: Manifests) -> None:
        self.routes = Routes()
        self._manifests = manifests
        self._settings = settings
        self._proxy = proxy
        self._limits = limits
        proxy.registry.watch(self.update_routes)
        self.update_routes()

    def update_routes(self) -> None:
        """Rebuild the routes. Those of a service that is away answer 503, not 404."""
        self.routes = self._manifests.routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        headers: dict[bytes, bytes] = scope["header"]
        sent_id = headers.get(b"x-request-id")
        request_id = sent_id.decode() if sent_id is not None and _REQUEST_ID.fullmatch(sent_id) else self._proxy.new_id()
        try:
            self._limits.admit(scope["source"])
            status, response_headers, body = await self._respond(scope, headers, receive, request_id)
        except Problem as problem:
            status, response_headers, body = problem_response(problem, request_id)
        except ServiceError as error:
            log_if_refused(self._proxy.repeats, error, scope, request_id, await self._user(error, headers))
            repeatable = not error.maybe_delivered or self._is_repeatable(scope)
            status, response_headers, body = error_response(error, request_id, repeatable=repeatable)
        except ClientDisconnected:
            return
        response_headers = [*response_headers, (b"x-request-id", request_id.encode())]
        if status != 204:
            response_headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": response_headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, request_id: str) -> Response:
        token = bearer_token(headers)  # before the size is checked, so that a token that is too large is answered 401
        self._check_size(scope)
        method = scope["method"]
        match = self.routes.find("GET" if method == "HEAD" else method, scope["raw_path"])
        if match is None:
            return self._without_route(method, scope)
        route, values = match
        if route.takes_body and not route.allow.anyone:
            await self._authorize(route, token)
        query: Params = query_params(scope["query_string"]) if scope["query_string"] else ()
        client: str = scope["source"]
        body = await self._read_body(scope, route, headers, receive, client) if route.takes_body else b""
        trace, trace_fields = headers.get(b"traceparent"), None
        if b"tracestate" in headers or b"baggage" in headers:
            state, baggage = headers.get(b"tracestate", b""), headers.get(b"baggage", b"")
            trace_fields = TraceFields(state.decode("latin-1"), baggage.decode("latin-1"))
        ctx = self._proxy.context(
            request_id,
            token,
            None if trace is None else trace.decode("latin-1"),
            self._settings.request_timeout,
            client or None,
            trace_fields,
        )
        key = _idempotency_key(headers)
        if key is not None and token is None and route.allow.anyone and route.is_once:
            raise Problem(400, "bad-idempotency-key", "An Idempotency-Key is one user's: send an access token, or no key.")
        if route.is_login:
            await cancel_on_disconnect(self._begin_login(client, request_id), receive, self._proxy.clock.loop)
        try:
            return await self._forward(route, ctx, values, query, body, key, receive)
        finally:
            if route.is_login:
                self._limits.end_login(client)

    async def _begin_login(self, client: str, request_id: str) -> None:
        try:
            await self._limits.begin_login(client)
        except Problem:
            reason = "too many from this address"
            log_refusal(self._proxy.repeats, "login", reason, service="gateway", client=client, message=request_id)
            raise

    async def _forward(
        self, route: Route, ctx: Context, values: tuple[str, ...], query: Params, body: bytes, key: str | None, receive: Receive
    ) -> Response:
        self._limits.begin_request()
        service = route.service
        work: _Work = self._proxy.forward(ctx, service, route.name, values, query, body, key)
        loop = self._proxy.clock.loop
        try:
            if self._proxy.is_remote(service, route.name):
                status, reply = await cancel_on_disconnect(work, receive, loop)
            else:
                status, reply = await _run_at_once(work, receive, loop)
        finally:
            self._limits.end_request()
        if status != 204:
            return status, _JSON, reply
        return (204, [], b"") if reply in (b"null", b"") else (200, _JSON, reply)  # the stored reply of a version that had one

    def _is_repeatable(self, scope: Scope) -> bool:
        """Return whether a request that may have run may be made again: it is idempotent, or `once` and the client sent a key."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        match = self.routes.find(method, scope["raw_path"])
        if match is None:
            return False
        return match[0].repeatable_with_key if b"idempotency-key" in scope["header"] else match[0].repeatable

    def _without_route(self, method: str, scope: Scope) -> Response:
        """Answer OPTIONS, and refuse a request for which there is no route."""
        raw_path: bytes = scope["raw_path"]
        methods = set(METHODS) if raw_path == b"*" else self.routes.methods(raw_path)
        if raw_path == b"*" and method != "OPTIONS":
            raise Problem(400, "bad-request", "The target * is for OPTIONS alone.")
        if raw_path != b"*" and (missing := self._manifests.missing()):
            _log.debug("%s %s has no route yet: waiting for %s", method, scope["path"], ", ".join(missing))
            raise Problem(503, "not-ready", "The gateway does not know all routes yet: try again.", [(b"retry-after", b"1")])
        if raw_path != b"*" and (owner := self.routes.awaited("GET" if method == "HEAD" else method, raw_path)) is not None:
            raise NoInstance(owner)
        allowed = ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})).encode()
        if methods and method == "OPTIONS":
            return 204, [(b"allow", allowed)], b""
        if not methods:
            raise Problem(404, "not-found", f"Nothing is served at {scope['path'][:200]}.")
        raise Problem(405, "method-not-allowed", f"This path allows {allowed.decode()}.", [(b"allow", allowed)])

    def _check_size(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > self._settings.max_url:
            raise Problem(414, "uri-too-long", f"The URL is longer than {self._settings.max_url} bytes.")
        if sum([len(name) + len(value) for name, value in scope["headers"]]) > self._settings.max_header:
            raise Problem(431, "headers-too-large", f"The header fields are longer than {self._settings.max_header} bytes.")

    async def _authorize(self, route: Route, token: str | None) -> None:
        """Refuse a request that the service would refuse anyway, before its body is read."""
        token = require_token(token)
        identity = self._proxy.known_identity(token) or await self._proxy.identify(token)
        if identity.role not in route.allow.roles:
            raise Forbidden

    async def _user(self, error: ServiceError, headers: dict[bytes, bytes]) -> str | None:
        """Return the user whose authorization an error refuses. Perhaps only the service has verified the token."""
        if error.contract != Forbidden.contract or error.code != Forbidden.code:
            return None
        try:
            return (await self._proxy.identify(require_token(bearer_token(headers)))).subject
        except ServiceError:
            return None

    async def _read_body(self, scope: Scope, route: Route, headers: dict[bytes, bytes], receive: Receive, client: str) -> bytes:
        limit = self._settings.max_body
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise Problem(413, "too-large", f"The body is longer than {limit} bytes.", [(b"connection", b"close")])
        chunks: list[bytes] = []
        size = 0
        await self._limits.begin_body(client)
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "incomplete", "The body ended before it was complete.", [(b"connection", b"close")])
                    size += len(message.get("body", b""))
                    if size > limit:
                        raise Problem(413, "too-large", f"The body is longer than {limit} bytes.", [(b"connection", b"close")])
                    chunks.append(message.get("body", b""))
                    if not message.get("more_body", False):
                        scope["body_was_read"] = True
                        break
        except TimeoutError:
            raise Problem(408, "body-too-slow", "The body did not arrive in time.", [(b"connection", b"close")]) from None
        finally:
            self._limits.end_body(client)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
            accepted = [(b"accept-encoding", b"identity")]
            raise Problem(415, "unsupported-media-type", "Expected a body without Content-Encoding.", accepted)
        if (body or route.needs_body) and not _is_json(headers.get(b"content-type", b"")):
            raise Problem(415, "unsupported-media-type", "Expected a body with Content-Type: application/json.")
        return body


async def _run_at_once(work: _Work, receive: Receive, loop: asyncio.AbstractEventLoop) -> tuple[int, bytes]:
    """Await work that often finishes without waiting for anything. The client is watched only if the work has to wait."""
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        reply: tuple[int, bytes] = done.value
        return reply
    return await cancel_on_disconnect(Started(work, waits_for), receive, loop)


def _idempotency_key(headers: dict[bytes, bytes]) -> str | None:
    value = headers.get(b"idempotency-key")
    if value is None:
        return None
    key = value.decode("latin-1").strip('"')
    if not _KEY.fullmatch(key):
        raise Problem(400, "bad-idempotency-key", "Expected an Idempotency-Key of 1 to 255 visible ASCII characters.")
    return key


def _is_json(content_type: bytes) -> bool:
    essence = content_type.partition(b";")[0].strip().lower()
    return essence == b"application/json" or (essence.startswith(b"application/") and essence.endswith(b"+json"))
