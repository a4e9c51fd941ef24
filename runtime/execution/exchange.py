"""The exchange: outgoing requests of a node, matched with the replies that arrive for them."""

import asyncio
from typing import Any, Protocol, TypeVar

import msgspec

from runtime.contract.errors import (
    DeadlineExceeded,
    ErrorData,
    InstanceLost,
    InternalError,
    Invalid,
    KnownErrors,
    Unreachable,
    Violation,
    rebuild_error,
)
from runtime.contract.messages import Request, spec_of
from runtime.execution.environment import Environment
from runtime.network.envelope import Address, Envelope
from runtime.network.transport import LinkLost, TransportError, Unsendable

T = TypeVar("T")

_CANCEL_TIMEOUT = 1.0
"""The seconds that sending a cancel to an instance may take."""
_NEVER = float("inf")


_INTERVAL = 0.02
"""The seconds between two sweeps over the new requests. No deadline is later than that by more."""
_ROUNDING = 0.001
"""The seconds by which a timer may come too early, because uvloop counts in milliseconds."""

_Batch = dict[str, "_Pending"]
"""Requests that were sent between two sweeps, by the ids of their envelopes."""


class Target(Protocol):
    """What a request is sent to: an instance in the registry, or one that is known otherwise."""

    in_flight: int

    @property
    def address(self) -> Address: ...
    def report(self, load: int, now: float) -> None: ...


class _Pending(msgspec.Struct, eq=False):
    """A request that waits for its reply.

    Attributes:
        sent: whether the transport has taken the request: from then on it may have run.
        gone: whether the instance was lost while the request was being sent.
    """

    to: Address
    reply: "asyncio.Future[Envelope]"
    deadline: float
    sent: bool = False
    gone: bool = False

    def expire(self) -> None:
        self._fail(TimeoutError())

    def lose(self) -> None:
        """End the wait: no reply will come."""
        if self.sent:
            self._fail(InstanceLost(self.to.service))

    def _fail(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # marks it as retrieved: the caller may be cancelled, or still be sending


class Exchange:
    """Sends the requests of a node, and hands each reply to the request that waits for it.

    Most replies come within milliseconds. So a request has a timer of its own only if its deadline is nearer than the next sweep.
    The requests of a batch that still wait at the sweep share one timer, for the nearest of their deadlines.

    Attributes:
        cuts: how often this node's link was cut.
    """

    def __init__(self, environment: Environment) -> None:
        self.cuts: int = 0
        self._environment = environment
        self._pending: dict[str, _Pending] = {}
        self._new: _Batch = {}
        """The requests that were sent after the last sweep."""
        self._sweeping = False

    def __repr__(self) -> str:
        return f"<Exchange pending={self.in_flight}>"

    @property
    def in_flight(self) -> int:
        """How many requests wait for a reply from another node."""
        return len(self._pending)

    async def send(self, member: Target, envelope: Envelope, now: float, deadline: float, sender: str, known: KnownErrors) -> Any:
        """Send a request to an instance, and return the body of its reply.

        A caller that stops waiting cancels the callee.

        Args:
            envelope: the request. Its id must be unique.
            now: the time on the clock's `monotonic` scale.
            deadline: when to stop waiting, on the same scale.
            sender: the name of the calling service.
            known: returns the error classes that the caller imports.

        Raises:
            ServiceError: the callee's answer.
            Unreachable: if the request was not sent.
            InstanceLost: if the instance or the link was lost after the request was sent.
            DeadlineExceeded: if no reply came before the deadline.
            Invalid: if the transport cannot carry the request.
        """
        environment = self._environment
        transport, to, loop = environment.transport, member.address, environment.clock.loop
        batch, timer = self._new, None
        pending = batch[envelope.id] = self._pending[envelope.id] = _Pending(to, loop.create_future(), deadline)
        if environment.settings.deadlines:
            if deadline - now < _INTERVAL:
                timer = loop.call_at(deadline, pending.expire)
            elif not self._sweeping:
                self._sweeping = True
                loop.call_later(_INTERVAL, self._sweep, loop)
        member.in_flight += 1
        try:
            if not transport.unicast_now(to, envelope, sender):
                async with asyncio.timeout_at(deadline if environment.settings.deadlines else None):
                    await transport.unicast(to, envelope, sender)
            pending.sent = True
            if pending.gone:
                pending.lose()
            reply = await pending.reply
        except LinkLost:
            raise InstanceLost(to.service) from None
        except Unsendable as error:
            raise Invalid((Violation("", str(error)),)) from None
        except TransportError as error:
            environment.log.debug("%s was not sent to %s: %s", envelope.subject, to, error)
            raise Unreachable(to.service) from None
        except TimeoutError:
            self._cancel(envelope, to, sender)
            raise DeadlineExceeded(to.service) from None
        except asyncio.CancelledError:
            self._cancel(envelope, to, sender)
            raise
        finally:
            del batch[envelope.id], self._pending[envelope.id]
            if timer is not None:
                timer.cancel()
            member.in_flight -= 1
        member.report(reply.load, loop.time())
        if reply.kind == "error":
            raise rebuild_error(self._error(reply, to), known)
        return reply.body

    async def ask(self, target: Target, message: Request[T], deadline: float, sender: str) -> T:
        """Make a request to one instance, which has to be that one, and return its reply.

        Raises:
            ServiceError: like `send`.
            Malformed, Invalid: also if the reply cannot be decoded.
        """
        environment = self._environment
        spec, zero_copy = spec_of(type(message)), environment.transport.zero_copy
        now = environment.clock.loop.time()
        envelope = Envelope(
            "request", environment.random.hex(32), spec.full_name, message if zero_copy else spec.codec.encode(message),
            reply_to=Address(sender, environment.node), budget=deadline - now,
        )  # fmt: skip
        answer = await self.send(target, envelope, now, deadline, sender, nothing_known)
        reply: T = answer if zero_copy else spec.reply_codec.decode(answer)
        return reply

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = False
        batch, self._new = self._new, {}
        self._expire(batch, loop)

    def _expire(self, batch: _Batch, loop: asyncio.AbstractEventLoop) -> None:
        """End the requests of a batch whose deadline has come, and look again when the next one comes."""
        now, nearest = loop.time(), _NEVER
        for pending in batch.values():
            if pending.deadline <= now + _ROUNDING:
                pending.expire()
            elif pending.deadline < nearest:
                nearest = pending.deadline
        if nearest < _NEVER:
            loop.call_at(max(nearest, now + _INTERVAL), self._expire, batch, loop)

    def _error(self, reply: Envelope, to: Address) -> ErrorData:
        if isinstance(reply.body, ErrorData):
            return reply.body
        try:
            return msgspec.json.decode(reply.body, type=ErrorData)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            incident = self._environment.incident(("error", to.service), "%s sent an error that cannot be read: %s", to, error)
            return InternalError(incident).data()

    def _cancel(self, request: Envelope, to: Address, sender: str) -> None:
        """Tell the callee to cancel a request, as far as that is possible."""
        cancel = Envelope("cancel", request.id, request.subject, reply_to=request.reply_to)
        transport = self._environment.transport

        async def send() -> None:
            try:
                async with asyncio.timeout(_CANCEL_TIMEOUT):
                    await transport.unicast(to, cancel, sender)
            except (TransportError, TimeoutError):
                return  # the instance is gone, or cannot be reached

        try:
            if not transport.unicast_now(to, cancel, sender):
                self._environment.spawn(send())
        except TransportError:
            return

    def receive(self, envelope: Envelope) -> None:
        """Hand a reply or an error to its request. One that nothing waits for any more is dropped and counted."""
        pending = self._pending.get(envelope.id)
        if pending is None or pending.reply.done() or envelope.caller != pending.to.service:
            self._environment.metrics.count("late_replies_total")
            return
        pending.reply.set_result(envelope)

    def lost(self, address: Address) -> None:
        """Fail the requests to an instance that is gone."""
        for pending in self._pending.values():
            if pending.to == address:
                pending.gone = True
                pending.lose()

    def cut(self) -> None:
        """Fail all requests that were sent, because this node's link is down. The others wait for the link."""
        self.cuts += 1
        for pending in self._pending.values():
            pending.lose()


def nothing_known(contract: str, code: str) -> None:
    """Know no error classes of a service: for callers that expect only the runtime's own errors, or pass all of them on."""
