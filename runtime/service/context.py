"""The context of a handler: its message's origin, requests to other services, and signals."""

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine
from typing import Any, TypeVar

import msgspec

from runtime.contract.byte_stream import ByteStream
from runtime.contract.errors import KnownErrors, Unauthenticated, UsageError
from runtime.contract.messages import Contract, Request, Signal
from runtime.issuers import Identity
from runtime.network.envelope import Envelope
from runtime.service.host import Host, Work
from runtime.trace import TraceFields, accept_fields, accept_parent, child, request_id, without_request_id

R = TypeVar("R")


class Registered:
    """The compensations that a handler has registered.

    Attributes:
        requests: the requests to make if the handler fails, in the order of their registration.
        work: the transaction of the handler, if it has one.
    """

    __slots__ = ("__weakref__", "requests", "work")

    def __init__(self, work: Work | None) -> None:
        self.requests: list[Request[Any]] = []
        self.work: Work | None = work


class Context(msgspec.Struct, eq=False, gc=False):
    """What a handler knows about its message, and how it makes requests. It is valid while the handler runs.

    Attributes:
        identity: the verified user whose token came with the message. None without a token, and in event handlers.
    """

    # A struct, because every call makes one: creating a struct takes half the time of an object with an `__init__`, and less
    # without garbage collection, which it does not need: what a context refers to never outlives the handler with a reference
    # back. The other fields are internal to the runtime.
    host: Host
    parent: "Context | None" = None
    known: KnownErrors | None = None
    """Returns the error classes that a caller in this process imports. Other errors reach it as `RemoteError`."""
    identity: Identity | None = None
    envelope: Envelope | None = None
    fixed_deadline: float | None = None
    unbounded: bool = False
    """Nobody waits: there is no deadline, as in `@every` and in lifecycle hooks."""
    enforced: bool = True
    """The deadline is enforced already, so that local calls within it need no timer of their own."""
    holds_slot: bool = True
    """The handler holds a slot in its instance's mailbox, so that calls back to the instance may have to wait for it."""
    work: Work | None = None
    compensations: Registered | None = None
    held_key: str | None = None
    given_key: str | None = None
    received: Any = None
    """What came in, before it was decoded. Only of a `once` request."""
    _id: str | None = None
    _trace: str | None = None

    def __repr__(self) -> str:
        return f"<Context of {self.host.name}, called by {self.caller or 'nobody'}>"

    def request(self, message: Request[R], *, timeout: float | None = None, key: str | None = None) -> Coroutine[Any, Any, R]:
        """Make a request to another service and return its reply.

        A request that is neither idempotent nor `once` runs at most once. The callee's budget is the rest of this handler's deadline. A caller that stops
        waiting cancels the callee.

        Args:
            message: the request.
            timeout: the longest time to wait, in seconds, within what remains here.
            key: the idempotency key of a `once` request; by default it is random, or derived from this handler's own key.

        Raises:
            ServiceError: the callee's own answer, as the class that its contract defines.
            NotDelivered: if the callee has not run; a retry is safe.
            MaybeDelivered: if the callee may have run; a retry is safe only if the request is idempotent.
            UsageError: if this handler's transaction has begun: make requests first, write afterwards.
        """
        if self.work is not None:
            return self.work.track("ctx.request", self.host.request(self, message, timeout, key))
        if timeout is None and key is None:
            try:
                call = self.host.local_calls[message.__class__]
            except KeyError:
                return self.host.request(self, message, timeout, key)
            return call(self, message)
        return self.host.request(self, message, timeout, key)

    def publish(self, signal: Signal) -> Coroutine[Any, Any, None]:
        """Publish a signal: each subscribing service receives it on one instance (or on all), at most once.

        A handler with `tx` publishes it after the commit, and never if the transaction does not commit.
        """
        publishing = self._publish(signal)
        return publishing if self.work is None else self.work.track("ctx.publish", publishing)

    async def _publish(self, signal: Signal) -> None:
        if not isinstance(signal, Signal):
            raise UsageError(f"ctx.publish takes a Signal, got {type(signal).__name__}: an Event goes through tx.publish")
        if self.work is not None:
            self.host.require_publishable(signal)
            self.work.publish(signal)
        else:
            await self.host.publish(self, signal)

    def offer(self, chunks: AsyncIterable[bytes], size: int | None = None) -> ByteStream:
        """Return a stream of bytes as a field of this handler's reply, or of a request that it makes.

        The bytes are taken from `chunks` as their reader asks for them, also after this handler has returned. `chunks` is closed
        when all were read, when its reader has ended, or when nobody has read for `node.request_timeout` seconds.

        Args:
            chunks: yields the bytes, in pieces of any length.
            size: their number, if it is known: a stream with another number is broken.
        """
        return self.host.offer(self, chunks, size)

    def read(self, stream: ByteStream) -> AsyncGenerator[bytes, None]:
        """Return the bytes of a stream that came with this handler's request, or with the reply to one of its own, in pieces.

        They can be read once, while the handler runs. If the stream fails at the caller's side, the handler is cancelled, or gets `StreamBroken`.

        Raises:
            StreamBroken: if the stream ends before it is complete, or no piece comes for `node.request_timeout` seconds.
            UsageError: if this handler's transaction has begun: read first, write afterwards.
        """
        return self.host.read(self, stream)

    def undo(self, request: Request[Any]) -> None:
        """Register a compensation: `request` is made if this handler fails or its transaction does not commit.

        Compensations run in reverse order, shielded from cancellation, each with its own budget. One that is not answered
        is stored, and made again with the same idempotency key until its callee answers, so its handler should be
        idempotent or `once`. If the process is killed before it has stored one, or if the service has no database,
        its effect has to expire.
        """
        spec = request.__message__
        if spec is not None and spec.stream is not None:
            raise UsageError(f"ctx.undo stores {spec.full_name}, and a ByteStream cannot be stored")
        if self.compensations is None:
            self.compensations = Registered(self.work)
            self.host.note_compensations(self.compensations)
        self.compensations.requests.append(request)

    async def caught_up(self, contract: Contract) -> bool:
        """Return whether this service has applied every event that the contract's service had committed at the time of this call."""
        return await self.host.caught_up(self, contract)

    @property
    def user(self) -> Identity:
        """The user whose token came with the message.

        Raises:
            Unauthenticated: if the request came without a token, which `allow=services(…)` and `ANYONE` admit. The caller receives it.
            UsageError: where there is never a user: in handlers of events, signals, and timers.
        """
        if self.identity is None:
            is_request = self.parent is not None or (self.envelope is not None and self.envelope.kind == "request")
            if is_request and self.token is None:
                raise Unauthenticated
            raise UsageError("no user's token was verified for this message: ctx.user is for requests")
        return self.identity

    @property
    def caller(self) -> str:
        """The name of the calling service, as the transport has authenticated it; empty if there is no caller."""
        if self.parent is not None:
            return self.parent.host.name
        return "" if self.envelope is None else self.envelope.caller

    @property
    def message_id(self) -> str:
        """The id of the message. It is the same at every delivery, so it can be the idempotency key of external effects."""
        if self._id is None:
            self._id = self.envelope.id if self.envelope is not None else self.host.new_id()
        return self._id

    @property
    def remaining(self) -> float:
        """The time that remains until the deadline, in seconds; infinite where nobody waits, as in `@every`."""
        return self.deadline - self.host.clock.monotonic()

    @property
    def deadline(self) -> float:
        """The time at which the caller stops waiting, on the clock's `monotonic` scale."""
        if self.fixed_deadline is None:
            if self.unbounded:
                return float("inf")
            parent = self.parent
            if parent is None or parent.unbounded:
                self.fixed_deadline = self.host.clock.monotonic() + self.host.request_timeout
            else:
                self.fixed_deadline = parent.deadline
        return self.fixed_deadline

    @property
    def service(self) -> str:
        """The name of the service whose handler this is."""
        return self.host.name

    @property
    def trace(self) -> str:
        """The W3C `traceparent` of the message."""
        if self._trace is None:
            if self.parent is not None:
                self._trace = self.parent.trace
            else:
                came = self.envelope.trace if self.envelope is not None else None
                self._trace = (accept_parent(came) if came is not None else None) or self.host.new_trace()
        return self._trace

    def within(self, trace: str) -> None:
        """Let what this handler does from now on belong to another span of the message's trace."""
        self._trace = trace

    @property
    def request_id(self) -> str:
        """The id of the client's request, which the gateway has answered it in `X-Request-Id`. It is the same in every service."""
        origin = self.origin
        return request_id(self.trace, None if origin is None else origin.trace_fields)

    @property
    def node(self) -> str:
        """The name of the node."""
        return self.host.address.node

    @property
    def origin(self) -> Envelope | None:
        """The envelope with which the work came to this process; None if it began here."""
        ctx: Context | None = self
        while ctx is not None:
            if ctx.envelope is not None:
                return ctx.envelope
            ctx = ctx.parent
        return None

    @property
    def trace_fields(self) -> TraceFields | None:
        """The W3C `tracestate` and `baggage` that came with the message, as far as they are valid; None without both."""
        fields = self.passed_fields
        return None if fields is None else without_request_id(fields)

    @property
    def passed_fields(self) -> TraceFields | None:
        """What is passed on with requests and events to other services: `trace_fields`, and the id of the client's request."""
        origin = self.origin
        if origin is None or origin.trace_fields is None:
            return None
        return accept_fields(origin.trace, origin.trace_fields)

    def trace_headers(self) -> dict[str, str]:
        """Return the header fields that make a request to another system part of the message's trace.

        They are `traceparent`, with a new parent id at each call, and `tracestate` and `baggage` if they came with the message.
        """
        headers = {"traceparent": child(self.trace, self.host.random)}
        fields = self.trace_fields
        return headers if fields is None else headers | fields.present()

    @property
    def token(self) -> str | None:
        """The user's access token, unchanged. Never log it."""
        origin = self.origin
        return None if origin is None else origin.token

    @property
    def client_address(self) -> str | None:
        """The address of the client outside, as the gateway saw it (of IPv6, its /64 network); None if none was passed on.

        Services pass it on with their own requests, so it is only as trustworthy as `caller`.
        """
        origin = self.origin
        return None if origin is None else origin.client

    @property
    def idempotency_key(self) -> str | None:
        """The idempotency key that came with the message, if any."""
        return self.envelope.idempotency_key if self.given_key is None and self.envelope is not None else self.given_key

    @property
    def log(self) -> logging.Logger:
        """The service's logger."""
        return self.host.log

    @property
    def path(self) -> tuple[str, ...]:
        """The instances that wait for this handler, from the first caller to this one."""
        if not self.holds_slot or not self.host.takes_requests:
            return ()  # nothing can wait for this handler in turn
        before = self.parent.path if self.parent is not None else self.envelope.path if self.envelope is not None else ()
        return (*before, self.slot)

    @property
    def slot(self) -> str:
        """The slot in the mailbox that this handler holds: its instance, and its key if it has one."""
        instance = str(self.host.address)
        return instance if self.held_key is None else f"{instance}#{self.held_key}"
