"""The gateway: the service that speaks HTTP to the outside."""

import asyncio
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from gateway.app import pages
from gateway.asgi_app import Front
from gateway.client import App
from gateway.dispatcher import Dispatcher
from gateway.limits import Limits
from gateway.live import Live
from gateway.openapi import document
from gateway.settings import GatewaySettings
from gateway.subscribers import Followers
from gateway.tail import Tail
from runtime import Context, Contract, Service, every
from runtime.identity import identity
from runtime.node.proxy import Proxy
from runtime.sockets import free_port, until_listening

_DRAIN = 10.0


class Gateway(Service):
    """Routes REST calls to the services and hides how the system is cut. It learns the routes from their manifests."""

    contract = Contract("gateway")
    calls = (identity,)

    def __init__(self, settings: GatewaySettings | None = None) -> None:
        self.settings = settings or GatewaySettings()
        self.port = self.settings.port
        """Where it listens, once it has started."""

    async def on_start(self, ctx: Context) -> None:
        self.port = free_port(self.settings.host, self.settings.port, "CALLBOARD_GATEWAY__PORT", shared=self.settings.share_port)
        self.proxy = Proxy(ctx)
        await self.proxy.watch()
        self.limits = Limits(self.settings, self.clock.monotonic)
        self.followers = Followers(self.settings, self.proxy, self.clock)
        streams: dict[str, App] = {"/live": Live(self.proxy, self.followers), "/console/tail": Tail(self.proxy, self.followers)}
        app = pages(self.settings.title, self.proxy, ctx, self.document, lambda: self.limits.draining, streams)
        front = Front(self.settings, app, Dispatcher(self.settings, self.proxy, self.limits))  # type: ignore[arg-type]
        # HTTP/1.1 alone: while it waits to see which version it is, a connection that says nothing would stay for ever
        self.server = Server(
            front, address=self.settings.host, port=self.port, interface=Interfaces.ASGINL, http=HTTPModes.http1, websockets=False, log_enabled=False,
            backlog=1024, backpressure=self.settings.max_requests * 2 + self.settings.max_streams, http1_settings=HTTP1Settings(header_read_timeout=10_000),
        )  # fmt: skip
        self.serving = asyncio.create_task(self.server.serve())
        await until_listening(self.settings.host, self.port, self.serving)

    async def on_stop(self, ctx: Context) -> None:
        """Refuses what is new, finishes what runs, ends the streams, and stops listening."""
        self.limits.draining = True
        self.followers.end()
        deadline = self.clock.monotonic() + _DRAIN
        while (self.limits.running or self.followers.count) and self.clock.monotonic() < deadline:
            await self.clock.sleep(0.01)
        self.server.stop()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(2):
                await self.serving
        except TimeoutError:
            self.log.warning("the HTTP server did not stop in time")

    @every(seconds=1)
    async def end_stale_streams(self, ctx: Context) -> None:
        """A stream ends when its token does."""
        self.followers.check_tokens()

    def document(self) -> dict[str, Any]:
        """The OpenAPI document of who is there."""
        newest = {member.manifest.service: member.manifest for member in self.proxy.registry}
        return document(self.settings.title, self.version, newest.values())
