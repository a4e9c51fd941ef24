"""The gateway: the service that speaks HTTP to the outside."""

import asyncio
import socket
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from gateway.app import pages
from gateway.client import App
from gateway.dispatcher import Dispatcher
from gateway.following import Followers
from gateway.front import Front
from gateway.limits import Limits
from gateway.live import Live
from gateway.openapi import document
from gateway.settings import GatewaySettings
from gateway.tail import Tail
from runtime import CallboardError, Context, Contract, Service, StartError, every
from runtime.identity import identity
from runtime.proxy import Proxy

_DRAIN = 10.0


class PortTaken(StartError):
    """Somebody else listens where the gateway should."""


class Gateway(Service):
    """Routes REST calls to the services and hides how the system is cut. It learns the routes from their manifests."""

    contract = Contract("gateway")
    calls = (identity,)

    def __init__(self, settings: GatewaySettings | None = None) -> None:
        self.settings = settings or GatewaySettings()
        self.port = self.settings.port
        """Where it listens, once it has started."""

    async def on_start(self, ctx: Context) -> None:
        self.port = free_port(self.settings.host, self.settings.port, shared=self.settings.share_port)
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
        await self._listening()

    async def _listening(self) -> None:
        while True:
            if self.serving.done():
                self.serving.result()
                raise CallboardError("the HTTP server ended at its start")
            with socket.socket() as probe:
                probe.setblocking(False)
                try:
                    await asyncio.get_running_loop().sock_connect(probe, (self.settings.host, self.port))
                except OSError:
                    await self.clock.sleep(0.005)
                else:
                    return

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


def free_port(host: str, port: int, *, shared: bool = False) -> int:
    """The port to listen on; 0 becomes a free one. `shared`: with others who share it too, as replicas on one machine.

    Raises:
        PortTaken: somebody listens there. (The server itself shares a port without a word.)
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {host}:{port} ({error.strerror}): stop who does, or choose another port with CALLBOARD_GATEWAY__PORT"
            ) from error
        found: int = probe.getsockname()[1]
        return found
