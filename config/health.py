"""The health endpoint of a node, for container engines, schedulers, and metrics collectors."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from config.settings import HealthSettings
from gateway.exposition import Exposition
from runtime import Node

_JSON = "application/json"
_MAX_BODY = 1024
"""Bytes of the body of a request, which nothing reads."""


@asynccontextmanager
async def serve_health(settings: HealthSettings, node: Node) -> AsyncGenerator[None, None]:
    """Serve the health of a node over HTTP inside the `async with` block. Does nothing if the configured port is 0.

    The endpoint also answers while the node is starting.

    Raises:
        PortTaken: if another process listens on the port.
    """
    if settings.port == 0:
        yield
        return
    from transports.http.exchange import Exchange
    from transports.http.messages import lines
    from transports.http.server import HttpServer

    exposition = Exposition(node.metrics)

    def answer(exchange: Exchange) -> None:
        status, kind, body = _page(node, exposition, exchange.path)
        exchange.answer(status, lines({"content-type": kind, "cache-control": "no-store"}), body)

    environment = node.environment
    server = HttpServer(
        answer, _MAX_BODY, settings.host, settings.port, "CALLBOARD_HEALTH__PORT", environment.clock, environment.repeats
    )
    await server.start()
    try:
        yield
    finally:
        await server.stop()


def _page(node: Node, exposition: Exposition, path: str) -> tuple[int, str, bytes]:
    match path:
        case "/healthz":  # an answer shows that the event loop is running
            return 200, _JSON, b'{"status":"ok"}'
        case "/readyz":
            missing = node.waits_for()
            answer: dict[str, Any] = {"status": "not ready", "waits_for": missing} if missing else {"status": "ready"}
            if blocked := node.blocked():  # events wait: another instance would do no better, so that this one stays ready
                answer["blocked"] = blocked
            if streams := node.streams():
                answer["streams"] = streams
            return 503 if missing else 200, _JSON, msgspec.json.encode(answer)
        case "/metrics":
            return 200, *exposition.render("")
        case _:
            return 404, _JSON, b'{"status":"unknown","paths":["/healthz","/readyz","/metrics"]}'
