"""The caller: a node's requests, to instances in this process and across the transport.

Correlation, deadlines that shrink with every hop, cancellation that reaches the callee, and retries where they are safe.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import msgspec

from runtime.contract.errors import (
    DeadlineExceeded,
    Draining,
    ErrorData,
    InstanceLost,
    InternalError,
    Invalid,
    KnownErrors,
    NoInstance,
    Overloaded,
    ServiceError,
    Unreachable,
    Violation,
    rebuild_error,
)
from runtime.contract.messages import MessageSpec, spec_of
from runtime.contract.rest import Params
from runtime.execution.endpoint import Endpoint, encode
from runtime.execution.environment import Environment
from runtime.execution.local import as_seen, within
from runtime.execution.mailbox import Mailbox
from runtime.execution.retries import RetryBudget, Tries
from runtime.network.envelope import Address, Envelope
from runtime.network.manifest import RequestInfo
from runtime.network.registry import Member
from runtime.network.transport import LinkLost, TransportError, Unsendable
from runtime.service.context import Context

_ELSEWHERE = (InstanceLost, Unreachable, Draining, NoInstance, Overloaded)
"""Errors after which another instance may be asked."""
_NEVER = float("inf")
_CANCELLING = 1.0
"""Seconds for which it is tried to tell an instance that nobody waits any more."""
_FAILURES = (DeadlineExceeded, InternalError)
"""Errors that speak against the instance that was asked."""


class LocalInstance(Protocol):
    """An instance in this process."""

    name: str
    place: str
    endpoints: dict[str, Endpoint]
    mailbox: Mailbox

    async def handle(self, endpoint: Endpoint, decode: Callable[[], Any], ctx: Context) -> Any: ...


class _Call:
    """A request that an answer is waited for."""

    __slots__ = ("answered", "gone", "handed", "to")

    def __init__(self, to: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.to = to
        self.answered: asyncio.Future[Envelope] = loop.create_future()
        self.handed = False
        """Whether the network has the request: from then on it may have run."""
        self.gone = False
        """Whether the instance went while the request was being handed over."""

    def expire(self) -> None:
        if not self.answered.done():
            self.answered.set_exception(TimeoutError())
            self.answered.exception()  # whoever asked may still be waiting for the network to take the request

    def lose(self) -> None:
        """No answer will come."""
        if self.handed and not self.answered.done():
            self.answered.set_exception(InstanceLost(self.to.service))
            self.answered.exception()  # whoever asked may have been cancelled in the same turn of the loop


class Caller:
    """Makes a node's requests."""

    def __init__(self, environment: Environment) -> None:
        self.local: dict[str, LocalInstance] = {}
        """The instances in this process that take requests, by service."""
        self._environment = environment
        self._waiting: dict[str, _Call] = {}
        self._decoders: dict[MessageSpec, msgspec.json.Decoder[Any]] = {}
        self._budgets: dict[str, RetryBudget] = {}

    async def request(
        self, ctx: Context, service: str, message: Any, timeout: float | None, key: str | None, known: KnownErrors
    ) -> Any:
        """Asks a service and gives its reply. Raises like `Context.request`."""
        spec = spec_of(cast(type[Any], type(message)))
        target = self.local.get(service)
        if target is not None:
            return await self._ask_here(target, ctx, spec, message, timeout, key, known)
        body = message if self._environment.transport.zero_copy else encode(message)
        answer = await self._ask_there(ctx, service, spec.full_name, body, None, timeout, key, known)
        if self._environment.transport.zero_copy:
            return answer
        decoder = self._decoders.get(spec)
        if decoder is None:
            decoder = self._decoders[spec] = msgspec.json.Decoder(spec.reply)
        try:
            return decoder.decode(answer)
        except msgspec.MsgspecError as error:
            incident = self._environment.random.hex(16)
            self._environment.log.error(
                "incident %s: %s answered %s with something else: %s", incident, service, spec.full_name, error
            )
            raise InternalError(incident) from None

    async def forward(
        self, ctx: Context, service: str, request: str, params: Params | None, body: bytes, key: str | None
    ) -> bytes:
        """Asks a service with the parts of a REST request, and gives its reply as JSON text.

        Args:
            params: the path's and the query's parameters; None where `body` is the whole message.

        Raises:
            ServiceError: as `Context.request`; errors of services arrive as `RemoteError`.
        """
        target = self.local.get(service)
        if target is None:
            answer = await self._ask_there(ctx, service, request, body, params, None, key, _nothing_known)
            return encode(answer) if self._environment.transport.zero_copy else answer
        endpoint = target.endpoints[request]
        child = Context(target, ctx)  # type: ignore[arg-type]  # an Instance, which imports this module
        child.given_key = key
        return encode(await within(child, target.handle(endpoint, lambda: endpoint.decode(params, body), child), self._deadlines))

    @property
    def _deadlines(self) -> bool:
        return self._environment.settings.deadlines

    async def _ask_here(
        self,
        target: LocalInstance,
        ctx: Context,
        spec: MessageSpec,
        message: Any,
        timeout: float | None,
        key: str | None,
        known: KnownErrors,
    ) -> Any:
        endpoint = target.endpoints.get(spec.full_name)
        if endpoint is None:
            raise NoInstance(target.name)
        copy = not self._environment.transport.zero_copy
        child = Context(target, ctx)  # type: ignore[arg-type]  # an Instance, which imports this module
        child.given_key = key
        self._limit(child, ctx, timeout)
        try:
            decode = (lambda: endpoint.copy(message)) if copy else (lambda: message)
            reply = await within(child, target.handle(endpoint, decode, child), self._deadlines)
        except ServiceError as error:
            raise as_seen(error, known, copy=copy) from None
        return endpoint.copy_reply(reply) if copy else reply

    def _limit(self, child: Context, ctx: Context, timeout: float | None) -> None:
        if timeout is not None:
            child.fixed_deadline = min(ctx.deadline, self._environment.clock.monotonic() + timeout)

    async def _ask_there(
        self,
        ctx: Context,
        service: str,
        request: str,
        body: Any,
        params: Params | None,
        timeout: float | None,
        key: str | None,
        known: KnownErrors,
    ) -> Any:
        environment = self._environment
        now = environment.clock.monotonic()
        deadline = ctx.deadline
        if timeout is not None or deadline == _NEVER:  # where nobody waits, as in a timer
            deadline = min(deadline, now + (environment.settings.request_timeout if timeout is None else timeout))
        if not environment.is_watched(service):
            await self._look_for(service, deadline)
            now = environment.clock.monotonic()
        without: frozenset[Address] = frozenset()
        prefers: str | None = None
        budget = self._budgets.get(service)
        if budget is None:
            budget = self._budgets[service] = RetryBudget()
        tries = Tries(budget)
        while True:
            member = environment.registry.pick(service, now, without, prefers)
            if member is None:
                member = environment.registry.pick(service, now)
                if member is None:
                    if not await environment.registry.comes_back(service, deadline):
                        raise tries.ended(NoInstance(service))
                    now = environment.clock.monotonic()
                    continue
            info = member.requests.get(request)
            if info is not None:
                if info.once and key is None:
                    key = environment.random.hex(32)
                if info.key is not None and prefers is None:
                    prefers = _preference(info, body, params)
                    member = environment.registry.pick(service, now, without, prefers) or member
            try:
                answer = await self._exchange(ctx, member, request, body, params, deadline, key, known)
            except _FAILURES:
                if member.failed(now, environment.clock.monotonic(), environment.random):
                    environment.metrics.count("instances_ejected_total", service=service)
                raise
            except _ELSEWHERE as error:
                if error.service != service:  # whom the callee asked, and it has let that through
                    member.succeeded()
                    raise
                now = environment.clock.monotonic()
                without |= {member.address}
                tries.failed(error)
                alone = isinstance(error, Overloaded) and environment.registry.pick(service, now, without) is None
                safe = not error.maybe_delivered or (info is not None and (info.idempotent or info.once))
                gone = isinstance(error, InstanceLost) and not environment.registry.has_instance(member.manifest.instance)
                if alone or not safe or now >= deadline or not tries.another(error, gone=gone):
                    raise tries.ended(error) from None
                failed, pause = error, min(tries.pause(environment.random), deadline - now)
                environment.metrics.count("retries_total", service=service)
            except ServiceError:
                member.succeeded()
                raise
            else:
                member.succeeded()
                return answer
            await environment.clock.sleep(pause)
            now = environment.clock.monotonic()
            if now >= deadline and self._deadlines:
                raise DeadlineExceeded(service) if tries.may_have_run else failed

    async def _look_for(self, service: str, deadline: float) -> None:
        """Learns who is there, the first time that a service is asked."""
        try:
            async with asyncio.timeout_at(deadline if self._deadlines else None):
                await self._environment.watch(service)
        except TimeoutError:
            raise Unreachable(service) from None
        except TransportError as error:
            self._environment.log.warning("it cannot be known where %s is: %s", service, error)
            raise Unreachable(service) from None

    async def _exchange(
        self,
        ctx: Context,
        member: Member,
        request: str,
        body: Any,
        params: Params | None,
        deadline: float,
        key: str | None,
        known: KnownErrors,
    ) -> Any:
        environment = self._environment
        to = member.address
        loop = environment.clock.loop
        remaining = deadline - loop.time()
        if remaining <= 0 and self._deadlines:
            raise DeadlineExceeded(to.service)
        sender = ctx.host.name
        envelope = Envelope(
            "request", environment.random.hex(32), request, body,
            reply_to=ctx.host.address, budget=remaining, token=ctx.token, trace=ctx.trace, idempotency_key=key, params=params, path=ctx.path,
        )  # fmt: skip
        call = self._waiting[envelope.id] = _Call(to, loop)
        timer = loop.call_later(remaining, call.expire) if self._deadlines else None
        member.in_flight += 1
        try:
            if not environment.transport.unicast_now(to, envelope, sender):
                async with asyncio.timeout(remaining if self._deadlines else None):
                    await environment.transport.unicast(to, envelope, sender)
            call.handed = True
            if call.gone:
                call.lose()
            answer = await call.answered
        except LinkLost:
            raise InstanceLost(to.service) from None
        except Unsendable as error:
            raise Invalid((Violation("", str(error)),)) from None
        except TransportError as error:
            environment.log.debug("%s was not handed to %s: %s", request, to, error)
            raise Unreachable(to.service) from None
        except TimeoutError:
            self._cancel(envelope, to, sender)
            raise DeadlineExceeded(to.service) from None
        except asyncio.CancelledError:
            self._cancel(envelope, to, sender)
            raise
        finally:
            del self._waiting[envelope.id]
            member.in_flight -= 1
            if timer is not None:
                timer.cancel()
        member.report(answer.load, loop.time())
        if answer.kind == "error":
            raise rebuild_error(self._error(answer, to), known)
        return answer.body

    def _error(self, answer: Envelope, to: Address) -> ErrorData:
        if isinstance(answer.body, ErrorData):
            return answer.body
        try:
            return msgspec.json.decode(answer.body, type=ErrorData)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            incident = self._environment.random.hex(16)
            self._environment.log.error("incident %s: %s answered with an error that is none: %s", incident, to, error)
            return InternalError(incident).data()

    def _cancel(self, request: Envelope, to: Address, sender: str) -> None:
        cancel = Envelope("cancel", request.id, request.subject, reply_to=request.reply_to)

        transport = self._environment.transport

        async def send() -> None:
            try:
                async with asyncio.timeout(_CANCELLING):
                    await transport.unicast(to, cancel, sender)
            except (TransportError, TimeoutError):
                return  # then nobody is there who could go on, or nobody can be told

        try:
            if not transport.unicast_now(to, cancel, sender):
                self._environment.spawn(send())
        except TransportError:
            return

    def answered(self, envelope: Envelope) -> None:
        """A reply or an error has come. One that nobody waits for any more is dropped and counted."""
        call = self._waiting.get(envelope.id)
        if call is None or call.answered.done() or envelope.caller != call.to.service:
            self._environment.metrics.count("late_replies_total")
            return
        call.answered.set_result(envelope)

    def lost(self, address: Address) -> None:
        """An instance is gone: what it was asked will not be answered."""
        for call in self._waiting.values():
            if call.to == address:
                call.gone = True
                call.lose()

    def cut(self) -> None:
        """This node's link is down: no answer will come. What was not handed over yet still waits for the link."""
        for call in self._waiting.values():
            call.lose()

    @property
    def in_flight(self) -> int:
        """How many requests to other nodes are waited for."""
        return len(self._waiting)


def _nothing_known(contract: str, code: str) -> None:
    return None


def _preference(info: RequestInfo, body: Any, params: Params | None) -> str | None:
    """The value of a request's key, by which an instance is preferred; None if it cannot be read."""
    assert info.key is not None
    value: Any
    if isinstance(body, bytes):
        for name, text in params or ():
            if name == info.key:
                return text
        try:
            fields: Any = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        value = cast(Mapping[str, Any], fields).get(info.key) if isinstance(fields, dict) else None
    else:
        value = getattr(body, info.key, None)
    return None if value is None else str(value)
