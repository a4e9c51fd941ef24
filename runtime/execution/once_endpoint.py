"""Endpoints of `once` requests: a repetition gets the answer that is stored, as it was stored.

The repetition may arrive after a deployment or a roll-back. Then it may no longer fit the type of the request, and the
answer may no longer fit the type of the reply.
"""

from collections.abc import Callable
from typing import Any, cast

from runtime.contract.errors import Invalid, Malformed, ServiceError
from runtime.contract.parameters import Params
from runtime.durable.fingerprint import Fingerprint
from runtime.durable.idempotency import RETRY_KEY, Scope, StoredReply
from runtime.execution.endpoint import WrongReply
from runtime.execution.request_endpoint import RequestEndpoint
from runtime.network.envelope import Envelope
from runtime.service.context import Context


class OnceEndpoint(RequestEndpoint):
    """The handler of a `once` request."""

    __slots__ = ()

    async def enter(
        self,
        ctx: Context,
        message: Any,
        decode: Callable[[Any], Any] | None = None,
        encode: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Enter like any request. A repetition that does not fit the type of this version gets the stored answer, too."""
        ctx.received = message
        try:
            reply = await super().enter(ctx, message, decode, encode)
        except Invalid:
            stored = await self._stored(ctx)
            if stored is None:
                raise
            reply = stored if encode is None else encode(stored)
        if not isinstance(reply, StoredReply):
            return reply
        try:
            return self._typed(reply)
        except WrongReply as error:
            raise await self.handle_failure(error, ctx) from None

    async def run(self, message: Any, ctx: Context) -> Any:
        assert self.transactions is not None
        key = ctx.idempotency_key or RETRY_KEY + self.host.new_id()
        return await self.transactions.run_once(
            self._scope(ctx, key), self._fingerprint(ctx, message), self.method, message, ctx, self.check, self.title
        )

    async def _stored(self, ctx: Context) -> StoredReply | None:
        """Return the stored reply to what came in, or None. Raises the stored error."""
        key = ctx.idempotency_key
        if key is None:
            return None
        assert self.transactions is not None
        try:
            return await self.transactions.stored(self._scope(ctx, key), self._fingerprint(ctx, None))
        except ServiceError as error:
            raise await self.handle_failure(error, ctx) from None

    def _scope(self, ctx: Context, key: str) -> Scope:
        return Scope(ctx.caller, "" if ctx.identity is None else ctx.identity.key, self.name, key)

    def _fingerprint(self, ctx: Context, message: Any) -> Fingerprint:
        parts = ctx.received
        if isinstance(parts, Envelope):
            parts = (parts.params, parts.body)
        elif isinstance(parts, bytes):
            parts = (None, parts)
        binding = self.handler.http
        known = isinstance(parts, tuple) and isinstance(cast(tuple[Any, Any], parts)[1], bytes)
        received = cast(tuple[Params | None, bytes], parts) if known else None
        return Fingerprint(received, 0 if binding is None else len(binding.path_fields), message)

    # Replies

    def check_class(self, reply: Any) -> None:
        if not isinstance(reply, StoredReply):
            super().check_class(reply)

    def copied(self, reply: Any) -> Any:
        return self._typed(reply) if isinstance(reply, StoredReply) else super().copied(reply)

    def checked_json(self, reply: Any) -> bytes:
        return reply.text if isinstance(reply, StoredReply) else super().checked_json(reply)

    def class_checked_json(self, reply: Any) -> bytes:
        return reply.text if isinstance(reply, StoredReply) else super().class_checked_json(reply)

    def _typed(self, stored: StoredReply) -> Any:
        """Return a stored reply as the type that a caller in this process expects."""
        try:
            return self.handler.spec.reply_codec.decode(stored.text)
        except (Malformed, Invalid) as error:
            raise WrongReply(f"the stored reply of {self.title} does not fit {self.handler.spec.reply}: {error}") from None
