"""The exchange: outgoing requests of a node, matched with the replies that arrive for them."""

import asyncio
from typing import Any

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
from runtime.execution.environment import Environment
from runtime.network.envelope import Address, Envelope
from runtime.network.registry import Member
from runtime.network.transport import LinkLost, TransportError, Unsendable

_CANCEL_TIMEOUT = 1.0
"""The seconds that sending a cancel to an instance may take."""


class _Pending:
    """A request that waits for its reply."""

    __slots__ = ("gone", "reply", "sent", "to")

    def __init__(self, to: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.to = to
        self.reply: asyncio.Future[Envelope] = loop.create_future()
        self.sent = False
        """Whether the transport has taken the request: from then on it may have run."""
        self.gone = False
        """Whether the instance was lost while the request was being sent."""

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

    Attributes:
        cuts: how often this node's link was cut.
    """

    def __init__(self, environment: Environment) -> None:
        self.cuts: int = 0
        self._environment = environment
        self._pending: dict[str, _Pending] = {}

    def __repr__(self) -> str:
        return f"<Exchange pending={len(self._pending)}>"

    @property
    def in_flight(self) -> int:
        """How many requests wait for a reply from another node."""
        return len(self._pending)

    async def send(self, member: Member, envelope: Envelope, deadline: float, sender: str, known: KnownErrors) -> Any:
        """Send a request to an instance, and return the body of its reply.

        A caller that stops waiting cancels the callee.

        Args:
            envelope: the request. Its id must be unique.
            deadline: when to stop waiting, on the clock's `monotonic` scale.
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
        to, loop = member.address, environment.clock.loop
        remaining = deadline - loop.time()
        deadlines = environment.settings.deadlines
        pending = self._pending[envelope.id] = _Pending(to, loop)
        timer = loop.call_later(remaining, pending.expire) if deadlines else None
        member.in_flight += 1
        try:
            if not environment.transport.unicast_now(to, envelope, sender):
                async with asyncio.timeout(remaining if deadlines else None):
                    await environment.transport.unicast(to, envelope, sender)
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
            del self._pending[envelope.id]
            member.in_flight -= 1
            if timer is not None:
                timer.cancel()
        member.report(reply.load, loop.time())
        if reply.kind == "error":
            raise rebuild_error(self._error(reply, to), known)
        return reply.body

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
