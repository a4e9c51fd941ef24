"""The caller: the requests of a node, to instances in this process and across the transport.

It has the registry pick the instance, passes on the rest of the deadline, and retries where that is safe.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from typing import Any, cast

import msgspec

from runtime.contract.byte_stream import ByteStream, stream_of
from runtime.contract.codec import too_large
from runtime.contract.errors import (
    DeadlineExceeded,
    Draining,
    InstanceLost,
    InternalError,
    Invalid,
    KnownErrors,
    Malformed,
    NoInstance,
    Overloaded,
    ServiceError,
    UnknownRequest,
    Unreachable,
    Violation,
)
from runtime.contract.messages import MessageSpec, spec_of
from runtime.contract.parameters import Params
from runtime.contract.rest import HttpBinding, RestParts
from runtime.durable.idempotency import RETRY_KEY
from runtime.execution.environment import Environment
from runtime.execution.exchange import Exchange, nothing_known
from runtime.execution.local import request_locally
from runtime.execution.request_endpoint import RequestEndpoint
from runtime.execution.retries import RetryBudget, Tries
from runtime.execution.transfers import Transfers
from runtime.network.envelope import Address, Envelope
from runtime.network.manifest import RequestInfo
from runtime.network.transport import TransportError
from runtime.service.context import Context
from runtime.tracing import Tracing

_RETRYABLE_ELSEWHERE = (InstanceLost, Unreachable, Draining, NoInstance, Overloaded)
"""Errors after which another instance may be asked."""
_NEVER = float("inf")
_NOTHING: Mapping[str, RequestEndpoint] = {}
_FAILURES = (DeadlineExceeded, InternalError)
"""Errors that count against the instance that was asked."""


class Caller:
    """Makes the requests of a node.

    Attributes:
        local: the endpoints of the instances in this process, by service and by the name of the request.
        routes: the same endpoints, by service and by route.
        exchange: the requests to other nodes.
        transfers: the streams of bytes in requests and replies.
    """

    def __init__(self, environment: Environment) -> None:
        self.local: dict[str, Mapping[str, RequestEndpoint]] = {}
        self.routes: dict[str, Mapping[str, RequestEndpoint]] = {}
        self.exchange: Exchange = Exchange(environment)
        self.transfers: Transfers = Transfers(environment, self.exchange)
        self._environment = environment
        self._budgets: dict[str, RetryBudget] = {}
        self._wanted: dict[tuple[str, type[Any]], _Wanted] = {}

    def request(
        self, ctx: Context, service: str, message: Any, timeout: float | None, key: str | None, known: KnownErrors
    ) -> Coroutine[Any, Any, Any]:
        """Make a request to a service and return its reply. Raises like `Context.request`."""
        wanted = self._wanted.get((service, message.__class__))
        if wanted is None:
            wanted = self._wanted[service, message.__class__] = self._wanted_for(service, spec_of(message.__class__))
        if wanted.stream is not None:
            return self._request_with_stream(ctx, wanted, message, timeout, key, known)
        endpoint = self.local.get(service, _NOTHING).get(wanted.request)
        if endpoint is not None:
            return request_locally(endpoint, known, ctx, message, timeout, key)
        return self._request_remotely(ctx, wanted, message, timeout, key, known)

    async def _request_with_stream(
        self, ctx: Context, wanted: "_Wanted", message: Any, timeout: float | None, key: str | None, known: KnownErrors
    ) -> Any:
        """Make a request whose message has a stream, which is closed with its answer. Raises like `Context.request`."""
        assert wanted.stream is not None
        stream: ByteStream | None = getattr(message, wanted.stream)
        endpoint = self.local.get(wanted.service, _NOTHING).get(wanted.request)
        async with nullcontext() if stream is None else self.transfers.held(stream):
            if endpoint is not None:
                return await request_locally(endpoint, known, ctx, message, timeout, key)
            return await self._request_remotely(ctx, wanted, message, timeout, key, known)

    def _wanted_for(self, service: str, spec: MessageSpec) -> "_Wanted":
        """Return what an instance of a service is wanted for by a message."""
        name = spec.full_name

        def decode(_: HttpBinding | None, answer: bytes) -> Any:
            try:
                return spec.reply_codec.decode(answer)
            except (Malformed, Invalid) as error:
                message = "the reply of %s to %s does not fit: %s"
                raise InternalError(self._environment.incident(("reply", name), message, service, name, error)) from None

        zero_copy, announced = self._environment.transport.zero_copy, name if spec.contract.name == service else None
        finish, encode = _body_of if zero_copy else decode, None if zero_copy else spec.codec.encode
        return _Wanted(service, name, announced, finish, encode, stream=spec.stream, reply_stream=spec.reply_stream)

    def _checked_size(self, request: str, body: bytes) -> bytes:
        limit = self._environment.transport.capabilities.max_body
        if len(body) > limit:
            raise Invalid((Violation("", too_large(request, len(body), limit)),))
        return body

    async def ask(self, ctx: Context, service: str, request: str, body: bytes) -> bytes:
        """Make a request by its full name, with JSON text in and out. Raises like `forward`."""
        endpoint = self.local.get(service, _NOTHING).get(request)
        if endpoint is not None:
            return await self._forward_locally(ctx, endpoint, None, body, None)
        self._checked_size(request, body)
        wanted = _Wanted(service, request, request, _body_of)
        answer: bytes = await self._request_remotely(ctx, wanted, body, None, None, nothing_known)
        return answer

    async def forward(
        self, ctx: Context, service: str, route: str, parts: RestParts, body: bytes, key: str | None
    ) -> tuple[HttpBinding, bytes]:
        """Make a request from the parts of a REST request. Instances of two versions may map the route to different requests.

        Args:
            route: the route, for example `GET /rides/{}`.
            parts: what of the request becomes parameters.

        Returns:
            The binding of the instance that has answered, and the JSON text of its reply.

        Raises:
            ServiceError: as `Context.request`; errors of services arrive as `RemoteError`.
        """
        self._checked_size(route, body)
        endpoint = self.routes.get(service, _NOTHING).get(route)
        if endpoint is not None:
            assert endpoint.handler.http is not None
            params, body = endpoint.handler.http.read(parts, body)
            return endpoint.handler.http, await self._forward_locally(ctx, endpoint, params, body, key)
        wanted = _Wanted(service, route, route, _binding_and_body, None, parts)
        http, answer = await self._request_remotely(ctx, wanted, body, None, key, nothing_known)
        return http, answer

    async def _forward_locally(
        self, ctx: Context, endpoint: RequestEndpoint, params: Params | None, body: bytes, key: str | None
    ) -> bytes:
        child = Context(endpoint.host, ctx, given_key=key)
        reply: bytes = await endpoint.enter_nested(child, (params, body), endpoint.decode, endpoint.reply_to_json)
        return reply

    def _request_remotely(
        self,
        ctx: Context,
        wanted: "_Wanted",
        body: Any,
        timeout: float | None,
        key: str | None,
        known: KnownErrors,
    ) -> Coroutine[Any, Any, Any]:
        """Make a request to an instance that has it. Return what `wanted.finish` makes of its reply."""
        tracing = self._environment.tracing
        if tracing is None or not tracing.wants(ctx.trace):
            return self._request_instance(ctx, wanted, body, timeout, key, known, None)
        return self._request_traced(tracing, ctx, wanted, body, timeout, key, known)

    async def _request_traced(
        self,
        tracing: Tracing,
        ctx: Context,
        wanted: "_Wanted",
        body: Any,
        timeout: float | None,
        key: str | None,
        known: KnownErrors,
    ) -> Any:
        attributes = {"rpc.system.name": "callboard", "rpc.service": wanted.service}
        attributes["http.route" if wanted.parts is not None else "rpc.method"] = wanted.request
        name = wanted.request if wanted.parts is None else f"{wanted.service} {wanted.request}"
        span = tracing.begin(ctx.service, name, "CLIENT", ctx.trace, attributes)
        if span is None:
            return await self._request_instance(ctx, wanted, body, timeout, key, known, None)
        try:
            reply = await self._request_instance(ctx, wanted, body, timeout, key, known, span.trace)
        except BaseException as error:
            span.end(error, getattr(error, "code", ""))
            raise
        span.end()
        return reply

    async def _request_instance(
        self,
        ctx: Context,
        wanted: "_Wanted",
        body: Any,
        timeout: float | None,
        key: str | None,
        known: KnownErrors,
        trace: str | None,
    ) -> Any:
        environment, exchange, host = self._environment, self.exchange, ctx.host
        service, announced, pick = wanted.service, wanted.announced, environment.registry.pick
        stream: ByteStream | None = None if wanted.stream is None else getattr(body, wanted.stream)
        if wanted.encode is not None:
            body = self._checked_size(wanted.request, wanted.encode(body))
        time = environment.clock.loop.time
        now = time()
        deadline = ctx.deadline
        if timeout is not None or deadline == _NEVER:  # nobody waits for a timer, but its requests have a deadline
            deadline = min(deadline, now + (environment.settings.request_timeout if timeout is None else timeout))
        if not environment.is_watched(service):
            await self._discover(service, deadline)
            now = time()
        without: frozenset[Address] = frozenset()
        prefers: str | None = None
        budget = self._budgets.get(service)
        if budget is None:
            budget = self._budgets[service] = RetryBudget()
        budget.earn()
        tries: Tries | None = None  # made at the first failure
        again = False
        while True:
            member = pick(service, now, without, prefers, announced, again=again)
            if member is None:
                member = pick(service, now, request=announced, again=again)
                if member is None:
                    if not await environment.registry.appears(service, announced, deadline, again=again):
                        missing = NoInstance(service)
                        raise missing if tries is None else tries.final_error(missing)
                    now = time()
                    continue
            info = None if announced is None else member.requests.get(announced)
            request, params, http, sent = wanted.request, None, None, body
            if info is not None:
                if wanted.parts is not None and info.http is not None:
                    request, http = info.name, info.http
                    stream = wanted.parts.stream if http.raw_kind == "stream" else None
                    params, sent = info.http.read(wanted.parts, body)
                    if sent is not body:
                        self._checked_size(request, sent)
                if info.once and key is None:
                    key = RETRY_KEY + environment.random.hex(32)
                if info.key is not None and prefers is None:
                    prefers = _preference(info, sent, params)
                    if prefers is not None:
                        continue
            cuts = exchange.cuts
            try:
                if now >= deadline and environment.settings.deadlines:
                    raise DeadlineExceeded(service)
                token = client = fields = None
                origin = ctx.origin
                if origin is not None:
                    token, client = origin.token, origin.client
                    fields = None if origin.trace_fields is None else ctx.passed_fields
                envelope = Envelope(
                    "request", environment.random.hex(32), request, sent, "", host.address, deadline - now, token, trace or ctx.trace, key,
                    params, ctx.path, 0, None, client, fields,
                )  # fmt: skip
                sending = exchange.send(member, envelope, now, deadline, host.name, known)
                if stream is not None:
                    sending = self.transfers.send(stream, member.address, envelope, host.name, deadline, sending)
                answer = await sending
            except _FAILURES:
                if member.failed(now, time(), environment.random):
                    environment.metrics.count("instances_ejected_total", service=service)
                raise
            except _RETRYABLE_ELSEWHERE as error:
                if error.service != service:  # the callee has let through an error of a service that it called
                    member.succeeded()
                    raise
                now = time()
                without |= {member.address}
                tries = tries or Tries(budget)
                tries.failed(error)
                again = tries.may_have_run
                alone = isinstance(error, Overloaded) and pick(service, now, without, request=announced) is None
                safe = not error.maybe_delivered or (info is not None and (info.idempotent or info.once))
                if stream is not None and not self.transfers.may_send_again(stream):
                    raise tries.final_error(error) from None
                gone = isinstance(error, InstanceLost) and not environment.registry.has_instance(member.manifest.instance)
                cut = isinstance(error, InstanceLost) and exchange.cuts != cuts
                if alone or not safe or now >= deadline or not tries.may_retry(error, gone=gone, cut=cut):
                    raise tries.final_error(error) from None
                failed, pause = error, min(tries.pause(environment.random), deadline - now)
                environment.metrics.count("retries_total", service=service)
            except UnknownRequest as error:
                member.succeeded()
                if error.request != request:  # the callee has let through an error of a service that it called
                    raise
                now = time()
                without |= {member.address}  # another instance runs there than the one that announced the request
                failed, pause = NoInstance(service), 0.0
                if pick(service, now, without, request=announced, again=again) is None:
                    raise (failed if tries is None else tries.final_error(failed)) from None
            except ServiceError:
                member.succeeded()
                raise
            else:
                member.succeeded()
                found = wanted.finish(http, answer)
                if wanted.reply_stream is not None or (http is not None and http.stream is not None):
                    self._note_stream(wanted, http, answer, found, member.address, host.name)
                return found
            await environment.clock.sleep(pause)
            now = time()
            if now >= deadline and environment.settings.deadlines:
                raise DeadlineExceeded(service) if again else failed

    def _note_stream(
        self, wanted: "_Wanted", http: HttpBinding | None, answer: Any, reply: Any, by: Address, reader: str
    ) -> None:
        """Note where the stream of a reply comes from."""
        if wanted.reply_stream is not None:
            stream: ByteStream | None = getattr(reply, wanted.reply_stream)
        else:
            assert http is not None
            assert http.stream is not None
            stream = stream_of(http.stream.field, answer)
        if stream is not None:
            self.transfers.replied(stream, by, reader)

    async def _discover(self, service: str, deadline: float) -> None:
        """Learn the instances of a service, before the first request to it."""
        try:
            async with asyncio.timeout_at(deadline if self._environment.settings.deadlines else None):
                await self._environment.watch(service)
        except TimeoutError:
            raise Unreachable(service) from None
        except TransportError as error:
            key, log = ("discover", service), self._environment.log
            message = "the instances of %s cannot be discovered: %s"
            self._environment.repeats.log(log, logging.WARNING, key, message, service, error)
            raise Unreachable(service) from None


class _Wanted(msgspec.Struct, eq=False):
    """What an instance is wanted for: a request by its name, or by its route, which each instance maps to its own request.

    Attributes:
        request: the full name of the request, or the route.
        announced: the same if the manifest has to contain it; None for what every instance has.
        finish: turns the binding of the instance's route, if any, and the body of the reply into the result.
        encode: encodes the message as the body; None if it is sent as it is.
        parts: the parts of a REST request that become parameters; None if there is no route.
        stream: the field of the message that is a stream of bytes.
        reply_stream: that of the reply.
    """

    service: str
    request: str
    announced: str | None
    finish: Callable[[HttpBinding | None, Any], Any]
    encode: Callable[[Any], bytes] | None = None
    parts: RestParts | None = None
    stream: str | None = None
    reply_stream: str | None = None


def _body_of(_: HttpBinding | None, answer: Any) -> Any:
    return answer


def _binding_and_body(http: HttpBinding | None, answer: Any) -> tuple[HttpBinding | None, Any]:
    return http, answer


def _preference(info: RequestInfo, body: Any, params: Params | None) -> str | None:
    """Return the value of a request's key, by which an instance is preferred, or None if it cannot be read."""
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
        names = dict(zip(body.__struct_encode_fields__, body.__struct_fields__, strict=True))
        value = getattr(body, names.get(info.key, ""), None)
    return None if value is None else str(value)
