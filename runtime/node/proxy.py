"""What a gateway needs of its node beyond a context: who is there, who a token belongs to, forwarding as it came, listening."""

import logging
from contextlib import AbstractAsyncContextManager

from runtime.clock import Clock
from runtime.contract.errors import UsageError
from runtime.contract.rest import Params
from runtime.durable.stream import Batch, Position, Pull, StreamHead
from runtime.execution.instance import Instance
from runtime.identity import Identity
from runtime.network.envelope import Envelope, Topic
from runtime.network.registry import Registry
from runtime.node.listening import Listener, Listening
from runtime.service.context import Context
from runtime.telemetry import Metrics, well_formed


class Proxy:
    """A service's way to act for clients outside.

    Args:
        ctx: a context of the service, as `on_start` gets one.
    """

    def __init__(self, ctx: Context) -> None:
        if not isinstance(ctx.host, Instance):
            raise UsageError("a proxy needs the context of a running service")
        self._instance = ctx.host
        self._environment = ctx.host.environment
        self._listening = Listening(ctx.host)

    async def watch(self) -> None:
        """Has the registry know every service's members, not only those of whom the service calls."""
        await self._environment.watch(None)

    @property
    def registry(self) -> Registry:
        """Who is there."""
        return self._environment.registry

    @property
    def has_signals(self) -> bool:
        """Whether the transport carries signals: where it does not, one has to ask."""
        return self._environment.transport.capabilities.signals

    @property
    def clock(self) -> Clock:
        """The node's clock."""
        return self._environment.clock

    @property
    def metrics(self) -> Metrics:
        """What the node counts."""
        return self._environment.metrics

    @property
    def log(self) -> logging.Logger:
        """The service's logger."""
        return self._instance.log

    def is_elsewhere(self, service: str) -> bool:
        """Whether a service is asked on another node: none of it is in this process."""
        return service not in self._instance.caller.local

    def new_id(self) -> str:
        return self._instance.new_id()

    def known_identity(self, token: str) -> Identity | None:
        """The user of a token that was verified before and still holds."""
        return self._instance.verifier.cached(token)

    async def identify(self, token: str) -> Identity:
        """The user of a token. Raises like `Verifier.verify`."""
        return await self._instance.verifier.verify(token)

    def context(self, request_id: str, token: str | None, trace: str | None, seconds: float) -> Context:
        """A context for one client's request, with a deadline `seconds` from now.

        Args:
            trace: the `traceparent` that the client gave; one that is not well formed counts for nothing.
        """
        ctx = Context(self._instance, None)
        ctx.envelope = Envelope("request", request_id, "http", token=token, trace=None if trace is None else well_formed(trace))
        ctx.fixed_deadline = self._environment.clock.monotonic() + seconds
        ctx.timed = False
        return ctx

    def listening(self, topic: Topic, listener: Listener) -> AbstractAsyncContextManager[None]:
        """Hears what is multicast on a topic until the block ends.

        Raises:
            TransportError: there are no signals, or no link.
        """
        return self._listening.to(topic, listener)

    async def ask_stream(self, publisher: str, message: Pull | StreamHead) -> Batch | Position:
        """Asks a publisher about its stream. Raises `ServiceError`."""
        return await self._instance.ask(publisher, message)

    async def ask(self, ctx: Context, service: str, request: str, body: bytes) -> bytes:
        """Makes a request by its name, JSON text in and out. Raises `ServiceError`."""
        return await self._instance.caller.forward(ctx, service, request, None, body, None)

    async def forward(self, ctx: Context, service: str, request: str, params: Params, body: bytes, key: str | None) -> bytes:
        """Asks a service with the parts of a REST request, and gives its reply as JSON text. Raises `ServiceError`."""
        return await self._instance.caller.forward(ctx, service, request, params, body, key)
