"""The gateway: the service that speaks HTTP to the outside."""

import asyncio
from pathlib import Path
from typing import Any

from gateway.addresses import Addresses
from gateway.asgi import App
from gateway.console.access import Access, ConsoleSource
from gateway.console.events import ConsoleEvents
from gateway.console.watcher import Watcher
from gateway.credentials import Credentials
from gateway.dispatcher import Dispatcher
from gateway.errors import ErrorRenderer
from gateway.http_app import HttpApp
from gateway.limits import Limits
from gateway.live import Live
from gateway.manifests import Manifests
from gateway.problems import Problems
from gateway.route_owners import RouteOwners
from gateway.server import Server
from gateway.settings import GatewaySettings, IdentitySettings
from gateway.subscribers import Subscribers
from gateway.tail import Tail
from gateway.tickets import Tickets
from runtime import Context, Contract, Service, every
from runtime.identity import identity
from runtime.node.proxy import Proxy
from runtime.sockets import free_port, listen_address

_DRAIN_TIMEOUT = 10.0
"""Seconds for which the gateway waits for running requests and streams when it stops, unless `node.drain_timeout` is shorter."""
_STOP_TIMEOUT = 2.0
"""Seconds that connections get beyond that to take their answers."""
_VANISHED = 30.0
"""Seconds without a sign of life after which the connection of a client ends, as do its request and its stream."""
_QUIET = 0.02
"""Seconds without a new request after which no client is taken to be in the middle of sending one."""
_MOMENT = 0.1
"""Seconds that running requests get before the listener closes."""
_BUSY = 1.0
"""Seconds for which the gateway waits for that."""


class Gateway(Service):
    """Routes REST requests to the services and hides the division into services. It learns the routes from their manifests.

    Args:
        owners_file: where the gateway stores which service owns each route; None to keep it in memory.
        identity: how clients send their access tokens.
        errors: makes the bodies of responses to errors; None for problem documents.
        console: what the console shows beside the running system.
    """

    contract = Contract("gateway")
    calls = (identity,)

    def __init__(
        self,
        settings: GatewaySettings | None = None,
        owners_file: Path | None = None,
        identity: IdentitySettings | None = None,
        errors: ErrorRenderer | None = None,
        console: ConsoleSource | None = None,
    ) -> None:
        self._errors = errors
        self._console = console
        self._owners_file = owners_file
        self._identity = identity or IdentitySettings()
        self.settings = settings or GatewaySettings()
        self.port = self.settings.port
        """The port that the gateway listens on, once it has started."""
        self._addresses = Addresses(self.settings.trusted_proxies)
        self.draining = False
        """Whether the gateway is stopping."""
        self.server: Server | None = None
        """The HTTP server, once the gateway has started."""
        # It imports Litestar, with 300 modules that only a process with a gateway needs: here, before the node runs
        from gateway.app import create_app
        from gateway.console.routes import console_routes

        self._create_app = create_app
        self._console_routes = console_routes

    async def on_start(self, ctx: Context) -> None:
        await self.open(ctx)
        address = listen_address(self.settings.host, "CALLBOARD_GATEWAY__HOST")
        self.port = free_port(self.settings.host, self.settings.port, "CALLBOARD_GATEWAY__PORT", shared=self.settings.share_port)
        server = Server(self.app, self.settings.max_requests * 2 + self.settings.max_streams, self.clock.loop)
        server.start(address, self.port, shared=self.settings.share_port, silence=_VANISHED)
        self.server = server
        self.proxy.metrics.gauge("http_connections", lambda: len(server.connections))

    async def open(self, ctx: Context) -> None:
        """Make what answers requests, before the gateway listens."""
        self.proxy = Proxy(ctx)
        await self.proxy.watch()
        owners = RouteOwners(self.settings.owners, self._owners_file, self.proxy.metrics)
        self.manifests = Manifests(self.proxy.registry, self.proxy.metrics, self.settings, owners, self.clock.monotonic)
        self.limits = Limits(self.settings, self.clock.monotonic)
        self.subscribers = Subscribers(self.settings, self.proxy, self.clock)
        tickets = Tickets(self.proxy, self.clock, self.random)
        source = self._console
        development = None if source is None else source.development
        access = Access(self.proxy, tickets, development, is_on=self.settings.console == "operators")
        watcher = Watcher(self.proxy, self.clock)
        streams: dict[str, App] = {
            "/live": Live(self.proxy, self.subscribers, self.manifests, tickets),
            "/console/tail": Tail(self.proxy, self.subscribers, access),
            "/console/events": ConsoleEvents(self.proxy, self.subscribers, access, watcher),
        }
        problems = Problems(self._errors, self.log)
        routes: Any = self._console_routes(self.proxy, access, watcher, source, self.settings.title, self._identity.scheme)
        pages: Any = self._create_app(
            self.settings,
            self.proxy,
            ctx,
            self.document,
            self.manifests,
            lambda: self.draining,
            streams,
            problems,
            tickets,
            routes,
        )
        home = "/docs" if development is None else "/console"
        api = self.dispatcher = Dispatcher(self.settings, self.proxy, self.limits, self.manifests, problems, home)
        self.app = HttpApp(
            self.settings,
            pages,
            api,
            self.proxy,
            self._addresses,
            Credentials(self._identity),
            problems,
            lambda: api.routes.own_fields,
        )

    async def on_stop(self, ctx: Context) -> None:
        """Stop without failing a request: turn clients away, answer all who have come, end the streams, and stop listening."""
        if self.server is None:
            return  # the start has failed
        self.draining = self.app.closing = self.server.progress.is_closing = True
        if self.settings.drain_delay:
            await self.clock.sleep(self.settings.drain_delay)
        self.server.listener.turn_away()
        await self._until_quiet(self.server)
        self.subscribers.end()
        if not await self.server.stop(min(_DRAIN_TIMEOUT, self.proxy.drain_timeout) + _STOP_TIMEOUT):
            self.log.warning("some requests were not answered in time")

    async def _until_quiet(self, server: Server) -> None:
        """Wait until the server has accepted every connection, and the clients of open ones have sent what they were sending.

        The answers to these close their connections. So every client learns to connect again, to another gateway. Running
        requests get a moment, too, because the server no longer notices clients that disconnect once it has been told to stop.
        """
        seen = -1
        for attempt in range(round(_BUSY / _QUIET)):
            quiet = seen == self.app.requests and not server.listener.queued()
            if quiet and (not self.limits.running or attempt * _QUIET >= _MOMENT):
                return
            seen = self.app.requests
            await asyncio.sleep(_QUIET)  # the kernel and the clients do not follow the node's clock

    @every(seconds=1)
    async def end_stale_streams(self, ctx: Context) -> None:
        """End the streams whose access token is no longer valid."""
        self.subscribers.check_tokens()

    @every(seconds=1)
    async def forget_what_is_gone(self, ctx: Context) -> None:
        """Forget the routes that have had no instance for too long."""
        if self.manifests.forget():
            self.dispatcher.update_routes()

    def document(self) -> dict[str, Any]:
        """Return the OpenAPI document of the known services."""
        return self.manifests.document(self.settings.title, self.settings.version, self._identity, self._errors)
