"""The Litestar application that serves the gateway's own pages under the reserved prefixes."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import anyio
import msgspec
from litestar import Litestar, MediaType, Request, Response, asgi, get, post
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler

from gateway.asgi import App, exchange_of
from gateway.client import bearer_token, known_user, require_token
from gateway.exposition import Exposition, require_collector
from gateway.manifests import Manifests
from gateway.problems import Problem, Problems, log_if_refused
from gateway.settings import GatewaySettings
from gateway.tickets import Tickets
from runtime import Context, InternalError, ServiceError
from runtime.identity import Keys, KeySet
from runtime.node.proxy import Proxy
from runtime.telemetry import logger

_log = logger("gateway")

_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "favicon-32x32.png": "image/png"}

_PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>{title}</title>
    <link rel="icon" href="/docs/assets/favicon-32x32.png">
    <link rel="stylesheet" href="/docs/assets/swagger-ui.css">
    <link rel="stylesheet" href="/docs/theme.css">
    <meta name="color-scheme" content="light dark">
  </head>
  <body>
    <main>
      <h1 style="position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)">{title}</h1>
      <div id="docs"></div>
    </main>
    <script src="/docs/assets/swagger-ui-bundle.js"></script>
    <script src="/docs/start.js"></script>
  </body>
</html>
"""
"""Swagger UI shows the title as a heading of the second level. The first one is for screen readers alone."""
_START = """window.ui = SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#docs", deepLinking: true, persistAuthorization: false,
  presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout", validatorUrl: null,
  plugins: [() => ({ wrapComponents: { ServersContainer: () => () => null } })]
});
"""
"""The list of servers is left out: the document has one, and the list has no name that a screen reader could say."""
_THEME = """@media (prefers-color-scheme: dark) {
  html { background: #1b1f24; color-scheme: dark }
  #docs { filter: invert(0.9) hue-rotate(180deg) }
  #docs img, #docs pre, #docs .microlight { filter: invert(1) hue-rotate(180deg) }
}
"""
"""Swagger UI has no dark colours of its own: its light ones are turned round, and what is dark already is turned back."""
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"


def create_app(
    settings: GatewaySettings,
    proxy: Proxy,
    ctx: Context,
    document: Callable[[], dict[str, Any]],
    manifests: Manifests,
    draining: Callable[[], bool],
    streams: Mapping[str, App],
    problems: Problems,
    tickets: Tickets,
    console: Sequence[HTTPRouteHandler],
) -> Litestar:
    """Return the Litestar application.

    Args:
        settings: the settings of the gateway.
        proxy: access to the node, for members, metrics, and identities.
        ctx: a context of the gateway, which requests the key set from auth.
        document: returns the OpenAPI document.
        manifests: the services that the gateway knows.
        draining: returns whether the gateway is stopping.
        streams: the ASGI applications that serve event streams, by path.
        problems: makes responses to errors.
        tickets: makes the tickets for `/live`.
        console: the handlers of the routes below `/console`.
    """

    @get("/openapi.json", sync_to_thread=False)
    def openapi() -> Response[bytes]:
        return Response(msgspec.json.encode(document()), media_type=MediaType.JSON)

    @get("/docs", sync_to_thread=False)
    def docs() -> Response[str]:
        return Response(
            _PAGE.format(title=escape(settings.title)), media_type=MediaType.HTML, headers={"content-security-policy": _POLICY}
        )

    @get("/docs/start.js", sync_to_thread=False)
    def start() -> Response[str]:
        return Response(_START, media_type="text/javascript")

    @get("/docs/theme.css", sync_to_thread=False)
    def theme() -> Response[str]:
        return Response(_THEME, media_type="text/css", headers={"cache-control": "public, max-age=86400"})

    @get("/healthz", sync_to_thread=False)
    def healthz() -> Response[bytes]:
        return Response(b'{"status":"ok"}', media_type=MediaType.JSON)

    @get("/readyz", sync_to_thread=False)
    def readyz() -> Response[bytes]:
        stopping = draining()
        missing = manifests.missing()
        services = [
            service
            for service, versions in manifests.live.items()
            if any(info.http for manifest in versions for info in manifest.requests)
        ]
        body: dict[str, Any] = {
            "status": "stopping" if stopping else "not ready" if missing else "ready",
            "waits_for": missing,
            "services": len(services),
        }
        if blocked := proxy.blocked():
            body["blocked"] = blocked
        if streams := proxy.streams():
            body["streams"] = streams
        return Response(msgspec.json.encode(body), status_code=503 if missing or stopping else 200, media_type=MediaType.JSON)

    exposition = Exposition(proxy.metrics)

    @get("/metrics")
    async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        await require_collector(proxy, settings, dict(request.scope["headers"]))
        media_type, text = exposition.render(request.headers.get("accept", ""))
        return Response(text, media_type=media_type)

    @post("/live/tickets", status_code=201)
    async def live_ticket(request: Request[Any, Any, Any]) -> Response[bytes]:
        token = require_token(bearer_token(dict(request.scope["headers"])))
        return Response(msgspec.json.encode(await tickets.issue(token)), media_type=MediaType.JSON)

    @get("/.well-known/jwks.json")
    async def jwks() -> Response[bytes]:
        keys: Keys = await ctx.request(KeySet())
        return Response(
            msgspec.json.encode(keys), media_type="application/jwk-set+json", headers={"cache-control": "public, max-age=30"}
        )

    @get("/docs/assets/{name:str}")
    async def asset(request: Request[Any, Any, Any]) -> Response[bytes]:
        import swagger_ui

        name = request.path_params["name"]
        if name not in _ASSETS:
            raise NotFoundException
        path = anyio.Path(swagger_ui.__file__).parent / "static" / name
        return Response(await path.read_bytes(), media_type=_ASSETS[name], headers={"cache-control": "public, max-age=86400"})

    def stream(path: str, app: App) -> ASGIRouteHandler:
        @asgi(path, copy_scope=False)
        async def serve(scope: Any, receive: Any, send: Any) -> None:
            if scope["method"] == "OPTIONS":
                await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", b"GET, OPTIONS")]})
                await send({"type": "http.response.body", "body": b""})
            elif scope["method"] == "GET" and "head_only" not in scope:
                await app(scope, receive, send)
            else:
                raise Problem(405, "method-not-allowed", "This path allows GET.", [(b"allow", b"GET, OPTIONS")])

        return serve

    def problem(request: Request[Any, Any, Any], error: Problem) -> Response[bytes]:
        request_id = exchange_of(request.scope).request_id
        return _response(request_id, *problems.of_problem(error, request_id))

    def service_error(request: Request[Any, Any, Any], error: ServiceError) -> Response[bytes]:
        exchange = exchange_of(request.scope)
        log_if_refused(proxy.repeats, error, exchange, exchange.request_id, known_user(proxy, exchange.fields))
        return _response(exchange.request_id, *problems.of_error(error, exchange.request_id))

    def http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
        if error.status_code == 404:
            return problem(request, Problem(404, "not-found", "Nothing is served at this path."))
        headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
        code = "method-not-allowed" if error.status_code == 405 else "refused"
        return problem(request, Problem(error.status_code, code, error.detail, headers))

    def internal_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        request_id = exchange_of(request.scope).request_id
        incident = proxy.incident("a page of the gateway failed: %r", error)
        return _response(request_id, *problems.of_error(InternalError(incident), request_id))

    async def add_head(message: Any, scope: Any) -> None:
        """Add HEAD to an Allow field that lists GET: Litestar does not know that HEAD is served."""
        if message["type"] == "http.response.start" and scope["path"] not in streams:
            message["headers"] = [
                (name, b"GET, HEAD, OPTIONS" if name == b"allow" and b"GET" in value else value)
                for name, value in message["headers"]
            ]

    return Litestar(
        [
            openapi,
            docs,
            start,
            theme,
            healthz,
            readyz,
            metrics,
            *console,
            live_ticket,
            jwks,
            asset,
            *(stream(path, app) for path, app in streams.items()),
        ],
        openapi_config=None,
        logging_config=None,
        before_send=[add_head],
        exception_handlers={Problem: problem, ServiceError: service_error, HTTPException: http_error, Exception: internal_error},
    )


def _response(request_id: str, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> Response[bytes]:
    fields = {"x-request-id": request_id, **{name.decode(): value.decode() for name, value in headers}}
    return Response(body, status_code=status, headers=fields, media_type=fields.pop("content-type"))
