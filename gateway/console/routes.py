"""The routes below `/console`: the page, what it asks for, and the requests of the command line."""

from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import msgspec
from litestar import MediaType, Request, Response, delete, get, post
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler

from gateway.asgi import exchange_of
from gateway.console import requests
from gateway.console.access import Access, ConsoleSource
from gateway.console.requests import require_operator
from gateway.console.watcher import Watcher
from gateway.problems import Problem, Problems
from runtime.node.proxy import Proxy

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def console_routes(
    proxy: Proxy, access: Access, watcher: Watcher, source: ConsoleSource | None, title: str, scheme: str
) -> list[HTTPRouteHandler]:
    """Return the handlers.

    Args:
        source: what the console gets from whoever has started the gateway.
        title: the title of the system.
        scheme: the scheme of access tokens in `Authorization`.
    """
    problems = Problems(None, proxy.log)

    @get("/console", sync_to_thread=False)
    def page() -> Response[str]:
        access.require_on()
        values = {"mode": "development" if access.is_open else "operators", "scheme": scheme, "title": title}
        html = _static("index.html").decode()
        for name, value in values.items():
            html = html.replace(f"{{{{{name}}}}}", escape(value))
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
        return Response(html, media_type=MediaType.HTML, headers=headers)

    @get("/console/assets/{name:str}", sync_to_thread=False)
    def asset(request: Request[Any, Any, Any]) -> Response[bytes]:
        access.require_on()
        name = request.path_params["name"]
        kind = _TYPES.get(name.rpartition(".")[2])
        if kind is None or name not in _assets():
            raise NotFoundException
        age = "max-age=3600" if kind == _TYPES["svg"] else "no-cache"  # browsers ask for the icon at every step
        return Response(_static(name), media_type=kind, headers={"cache-control": age})

    @get("/console/session")
    async def who(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json({"user": await access.user(dict(request.scope))})

    @post("/console/session", status_code=201)
    async def session(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await access.begin(dict(request.scope), await request.body()), 201)

    @get("/console/traces/{trace:str}")
    async def trace(request: Request[Any, Any, Any]) -> Response[bytes]:
        await access.require(dict(request.scope))
        id = request.path_params["trace"]
        spans = watcher.picture.trace(id)
        if not spans:
            raise Problem(404, "not-found", f"No trace {id!r:.80} is in memory: the last 300 are, while somebody looks.")
        return _json({"spans": spans, "logs": watcher.picture.logs(trace=id)})

    @get("/console/settings")
    async def settings(request: Request[Any, Any, Any]) -> Response[bytes]:
        await access.require(dict(request.scope))
        return _json({"items": [] if source is None else source.settings()})

    @get("/console/requests")
    async def known_requests(request: Request[Any, Any, Any]) -> Response[bytes]:
        await access.require(dict(request.scope))
        return _json(requests.described(proxy))

    @post("/console/requests/{service:str}/{name:str}", status_code=200)
    async def make_request(request: Request[Any, Any, Any]) -> Response[bytes]:
        token = access.user_token(dict(request.scope))
        service, name = request.path_params["service"], request.path_params["name"]
        return _json(await requests.make(proxy, problems, exchange_of(request.scope), token, service, name, await request.body()))

    @post("/console/signals/{service:str}/{name:str}", status_code=202)
    async def publish(request: Request[Any, Any, Any]) -> Response[bytes]:
        operator = await access.require_development(dict(request.scope))
        service, name = request.path_params["service"], request.path_params["name"]
        await requests.publish(proxy, operator, service, name, await request.body())
        return _json({}, 202)

    @get("/console/services")
    async def services(request: Request[Any, Any, Any]) -> Response[bytes]:
        await require_operator(proxy, dict(request.scope["headers"]))
        return _json({"items": requests.instances(proxy)})

    @post("/console/services/{service:str}/{name:str}", status_code=200)
    async def ask(request: Request[Any, Any, Any]) -> Response[bytes]:
        operator, _ = await require_operator(proxy, dict(request.scope["headers"]))
        service, name = request.path_params["service"], request.path_params["name"]
        reply = await requests.ask(proxy, operator, service, name, await request.body())
        return Response(reply, media_type=MediaType.JSON)

    @post("/console/nodes/{node:str}/drain", status_code=202)
    async def drain(request: Request[Any, Any, Any]) -> Response[bytes]:
        operator, _ = await require_operator(proxy, dict(request.scope["headers"]))
        await requests.drain(proxy, operator, request.path_params["node"])
        return _json({}, 202)

    @get("/console/keys")
    async def keys(request: Request[Any, Any, Any]) -> Response[bytes]:
        operator, _ = await require_operator(proxy, dict(request.scope["headers"]))
        return Response(await requests.keys(proxy, operator, "auth.ListSigningKeys"), media_type=MediaType.JSON)

    @post("/console/keys", status_code=201)
    async def new_key(request: Request[Any, Any, Any]) -> Response[bytes]:
        operator, _ = await require_operator(proxy, dict(request.scope["headers"]))
        return Response(
            await requests.keys(proxy, operator, "auth.RotateSigningKeys"), status_code=201, media_type=MediaType.JSON
        )

    @delete("/console/keys/{kid:str}", status_code=200)
    async def retire_key(request: Request[Any, Any, Any]) -> Response[bytes]:
        operator, _ = await require_operator(proxy, dict(request.scope["headers"]))
        await requests.keys(proxy, operator, "auth.RetireSigningKey", request.path_params["kid"])
        return _json({})

    return [
        page, asset, who, session, trace, settings, known_requests, make_request, publish, services, ask, drain, keys, new_key, retire_key,
    ]  # fmt: skip


def _json(value: Any, status: int = 200) -> Response[bytes]:
    return Response(
        msgspec.json.encode(value), status_code=status, media_type=MediaType.JSON, headers={"cache-control": "no-store"}
    )


_FILES = files("gateway.console") / "static"


@cache
def _assets() -> frozenset[str]:
    return frozenset(file.name for file in _FILES.iterdir())


@cache
def _static(name: str) -> bytes:
    return (_FILES / name).read_bytes()
