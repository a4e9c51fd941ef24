"""The gateway: the service that speaks HTTP to the outside."""

import asyncio
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from gateway.addresses import Addresses
from gateway.app import create_app
from gateway.asgi_app import AsgiApp
from gateway.client import App
from gateway.dispatcher import Dispatcher
from gateway.limits import Limits
from gateway.live import Live
from gateway.manifests import Manifests
from gateway.openapi import document
from gateway.settings import GatewaySettings
from gateway.subscribers import Subscribers
from gateway.tail import Tail
from runtime import Context, Contract, Service, every
from runtime.identity import identity
from runtime.node.proxy import Proxy
from runtime.sockets import free_port, until_listening

_DRAIN_TIMEOUT = 10.0
"""Seconds for which the gateway waits for running requests and streams when it stops."""
_STOP_TIMEOUT = 2.0
"""Seconds for which the gateway waits until the HTTP server has stopped."""


class Gateway(Service):
    """Routes REST requests to the services and hides the division into services. It learns the routes from their manifests."""

    contract = Contract("gateway")
    calls = (identity,)

    def __init__(self, settings: GatewaySettings | None = None) -> None:
        self.settings = settings or GatewaySettings()
        self.port = self.settings.port
        """The port that the gateway listens on, once it has started."""
        self._addresses = Addresses(self.settings.trusted_proxies)
        self._serving: asyncio.Task[None] | None = None

    async def on_start(self, ctx: Context) -> None:
        self.port = free_port(self.settings.host, self.settings.port, "CALLBOARD_GATEWAY__PORT", shared=self.settings.share_port)
        self.proxy = Proxy(ctx)
        await self.proxy.watch()
        self.manifests = Manifests(self.proxy.registry, self.proxy.metrics, self.settings.expects)
        self.limits = Limits(self.settings, self.clock.monotonic)
        self.subscribers = Subscribers(self.settings, self.proxy, self.clock)
        streams: dict[str, App] = {
            "/live": Live(self.proxy, self.subscribers, self.manifests),
            "/console/tail": Tail(self.proxy, self.subscribers),
        }
        pages: Any = create_app(
            self.settings.title, self.proxy, ctx, self.document, self.manifests, lambda: self.limits.draining, streams
        )
        api = Dispatcher(self.settings, self.proxy, self.limits, self.manifests)
        asgi_app = AsgiApp(self.settings, pages, api, self.proxy.new_id, self._addresses)
        # HTTP/1.1 only: while granian waits to detect the version, a connection that sends nothing would stay open forever
        self.server = Server(
            asgi_app, address=self.settings.host, port=self.port, interface=Interfaces.ASGINL, http=HTTPModes.http1, websockets=False, log_enabled=False,
            backlog=1024, backpressure=self.settings.max_requests * 2 + self.settings.max_streams, http1_settings=HTTP1Settings(header_read_timeout=10_000),
        )  # fmt: skip
        self._serving = asyncio.create_task(self.server.serve())
        await until_listening(self.settings.host, self.port, self._serving)

    async def on_stop(self, ctx: Context) -> None:
        """Refuse new requests, finish the running ones, end the streams, and stop listening."""
        if self._serving is None:
            return  # the start has failed
        self.limits.draining = True
        self.subscribers.end()
        deadline = self.clock.monotonic() + _DRAIN_TIMEOUT
        while (self.limits.running or self.subscribers.count) and self.clock.monotonic() < deadline:
            await self.clock.sleep(0.01)
        self.server.stop()  # type: ignore[no-untyped-call]
        done, _ = await asyncio.wait((self._serving,), timeout=_STOP_TIMEOUT)
        if not done:
            self.log.warning("the HTTP server did not stop in time")
        elif (error := self._serving.exception()) is not None:
            self.log.warning("the HTTP server ended with an error: %r", error)

    @every(seconds=1)
    async def end_stale_streams(self, ctx: Context) -> None:
        """End the streams whose access token is no longer valid."""
        self.subscribers.check_tokens()

    def document(self) -> dict[str, Any]:
        """Return the OpenAPI document of the live services."""
        return document(self.settings.title, self.version, self.manifests.live.values())
