"""Endpoints of requests: who may make them, how they are decoded, and how their replies are checked and encoded."""

from collections.abc import Awaitable, Callable
from typing import Any, get_origin

import msgspec

from runtime.contract.codec import Codec, too_large
from runtime.contract.errors import (
    Forbidden,
    Invalid,
    Malformed,
    ServiceError,
    Unauthenticated,
    UsageError,
    Violation,
    rebuild_error,
)
from runtime.contract.parameters import Params
from runtime.contract.rest import rest_decoder
from runtime.execution.deadlines import Deadlines
from runtime.execution.endpoint import Call, Endpoint, WrongReply
from runtime.execution.failures import Failures
from runtime.execution.mailbox import Mailbox
from runtime.execution.unit_of_work import Transactions
from runtime.identity import Verifier
from runtime.metrics import Metrics
from runtime.network.envelope import Envelope
from runtime.network.transport import Transport
from runtime.repeats import Repeats
from runtime.service.context import Context
from runtime.service.handlers import Handler
from runtime.service.host import Host
from runtime.telemetry import log_refusal
from runtime.tracing import CALLER, REQUEST_ID, Begun, Tracing


class RequestEndpoint(Endpoint):
    """The handler of a request.

    Args:
        method: the bound method.
        verifier: verifies the tokens of users.
        transactions: runs handlers in transactions; None for a service without a database.
        repeats: counts refusals.
        transport: carries the replies. With zero-copy, messages in this process are passed on as they are.
        metrics: counts errors, and measures durations.
    """

    __slots__ = ("_allow", "_metrics", "_repeats", "_reply", "_rest", "_verifier", "codec", "copy_reply", "handler", "method", "name", "reply_to_json",
                 "transactions", "transport", "zero_copy")  # fmt: skip

    def __init__(
        self,
        handler: Handler,
        method: Callable[..., Awaitable[Any]],
        host: Host,
        mailbox: Mailbox,
        failures: Failures,
        deadlines: Deadlines | None,
        *,
        verifier: Verifier,
        transactions: Transactions | None,
        transport: Transport,
        repeats: Repeats,
        metrics: Metrics,
    ) -> None:
        measured = metrics.histogram("request_duration_seconds", service=host.name, request=handler.spec.full_name)
        super().__init__(host, getattr(method, "__qualname__", handler.name), mailbox, failures, deadlines, measured)
        self._metrics = metrics
        self.handler: Handler = handler
        self.name: str = handler.spec.full_name
        self.key: str | None = handler.key
        self.restricted: bool = True
        self.transport: Transport = transport
        self._repeats = repeats
        self.zero_copy: bool = transport.zero_copy
        self.codec: Codec | None = None if transport.zero_copy else handler.spec.codec
        """Encodes and decodes a message, as if it crossed a network; None if messages are passed on as they are."""
        reply = handler.spec.reply
        if isinstance(struct := get_origin(reply), type) and issubclass(struct, msgspec.Struct):
            reply = struct  # of a generic reply, such as `Page[Ride]`
        self.reply_class: type[Any] | None = type(None) if reply is None else reply if isinstance(reply, type) else None
        self.copy_reply: Callable[[Any], Any] | None = None if transport.zero_copy else self.copied
        """Encodes and decodes a reply, and so checks it; None if replies are passed on as they are."""
        self.reply_to_json: Callable[[Any], bytes] = self.class_checked_json if transport.zero_copy else self.checked_json
        """Encodes a reply as JSON text, and checks it."""
        self._allow = handler.allow
        self.method: Callable[..., Awaitable[Any]] = method
        self._verifier = verifier
        self.transactions: Transactions | None = transactions
        self._reply = handler.spec.reply_codec
        self._rest = None if handler.http is None else rest_decoder(handler.spec, handler.http)
        self.call: Call = self.run if handler.takes_tx else method

    @property
    def is_plain(self) -> bool:
        """Whether the handler runs as it is: for anyone, without a key or a transaction, and nobody traces it."""
        return (
            self.host.tracing is None
            and self.handler.allow.anyone
            and not (self.handler.takes_tx or self.handler.once)
            and self.key is None
        )

    def begin_span(self, tracing: Tracing, ctx: Context) -> Begun | None:
        if not tracing.wants(ctx.trace):
            return None
        attributes = {
            "rpc.system.name": "callboard", "rpc.method": self.name, CALLER: ctx.caller, REQUEST_ID: ctx.request_id,
        }  # fmt: skip
        span = tracing.begin(self.host.name, self.name, "SERVER", ctx.trace, attributes)
        if span is not None:
            ctx.within(span.trace)
        return span

    async def authorize(self, ctx: Context) -> None:
        """Verify the user's token, if there is one, and check `allow=`.

        Raises:
            Unauthenticated: if a valid token is needed and there is none.
            Forbidden: if neither the user nor the calling service may make this request.
        """
        allow, token = self._allow, ctx.token
        if token is not None:
            ctx.identity = self._verifier.cached(token) or await self._verifier.verify(token)
        if allow.anyone or (allow.every_service and ctx.caller) or ctx.caller in allow.services:
            return
        if ctx.identity is None:
            allow.require_user(None)
        else:
            allow.require_user(ctx.identity.roles, ctx.identity.scopes)

    async def handle_failure(self, error: BaseException, ctx: Context) -> BaseException:
        if isinstance(error, Unauthenticated | Forbidden):
            log_refusal(
                self._repeats,
                "token" if isinstance(error, Unauthenticated) else "authorization",
                getattr(error, "detail", "not in allow="),
                service=self.host.name,
                request=self.name,
                caller=ctx.caller,
                user=None if ctx.identity is None else ctx.identity.subject,
                role=None if ctx.identity is None else ctx.identity.role,
                client=ctx.client_address,
                message=ctx.message_id,
                trace=ctx.trace,
            )
        outcome = await self.failures.to_caller_error(error, ctx, self.title, self.handler)
        if isinstance(outcome, ServiceError):
            self._metrics.count("request_errors_total", service=self.host.name, request=self.name, code=outcome.code)
        if ctx.known is None or not isinstance(outcome, ServiceError):
            return outcome
        if self.zero_copy and (outcome.contract == "callboard" or ctx.known(outcome.contract, outcome.code) is type(outcome)):
            return outcome
        return rebuild_error(outcome.data(), ctx.known)  # as if it had crossed a network

    # Running

    async def run(self, message: Any, ctx: Context) -> Any:
        """Run the handler in a transaction, and return its reply."""
        assert self.transactions is not None
        return await self.transactions.run(self.method, message, ctx, self.check)

    # Decoding

    def message(self, envelope: Envelope) -> Any:
        """Return the message in an envelope.

        Raises:
            Malformed: if its body is not JSON.
            Invalid: if the body does not fit the contract.
        """
        if isinstance(envelope.body, bytes):
            return self.decode((envelope.params, envelope.body))
        return envelope.body

    def decode(self, parts: tuple[Params | None, bytes]) -> Any:
        """Return the message in the parameters and body of a REST request, or without parameters in JSON text.

        Raises like `message`.
        """
        params, body = parts
        if params is None:
            return self.handler.spec.codec.decode(body)
        if self._rest is None:
            raise Invalid((Violation("", f"{self.name} has no REST route"),))
        return self._rest(params, body)

    # Replies

    def check(self, reply: Any) -> None:
        """Check before a commit that the handler returned what its contract says: only the class with zero-copy.

        Raises:
            WrongReply: if it did not.
        """
        if self.reply_class is None or not self.zero_copy:
            self.checked_json(reply)
        elif reply.__class__ is not self.reply_class:
            self.check_class(reply)

    def check_class(self, reply: Any) -> None:
        expected = self.reply_class
        if expected is None:
            self.checked_json(reply)
        elif not isinstance(reply, expected):
            raise WrongReply(
                f"{self.title} returned {reply!r:.100}, expected {getattr(self.handler.spec.reply, '__name__', None)}"
            )

    def _checked(self, reply: Any) -> tuple[bytes, Any]:
        if self.reply_class is not None and reply.__class__ is not self.reply_class:
            self.check_class(reply)
        codec = self._reply
        try:
            text = codec.text(reply)
            if len(text) > self.transport.capabilities.max_body:
                raise WrongReply(too_large(f"the reply to {self.name}", len(text), self.transport.capabilities.max_body))
            if codec.check is None:
                return text, codec.convert(text)
            return codec.encode(reply), codec.decode(text)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError, UsageError, Malformed, Invalid) as error:
            raise WrongReply(
                f"{self.title} returned {reply!r:.100}, which does not fit {self.handler.spec.reply}: {_reason(codec, reply, error)}"
            ) from None

    def copied(self, reply: Any) -> Any:
        """Return a reply as a caller in this process gets it, if it fits. Raises like `check`."""
        return self._checked(reply)[1]

    def checked_json(self, reply: Any) -> bytes:
        """Return a reply as JSON text, if it fits. Raises like `check`."""
        return self._checked(reply)[0]

    def class_checked_json(self, reply: Any) -> bytes:
        """Return a reply as JSON text, if its class fits. Raises like `check`."""
        if reply.__class__ is not self.reply_class:
            self.check_class(reply)
        return self._reply.encode(reply)


def _reason(codec: Codec, reply: Any, error: Exception) -> object:
    """Return what is wrong with a reply, with the field's name."""
    try:
        codec.encode_checked(reply)
    except UsageError as named:
        return named
    return error
