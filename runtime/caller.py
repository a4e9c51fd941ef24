"""The caller: a node's requests, to instances in this process and across the transport.

Correlation, deadlines that shrink with every hop, cancellation that reaches the callee, and retries where they are safe.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

import msgspec

from runtime.context import Context
from runtime.endpoint import Endpoint, encode
from runtime.envelope import Address, Envelope
from runtime.environment import Environment
from runtime.errors import (
    DeadlineExceeded,
    Draining,
    ErrorData,
    InstanceLost,
    InternalError,
    KnownErrors,
    NoInstance,
    ServiceError,
    Unreachable,
    rebuild_error,
)
from runtime.local import as_seen, within
from runtime.mailbox import Mailbox
from runtime.messages import MessageSpec, spec_of
from runtime.registry import Member
from runtime.rest import Params
from runtime.transport import PeerUnreachable, TransportError

_ELSEWHERE = (InstanceLost, Unreachable, Draining, NoInstance)
"""Errors after which another instance may be asked."""


class LocalInstance(Protocol):
    """An instance in this process."""

    name: str
    place: str
    endpoints: dict[str, Endpoint]
    mailbox: Mailbox

    async def handle(self, endpoint: Endpoint, decode: Callable[[], Any], ctx: Context) -> Any: ...


class RetryBudget:
    """How many retries are allowed: one for every ten requests, and a few at the start; so retries never multiply load."""

    def __init__(self, earned: float = 0.1, most: float = 20.0) -> None:
        self._earned = earned
        self._most = most
        self._left = most

    def earn(self) -> None:
        """A request was made."""
        self._left = min(self._most, self._left + self._earned)

    def spend(self) -> bool:
        """Takes a retry, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Caller:
    """Makes a node's requests."""

    def __init__(self, environment: Environment) -> None:
        self.local: dict[str, LocalInstance] = {}
        """The instances in this process that take requests, by service."""
        self._environment = environment
        self._waiting: dict[str, tuple[asyncio.Future[Envelope], Address]] = {}
        self._decoders: dict[MessageSpec, msgspec.json.Decoder[Any]] = {}
        self._budget = RetryBudget()

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
            incident = self._environment.chance.hex(16)
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
        child = Context(target, ctx)  # type: ignore[arg-type]
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
        child = Context(target, ctx)  # type: ignore[arg-type]
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
        deadline = min(ctx.deadline, now + (environment.settings.request_timeout if timeout is None else timeout))
        without: frozenset[Address] = frozenset()
        tries = 0
        self._budget.earn()
        while True:
            member = environment.registry.pick(service, without) or environment.registry.pick(service)
            if member is None:
                raise NoInstance(service)
            info = member.requests.get(request)
            if key is None and info is not None and info.once:
                key = environment.chance.hex(32)
            try:
                return await self._exchange(ctx, member, request, body, params, deadline, key, known)
            except _ELSEWHERE as error:
                tries += 1
                safe = not error.maybe_delivered or (info is not None and (info.idempotent or info.once))
                pause = environment.chance.jitter(min(0.02 * 2**tries, 1.0))
                if not safe or environment.clock.monotonic() + pause >= deadline or not self._budget.spend():
                    raise
                without |= {member.address}
                environment.metrics.count("retries_total", service=service)
            await environment.clock.sleep(pause)

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
        remaining = deadline - environment.clock.monotonic()
        if remaining <= 0 and self._deadlines:
            raise DeadlineExceeded(to.service)
        sender = ctx.host.name
        envelope = Envelope(
            "request", environment.chance.hex(32), request, body,
            reply_to=Address(sender, environment.node), budget=remaining, token=ctx.token, trace=ctx.trace, key=key, params=params, path=ctx.path,
        )  # fmt: skip
        answered: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self._waiting[envelope.id] = answered, to
        member.in_flight += 1
        try:
            async with asyncio.timeout(remaining if self._deadlines else None):
                await environment.transport.unicast(to, envelope, sender)
                answer = await answered
        except PeerUnreachable:
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
        if answer.kind == "error":
            data = answer.body if isinstance(answer.body, ErrorData) else msgspec.json.decode(answer.body, type=ErrorData)
            raise rebuild_error(data, known)
        return answer.body

    def _cancel(self, request: Envelope, to: Address, sender: str) -> None:
        cancel = Envelope("cancel", request.id, request.subject, reply_to=request.reply_to)

        async def send() -> None:
            try:
                await self._environment.transport.unicast(to, cancel, sender)
            except TransportError:
                return  # then nobody is there who could go on

        self._environment.spawn(send())

    def answered(self, envelope: Envelope) -> None:
        """A reply or an error has come. One that nobody waits for any more is dropped and counted."""
        entry = self._waiting.get(envelope.id)
        if entry is None or entry[0].done() or envelope.caller not in ("", entry[1].service):
            self._environment.metrics.count("late_replies_total")
            return
        entry[0].set_result(envelope)

    def lost(self, address: Address) -> None:
        """An instance is gone: what it was asked will not be answered."""
        for answered, to in self._waiting.values():
            if to == address and not answered.done():
                answered.set_exception(InstanceLost(to.service))
                answered.exception()  # whoever asked may still be waiting for the network to take the request

    @property
    def in_flight(self) -> int:
        """How many requests to other nodes are waited for."""
        return len(self._waiting)


def _nothing_known(contract: str, code: str) -> None:
    return None
