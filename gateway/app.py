"""The gateway's own pages: a Litestar application under the reserved prefixes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get
from litestar.exceptions import HTTPException
from litestar.static_files import create_static_files_router  # pyright: ignore[reportUnknownVariableType]

from gateway.problems import Problem, of_error, of_problem
from runtime import Context, ServiceError
from runtime.identity import Keys, KeySet
from runtime.proxy import Proxy

_PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>{title}</title>
    <link rel="icon" href="/docs/assets/favicon-32x32.png">
    <link rel="stylesheet" href="/docs/assets/swagger-ui.css">
  </head>
  <body>
    <div id="docs"></div>
    <script src="/docs/assets/swagger-ui-bundle.js"></script>
    <script src="/docs/start.js"></script>
  </body>
</html>
"""
_START = """window.ui = SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#docs", deepLinking: true, persistAuthorization: false,
  presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout", validatorUrl: null
});
"""
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"


def pages(
    title: str, proxy: Proxy, ctx: Context, document: Callable[[], dict[str, Any]], draining: Callable[[], bool]
) -> Litestar:
    """The application.

    Args:
        ctx: a context of the gateway, to ask auth for its key set.
        document: makes the OpenAPI document.
        draining: whether the gateway is stopping.
    """

    @get("/openapi.json", sync_to_thread=False)
    def openapi() -> Response[bytes]:
        return Response(msgspec.json.encode(document()), media_type=MediaType.JSON)

    @get("/docs", sync_to_thread=False)
    def docs() -> Response[str]:
        return Response(_PAGE.format(title=title), media_type=MediaType.HTML, headers={"content-security-policy": _POLICY})

    @get("/docs/start.js", sync_to_thread=False)
    def start() -> Response[str]:
        return Response(_START, media_type="text/javascript")

    @get("/healthz", sync_to_thread=False)
    def healthz() -> Response[bytes]:
        return Response(b'{"status":"ok"}', media_type=MediaType.JSON)

    @get("/readyz", sync_to_thread=False)
    def readyz() -> Response[bytes]:
        there = sorted(
            {member.manifest.service for member in proxy.registry if any(info.http for info in member.manifest.requests)}
        )
        ready = bool(there) and not draining()
        body = msgspec.json.encode({"status": "ready" if ready else "not ready", "services": len(there)})
        return Response(body, status_code=200 if ready else 503, media_type=MediaType.JSON)

    @get("/metrics", sync_to_thread=False)
    def metrics() -> Response[str]:
        return Response(proxy.metrics.text(), media_type="text/plain; version=0.0.4")

    @get("/.well-known/jwks.json")
    async def jwks() -> Response[bytes]:
        keys: Keys = await ctx.request(KeySet())
        return Response(
            msgspec.json.encode(keys), media_type="application/jwk-set+json", headers={"cache-control": "public, max-age=30"}
        )

    import swagger_ui

    assets = create_static_files_router(
        path="/docs/assets", directories=[Path(swagger_ui.__file__).parent / "static"], cache_control=None
    )
    return Litestar(
        [openapi, docs, start, healthz, readyz, metrics, jwks, assets],
        openapi_config=None,
        logging_config=None,
        exception_handlers={ServiceError: _service_error, HTTPException: _http_error},
    )


def _service_error(request: Request[Any, Any, Any], error: ServiceError) -> Response[bytes]:
    return _response(*of_error(error, request.headers.get("x-request-id", "")))


def _http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    detail = "There is nothing here." if error.status_code == 404 else error.detail
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    return _response(
        *of_problem(Problem(error.status_code, "not-found" if error.status_code == 404 else "refused", detail, headers), "")
    )


def _response(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> Response[bytes]:
    named = {name.decode(): value.decode() for name, value in headers}
    return Response(body, status_code=status, headers=named, media_type=named.pop("content-type"))
