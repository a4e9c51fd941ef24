"""The proxy of a gateway, which acts on its node for clients outside.

It forwards requests as they came, verifies tokens, knows all live instances, and listens to topics that the service's
class does not name.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from runtime.clock import Clock, Random
from runtime.contract.byte_stream import ByteStream
from runtime.contract.errors import CallboardError, UsageError
from runtime.contract.messages import Request
from runtime.contract.rest import HttpBinding, RestParts
from runtime.durable.console import Drain
from runtime.durable.progress import Blocked, StreamStatus
from runtime.execution.instance import Instance
from runtime.issuers import Identity
from runtime.metrics import Metrics
from runtime.network.envelope import Envelope, Topic
from runtime.network.registry import Registry
from runtime.network.transport import TransportError
from runtime.repeats import Repeats, fault
from runtime.service.context import Context
from runtime.tasks import finish
from runtime.trace import TraceFields
from runtime.tracing import Tracing

T = TypeVar("T")

Listener = Callable[[Envelope], None]
"""Called for each envelope, in the event loop. It returns immediately and never raises."""

_UNSUBSCRIBE_TIMEOUT = 2.0
"""The seconds that unsubscribing from a topic may take."""


class NoNode(CallboardError):
    """No node has this id."""


class Proxy:
    """Acts for clients outside, on behalf of a service.

    Args:
        ctx: a context of the service, for example that of `on_start`.
    """

    def __init__(self, ctx: Context) -> None:
        if not isinstance(ctx.host, Instance):
            raise UsageError("a proxy needs the context of a running service")
        self._instance = ctx.host
        self._environment = ctx.host.environment
        self._topics = _Topics(ctx.host)

    async def watch(self) -> None:
        """Keep the members of every service in the registry, not only of those that the service calls."""
        await self._environment.watch(None)

    @property
    def registry(self) -> Registry:
        """The live instances."""
        return self._environment.registry

    @property
    def has_signals(self) -> bool:
        """Whether the transport carries signals. Where it does not, a client has to poll."""
        return self._environment.transport.capabilities.signals

    @property
    def drain_timeout(self) -> float:
        """How long a stopping instance may take to finish what runs, in seconds."""
        return self._environment.settings.drain_timeout

    @property
    def clock(self) -> Clock:
        """The node's clock."""
        return self._environment.clock

    @property
    def random(self) -> Random:
        """The node's source of random values."""
        return self._environment.random

    @property
    def tracing(self) -> Tracing | None:
        """Begins spans; None if there are none."""
        return self._environment.tracing

    @property
    def metrics(self) -> Metrics:
        """The node's metrics."""
        return self._environment.metrics

    @property
    def repeats(self) -> Repeats:
        """Logs lines that clients outside can cause."""
        return self._environment.repeats

    def incident(self, message: str, error: Exception) -> str:
        """Return the id of an incident, whose details are in the log of the service. `message` has a place for the error."""
        return self._environment.incident((message, fault(error)), message, error, log=self.log, exc_info=error)

    def blocked(self) -> list[Blocked]:
        """Return the streams whose events are not applied on this node, with what each waits for."""
        return self._environment.blocked()

    def streams(self) -> list[StreamStatus]:
        """Return the subscriptions of this node that lag behind, are blocked, or have dead letters."""
        return self._environment.streams()

    @property
    def log(self) -> logging.Logger:
        """The service's logger."""
        return self._instance.log

    def new_id(self) -> str:
        """Return an id for a message."""
        return self._instance.new_id()

    def known_identity(self, token: str) -> Identity | None:
        """Return the user of a token that was verified before and is still valid, or None."""
        return self._instance.verifier.cached(token)

    async def identify(self, token: str) -> Identity:
        """Verify a token, and return its user. Raises like `Verifier.verify`."""
        return await self._instance.verifier.verify(token)

    def context(
        self,
        request_id: str,
        token: str | None,
        trace: str | None,
        seconds: float,
        client: str | None = None,
        trace_fields: TraceFields | None = None,
    ) -> Context:
        """Return a context for one request of a client.

        Args:
            trace: a valid `traceparent`; None for that of a new trace.
            seconds: the time until the deadline.
            client: the address of the client; of IPv6, its /64 network.
            trace_fields: the `tracestate` and `baggage` of the client; invalid parts are ignored.
        """
        return Context(
            self._instance,
            None,
            envelope=Envelope("request", request_id, "http", token=token, trace=trace, client=client, trace_fields=trace_fields),
            fixed_deadline=self._environment.clock.monotonic() + seconds,
            enforced=False,
            _trace=trace,
        )

    def listening(self, topic: Topic, listener: Listener) -> AbstractAsyncContextManager[None]:
        """Pass what is multicast on a topic to a listener until the `async with` block ends.

        Raises:
            TransportError: if there are no signals, or no link.
        """
        return self._topics.listening(topic, listener)

    async def ask_service(self, service: str, message: Request[T], timeout: float | None = None) -> T:
        """Make a request that every service answers: about its stream, or for the console. Raises `ServiceError`."""
        return await self._instance.ask(service, message, timeout)

    @property
    def instance(self) -> str:
        """The id of the service's instance."""
        return self._instance.id

    def answer(self, message: type[Request[T]], answer: Callable[[Any], Awaitable[T]]) -> None:
        """Answer a request that instances of gateways make to each other."""
        self._instance.add_console(message, answer)

    async def ask_instance(self, instance: str, message: Request[T], timeout: float) -> T | None:
        """Make a request to the instance with an id. Return None if there is no such instance. Raises `ServiceError`."""
        for member in self.registry:
            if member.manifest.instance == instance:
                deadline = self._environment.clock.loop.time() + timeout
                return await self._instance.caller.exchange.ask(member, message, deadline, self._instance.name)
        return None

    async def ask_node(self, node: str, message: Request[T], timeout: float) -> T:
        """Make a request of the console to a node.

        Raises:
            NoNode: if there is no such node.
            ServiceError: if it cannot be reached.
        """
        if node == self._environment.node:
            return await self._instance.ask(self._instance.name, message, timeout)
        for member in self.registry:
            if member.address.node == node:
                deadline = self._environment.clock.loop.time() + timeout
                return await self._instance.caller.exchange.ask(member, message, deadline, self._instance.name)
        raise NoNode(node)

    async def drain(self, node: str, timeout: float) -> bool:
        """Let a node finish its work and stop. Return whether there is such a node. Raises `ServiceError`."""
        try:
            await self.ask_node(node, Drain(), timeout)
        except NoNode:
            return False
        return True

    async def publish(self, service: str, name: str, body: bytes) -> bool:
        """Publish a signal from JSON text, as a service on this node does. Return whether there are such a service and signal.

        Raises:
            ServiceError: if the text does not fit.
        """
        endpoints = self._instance.caller.local.get(service)
        host = None if not endpoints else next(iter(endpoints.values())).host
        spec = host.definition.contract.messages.get(name) if isinstance(host, Instance) else None
        if not isinstance(host, Instance) or spec is None or spec.kind != "signal":
            return False
        await host.publish(host.context(), spec.codec.decode(body))
        return True

    async def ask(self, ctx: Context, service: str, request: str, body: bytes) -> bytes:
        """Make a request by its full name, with JSON text in and out. Raises `ServiceError`."""
        return await self._instance.caller.ask(ctx, service, request, body)

    def forward(
        self, ctx: Context, service: str, route: str, parts: RestParts, body: bytes, key: str | None
    ) -> Coroutine[Any, Any, tuple[HttpBinding, bytes]]:
        """Make a request from the parts of a REST request, and return how the route is bound, and the reply as JSON text.

        Raises `ServiceError`.
        """
        return self._instance.caller.forward(ctx, service, route, parts, body, key)

    def holding(self, stream: ByteStream) -> AbstractAsyncContextManager[None]:
        """Keep a stream that was offered for a client until the `async with` block ends, and close it then."""
        return self._instance.caller.transfers.held(stream)

    async def close_stream(self, stream: ByteStream) -> None:
        """Close the stream of a reply that is not read to its end."""
        await self._instance.caller.transfers.close(stream)


class _Topics:
    """The topics that an instance listens to for a while."""

    def __init__(self, instance: Instance) -> None:
        self._name = instance.name
        self._transport = instance.environment.transport
        self._log = instance.log
        self._listeners: dict[Topic, list[Listener]] = {}
        self._locks: dict[Topic, asyncio.Lock] = {}
        self._recent: deque[str] = deque(maxlen=64)
        instance.observer = self._receive

    @asynccontextmanager
    async def listening(self, topic: Topic, listener: Listener) -> AsyncGenerator[None, None]:
        """Pass envelopes on a topic to the listener until the block ends. Those published while it begins may be lost."""
        self._listeners.setdefault(topic, []).append(listener)
        try:
            async with self._lock(topic):
                await self._transport.subscribe(topic, self._name, broadcast=True)
            yield
        finally:
            await finish(self._leave(topic, listener))

    def _lock(self, topic: Topic) -> asyncio.Lock:
        """The lock that keeps one listener's unsubscribe from undoing another's subscribe."""
        return self._locks.setdefault(topic, asyncio.Lock())

    async def _leave(self, topic: Topic, listener: Listener) -> None:
        listeners = self._listeners[topic]
        listeners.remove(listener)
        async with self._lock(topic):
            if listeners or self._listeners.get(topic) is not listeners:
                return
            del self._listeners[topic]
            try:
                async with asyncio.timeout(_UNSUBSCRIBE_TIMEOUT):
                    await self._transport.unsubscribe(topic, self._name)
            except (TransportError, TimeoutError) as error:
                self._log.debug("%s is still subscribed to: %s", topic, error)
            if topic not in self._listeners:
                self._locks.pop(topic, None)

    def _receive(self, envelope: Envelope) -> None:
        if envelope.kind == "signal":
            if envelope.id and envelope.id in self._recent:
                return  # a broker sends one copy for each of two matching topics
            self._recent.append(envelope.id)  # a device may send none
        service, _, name = envelope.subject.partition(".")
        topics = (
            [Topic("stream", envelope.caller)]
            if envelope.kind == "head"
            else [Topic("signal", service, name, key) for key in {None, envelope.signal_key}]
        )
        for topic in topics:
            for listener in list(self._listeners.get(topic, ())):
                listener(envelope)
