"""How a node is, said over HTTP to whoever runs it: a container engine, a scheduler, a collector of metrics."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

from config.settings import HealthSettings
from runtime import Node

_JSON = [("content-type", "application/json")]
_NO_STORE = ("cache-control", "no-store")


@asynccontextmanager
async def healthy(settings: HealthSettings, node: Node) -> AsyncGenerator[None, None]:
    """Answers on the port that the settings name, also while the node still starts; on none, if they name none.

    Raises:
        PortTaken: somebody else listens there.
    """
    if settings.port == 0:
        yield
        return
    from transports.http.server import Exchange, HttpServer, Pairs, Scope

    async def answer(scope: Scope, exchange: Exchange) -> None:
        status, headers, body = _page(node, scope.path)
        fields: Pairs = [*headers, _NO_STORE]
        exchange.response_bytes(status, fields, body)

    server = HttpServer(answer, settings.host, settings.port, "CALLBOARD_HEALTH__PORT")
    await server.start()
    try:
        yield
    finally:
        await server.stop()


def _page(node: Node, path: str) -> tuple[int, list[tuple[str, str]], bytes]:
    match path:
        case "/healthz":  # that it answers says that its event loop runs
            return 200, _JSON, b'{"status":"ok"}'
        case "/readyz":
            missing = node.waits_for()
            said = {"status": "not ready", "waits_for": missing} if missing else {"status": "ready"}
            return 503 if missing else 200, _JSON, msgspec.json.encode(said)
        case "/metrics":
            return 200, [("content-type", "text/plain; version=0.0.4")], node.metrics.text().encode()
        case _:
            return 404, _JSON, b'{"status":"unknown","paths":["/healthz","/readyz","/metrics"]}'
