"""The context: what a handler knows of its message, and how it speaks to others."""

import logging
from typing import Any, Protocol, TypeVar

from runtime.contract.errors import UsageError
from runtime.contract.messages import Contract, Request, Signal
from runtime.identity import Identity
from runtime.network.envelope import Address, Envelope

R = TypeVar("R")


class Work(Protocol):
    """The transaction and the claim that a handler works under."""

    @property
    def begun(self) -> bool: ...
    def key_for(self, request: str) -> str | None: ...
    def publish(self, signal: Signal) -> None: ...


class Host(Protocol):
    """The instance that a context speaks for."""

    name: str
    place: str
    address: Address
    takes_requests: bool
    local: dict[type[Any], Any]
    log: logging.Logger

    async def request(self, ctx: "Context", message: Any, timeout: float | None, key: str | None) -> Any: ...
    async def publish(self, ctx: "Context", signal: Signal) -> None: ...
    async def caught_up(self, ctx: "Context", contract: Contract) -> bool: ...
    def new_id(self) -> str: ...
    def new_trace(self) -> str: ...
    def monotonic(self) -> float: ...
    def default_timeout(self) -> float: ...


class Context:
    """What a handler knows of its message, and how it speaks to others. It lives as long as the handler runs."""

    identity: Identity | None = None
    """The user whose token came with the message, verified here. None without one, and in event handlers."""

    # What follows is the runtime's own. Most calls use little of it: defaults on the class cost nothing to set.
    envelope: Envelope | None = None
    fixed_deadline: float | None = None
    unbounded = False
    timed = True
    work: Work | None = None
    compensations: list[Request[Any]] | None = None
    held_key: str | None = None
    given_key: str | None = None
    _id: str | None = None
    _trace: str | None = None

    def __init__(self, host: Host, parent: "Context | None") -> None:
        self.host = host
        self.parent = parent

    def __repr__(self) -> str:
        return f"<Context of {self.host.name}, called by {self.caller or 'nobody'}>"

    async def request(self, message: Request[R], *, timeout: float | None = None, key: str | None = None) -> R:
        """Asks another service and waits for its reply.

        The handler runs at most once; what remains of this handler's deadline is the callee's budget. Whoever stops
        waiting cancels the callee's work.

        Args:
            timeout: seconds to wait at most, within what remains here.
            key: the idempotency key of a `once` request; by default one is drawn, or derived from this handler's own.

        Raises:
            ServiceError: the callee's own answer, as the class that its contract defines.
            NotDelivered: the callee has not run; asking again is safe.
            MaybeDelivered: it may have run; asking again is safe only if the request is idempotent.
            UsageError: this handler's transaction has begun: ask first, write afterwards.
        """
        route = self.host.local.get(message.__class__)
        if (
            route is None
            or self.work is not None
            or timeout is not None
            or key is not None
            or route.mailbox.running >= route.mailbox.limit
            or (route.checks_user and self.token is not None)
        ):
            reply: R = await self.host.request(self, message, timeout, key)
            return reply
        # The quick way, for a handler in this process that needs no transaction, no key and no look at the user. It runs
        # in the caller's own task, up to its first real wait without any timer.
        mailbox = route.mailbox
        mailbox.running += 1
        ctx = Context(route.host, self)
        try:
            if route.copy_request is not None:
                message = route.copy_request(message)
            work = route.call(message, ctx)
            try:
                waits_for = work.send(None)
            except StopIteration as done:
                reply = done.value
            else:
                reply = await route.resume(work, waits_for, ctx)
            return reply if route.copy_reply is None else route.copy_reply(reply)
        except BaseException as error:
            raise await route.failed(error, ctx) from None
        finally:
            mailbox.running -= 1
            if mailbox.must_wake:
                mailbox.wake()

    async def publish(self, signal: Signal) -> None:
        """Publishes a signal: each subscribing service gets it on one instance (or on all), at most once.

        In a handler with `tx` it goes out after the commit, and not at all without one.
        """
        if not isinstance(signal, Signal):
            raise UsageError(f"ctx.publish takes a Signal, got {type(signal).__name__}: an Event goes through tx.publish")
        if self.work is not None:
            self.work.publish(signal)
        else:
            await self.host.publish(self, signal)

    def undo(self, request: Request[Any]) -> None:
        """Registers a compensation: if this handler fails or its transaction does not commit, `request` is made.

        Compensations run in reverse order, shielded from cancellation, with a budget of their own. What they cannot
        reach must expire by itself.
        """
        if self.compensations is None:
            self.compensations = []
        self.compensations.append(request)

    async def caught_up(self, contract: Contract) -> bool:
        """Whether this service has applied every event that the contract's service had committed when asked."""
        return await self.host.caught_up(self, contract)

    @property
    def user(self) -> Identity:
        """The user whose token came with the message, where `allow=roles(…)` has made sure that there is one."""
        if self.identity is None:
            raise UsageError(
                "no user's token came with this message: where allow= lets services in too, look at ctx.identity, which may be None, and ctx.caller"
            )
        return self.identity

    @property
    def caller(self) -> str:
        """The calling service's name, as the transport vouches for it; empty if nobody called."""
        if self.parent is not None:
            return self.parent.host.name
        return "" if self.envelope is None else self.envelope.caller

    @property
    def message_id(self) -> str:
        """The message's id: the same however often it is delivered, so an idempotency key for effects outside."""
        if self._id is None:
            self._id = self.envelope.id if self.envelope is not None else self.host.new_id()
        return self._id

    @property
    def remaining(self) -> float:
        """Seconds that remain of the deadline; infinite where nobody waits, as in `@every`."""
        return self.deadline - self.host.monotonic()

    @property
    def deadline(self) -> float:
        """When whoever waits stops waiting, on the clock's `monotonic` scale."""
        if self.fixed_deadline is None:
            if self.unbounded:
                return float("inf")
            parent = self.parent
            if parent is None or parent.unbounded:
                self.fixed_deadline = self.host.monotonic() + self.host.default_timeout()
            else:
                self.fixed_deadline = parent.deadline
        return self.fixed_deadline

    @property
    def shares_deadline(self) -> bool:
        """Whether the deadline is the calling handler's, for which a timer is armed already."""
        parent = self.parent
        return self.fixed_deadline is None and parent is not None and parent.timed and not parent.unbounded

    @property
    def service(self) -> str:
        """The name of the service whose handler this is."""
        return self.host.name

    @property
    def trace(self) -> str:
        """The W3C `traceparent` that this message belongs to."""
        if self._trace is None:
            if self.envelope is not None and self.envelope.trace is not None:
                self._trace = self.envelope.trace
            elif self.parent is not None:
                self._trace = self.parent.trace
            else:
                self._trace = self.host.new_trace()
        return self._trace

    @property
    def token(self) -> str | None:
        """The user's access token, as it came. Never log it."""
        ctx: Context | None = self
        while ctx is not None:
            if ctx.envelope is not None:
                return ctx.envelope.token
            ctx = ctx.parent
        return None

    @property
    def idempotency_key(self) -> str | None:
        """The idempotency key that came with the message, if one did."""
        return self.envelope.idempotency_key if self.given_key is None and self.envelope is not None else self.given_key

    @property
    def log(self) -> logging.Logger:
        """The service's logger."""
        return self.host.log

    @property
    def path(self) -> tuple[str, ...]:
        """The instances that wait for this handler, the first caller first."""
        if self.unbounded or not self.host.takes_requests:
            return ()  # nobody can wait for it in turn
        before = self.parent.path if self.parent is not None else self.envelope.path if self.envelope is not None else ()
        return (*before, self.place)

    @property
    def place(self) -> str:
        """Where this handler runs: the instance, and the key it holds, if any."""
        place = self.host.place
        return place if self.held_key is None else f"{place}#{self.held_key}"
