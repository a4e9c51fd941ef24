"""The HTTP server, which runs within the event loop of the gateway's node."""

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from gateway.client import App
from gateway.settings import GatewaySettings


def create_server(app: App, address: str, port: int, settings: GatewaySettings) -> Server:
    """Return a server for an ASGI application.

    It speaks HTTP/1.1 only: while granian waits to detect the version, a connection that sends nothing would stay open forever.
    """
    return Server(
        app, address=address, port=port, interface=Interfaces.ASGINL, http=HTTPModes.http1, websockets=False, log_enabled=False,
        backlog=1024, backpressure=settings.max_requests * 2 + settings.max_streams, http1_settings=HTTP1Settings(header_read_timeout=10_000),
    )  # fmt: skip
