"""The API dispatcher: from an HTTP request to a service's reply."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any

from gateway import problems
from gateway.client import Gone, Receive, Scope, Send, bearer, until_gone
from gateway.limits import Limits
from gateway.problems import Headers, Problem
from gateway.routing import Route, Routes, query_params
from gateway.settings import GatewaySettings
from runtime import Forbidden, ServiceError, Unauthenticated
from runtime.network import Manifest, Params
from runtime.node.proxy import Proxy
from runtime.tasks import Started

Answer = tuple[int, Headers, bytes]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_JSON: Headers = [(b"content-type", b"application/json")]


class Dispatcher:
    """Routes REST requests to the services, and their replies back."""

    def __init__(self, settings: GatewaySettings, proxy: Proxy, limits: Limits) -> None:
        self.routes = Routes()
        self._seen: dict[str, Manifest] = {}
        self._settings = settings
        self._proxy = proxy
        self._limits = limits
        proxy.registry.watch(self._learn)
        self._learn()

    def _learn(self) -> None:
        """Makes the table of routes anew from who is there; who was there may come back, and is 503 meanwhile, not 404."""
        there = {member.manifest.service: member.manifest for member in self._proxy.registry}
        self._seen |= there
        gone = [manifest for service, manifest in self._seen.items() if service not in there]
        self.routes = Routes(there.values(), gone)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        headers: dict[bytes, bytes] = scope["header"]
        given_id = headers.get(b"x-request-id")
        request_id = given_id.decode() if given_id is not None and _REQUEST_ID.fullmatch(given_id) else self._proxy.new_id()
        try:
            client = scope.get("client")
            self._limits.arrive(client[0] if client else "")
            status, answer_headers, body = await self._answer(scope, headers, receive, request_id)
        except Problem as problem:
            status, answer_headers, body = problems.of_problem(problem, request_id)
        except ServiceError as error:
            status, answer_headers, body = problems.of_error(error, request_id)
        except Gone:
            return
        answer_headers = [*answer_headers, (b"x-request-id", request_id.encode())]
        if status != 204:
            answer_headers.append((b"content-length", str(len(body)).encode()))
        if scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.start", "status": status, "headers": answer_headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, request_id: str) -> Answer:
        self._check_size(scope)
        found = self.routes.find(scope["raw_path"])
        if found is None:
            raise Problem(404, "not-found", f"There is nothing at {scope['path'][:200]}.")
        methods, values = found
        method = scope["method"]
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})).encode()
            if method == "OPTIONS":
                return 204, [(b"allow", allowed)], b""
            raise Problem(405, "method-not-allowed", f"Allowed here: {allowed.decode()}.", [(b"allow", allowed)])
        token = bearer(headers)
        if route.takes_body and not route.allow.anyone:
            await self._authorize(route, token)
        params: Params = tuple(zip(route.fields, values, strict=True))
        if scope["query_string"]:
            params += query_params(scope["query_string"])
        body = await self._body(route, headers, receive) if route.takes_body else b""
        trace = headers.get(b"traceparent")
        ctx = self._proxy.context(
            request_id, token, None if trace is None else trace.decode("latin-1"), self._settings.request_timeout
        )
        key = _idempotency_key(headers)
        self._limits.enter()
        work: Coroutine[Any, Any, bytes] = self._proxy.forward(ctx, route.service, route.info.name, params, body, key)
        loop = self._proxy.clock.loop
        try:
            reply = await (
                until_gone(work, receive, loop) if self._proxy.is_remote(route.service) else _at_once(work, receive, loop)
            )
        finally:
            self._limits.leave()
        return (204, [], b"") if route.status == 204 else (route.status, _JSON, reply)

    def _check_size(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > self._settings.max_url:
            raise Problem(414, "uri-too-long", f"The URL has more than {self._settings.max_url} bytes.")
        if sum([len(name) + len(value) for name, value in scope["headers"]]) > self._settings.max_header:
            raise Problem(431, "headers-too-large", f"The header fields have more than {self._settings.max_header} bytes.")

    async def _authorize(self, route: Route, token: str | None) -> None:
        """Refuses early what the service will refuse anyhow: before a body is read."""
        if token is None:
            raise Unauthenticated("an access token is needed, as `Authorization: Bearer …`")
        identity = self._proxy.known_identity(token) or await self._proxy.identify(token)
        if identity.role not in route.allow.roles:
            raise Forbidden

    async def _body(self, route: Route, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._settings.max_body
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise Problem(413, "too-large", f"The body has more than {limit} bytes.", [(b"connection", b"close")])
        chunks: list[bytes] = []
        size = 0
        self._limits.begin_body()
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "incomplete", "The body ended before it was complete.", [(b"connection", b"close")])
                    size += len(message.get("body", b""))
                    if size > limit:
                        raise Problem(413, "too-large", f"The body has more than {limit} bytes.", [(b"connection", b"close")])
                    chunks.append(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Problem(408, "body-too-slow", "The body did not come in time.", [(b"connection", b"close")]) from None
        finally:
            self._limits.end_body()
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if (body or route.needs_body) and not _is_json(headers.get(b"content-type", b"")):
            raise Problem(415, "unsupported-media-type", "Expected a body with Content-Type: application/json.")
        return body


async def _at_once(work: Coroutine[Any, Any, bytes], receive: Receive, loop: asyncio.AbstractEventLoop) -> bytes:
    """Awaits work that may well be done without waiting for anything: only if it is not, the client is watched."""
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        reply: bytes = done.value
        return reply
    return await until_gone(Started(work, waits_for), receive, loop)


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
