"""Units of work: handlers that run in a transaction, and what waits for its commit."""

import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from runtime.contract.messages import Signal
from runtime.durable.dead_letters import Source
from runtime.durable.fingerprint import Fingerprint
from runtime.durable.idempotency import Claim, Once, Scope, StoredReply, derived_key
from runtime.execution.failures import Failures, HandlerAborted, name_field
from runtime.service.context import Context
from runtime.service.host import Work
from runtime.storage.database import CommitUnknown, Conflict, Database, Guard, Statement, Transaction
from runtime.storage.values import UnstorableValue
from runtime.trace import as_stored
from runtime.tracing import Begun, Tracing

T = TypeVar("T")

Method = Callable[..., Awaitable[Any]]


class UnitOfWork(Work):
    """What a handler with `tx` has under way: its transaction, the keys of its requests, and signals to publish."""

    __slots__ = ("_keys", "_tx", "signals")

    def __init__(self, tx: Transaction, keys: Claim | None = None) -> None:
        self._tx = tx
        self._keys = keys
        self.signals: list[Signal] = []

    @property
    def begun(self) -> bool:
        return self._tx.begun

    def key_for(self, request: str) -> str | None:
        return None if self._keys is None else self._keys.key_for(request)

    def publish(self, signal: Signal) -> None:
        self.signals.append(signal)

    def track(self, name: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return self._tx.made.track(name, work, callers=3)  # the handler called the context, which called this


_CONFLICTS = 5
"""How often a handler that makes no requests runs, if its transaction is in the way of others."""


class EventWork(UnitOfWork):
    """What the handler of an event has under way. The keys of its requests are the same each time the event is applied."""

    __slots__ = ("_calls", "_seq", "_source")

    def __init__(self, tx: Transaction, source: Source, seq: int) -> None:
        super().__init__(tx)
        self._source = source
        self._seq = seq
        self._calls: dict[str, int] | None = None

    def key_for(self, request: str) -> str:
        if self._calls is None:
            self._calls = {}
        self._calls[request] = ordinal = self._calls.get(request, 0) + 1
        return derived_key(self._source.publisher, self._source.epoch, self._seq, request, ordinal)


class Transactions:
    """Runs the handlers of one instance in transactions.

    Args:
        once: the idempotent requests of the instance.
        makes_requests: whether the service's handlers make requests, so that `once` needs claims.
        committed: called after each commit with the signals that waited for it.
    """

    def __init__(
        self,
        database: Database,
        once: Once,
        failures: Failures,
        *,
        makes_requests: bool,
        committed: Callable[[Sequence[Signal], Context], None],
    ) -> None:
        self.database = database
        self._once = once
        self._failures = failures
        self._makes_requests = makes_requests
        self._committed = committed

    async def run(
        self,
        method: Method,
        message: Any,
        ctx: Context,
        check: Callable[[Any], None] | None,
        guard: Guard | None = None,
        final: Callable[[Any], Statement] | None = None,
        claim: Claim | None = None,
    ) -> Any:
        """Run a handler in a transaction that commits when it returns.

        Args:
            check: checks the reply before the commit.
            guard: the first statement of the transaction.
            final: makes the last statement from the reply.
            claim: the claim that determines the keys of the handler's requests.
        """
        for attempt in range(_CONFLICTS):
            try:
                return await self._run(method, message, ctx, check, guard, final, claim)
            except Conflict:
                if attempt + 1 == _CONFLICTS or self._makes_requests:
                    raise
            except CommitUnknown:
                ctx.compensations = None  # it may have been committed, and then nothing is to be undone; otherwise it expires
                raise
        raise AssertionError("the last attempt returns or raises")

    async def _run(
        self,
        method: Method,
        message: Any,
        ctx: Context,
        check: Callable[[Any], None] | None,
        guard: Guard | None,
        final: Callable[[Any], Statement] | None,
        claim: Claim | None,
    ) -> Any:
        tx: Transaction | None = None
        work: UnitOfWork | None = None
        tracing = ctx.host.tracing
        span = None if tracing is None else self._begin_span(tracing, ctx)
        trace = ctx.trace if span is None else span.trace
        try:
            holder = self.database.holder_until(getattr(method, "__qualname__", ctx.service), ctx.deadline)
            async with self.database.transaction(guard, holder) as tx:
                work = UnitOfWork(tx, claim)
                ctx.work = work
                tx.trace = as_stored(trace, ctx.passed_fields)
                try:
                    reply = await method(message, ctx, tx)
                except GeneratorExit as error:  # raised by the handler: it would end the transaction's own generator
                    raise HandlerAborted(f"{holder.title} raised {error!r}, which is no Exception") from error
                if check is not None:
                    check(reply)
                if final is not None:
                    tx.final.append(final(reply))
            if span is not None:
                span.end()
                span = None
            return reply
        finally:
            ctx.work = None
            if span is not None:
                span.end(sys.exception())
            if tx is not None and work is not None and tx.committed:
                self.committed(work.signals, ctx)

    def _begin_span(self, tracing: Tracing, ctx: Context) -> Begun | None:
        if not tracing.wants(ctx.trace):
            return None
        attributes = {"db.system.name": self.database.system, "db.namespace": ctx.service, "db.operation.name": "transaction"}
        return tracing.begin(ctx.service, f"transaction {ctx.service}", "CLIENT", ctx.trace, attributes)

    def committed(self, signals: Sequence[Signal], ctx: Context) -> None:
        """Drop the compensations of a handler that has committed, whatever its caller does, and publish its signals."""
        ctx.compensations = None
        if signals:
            self._committed(signals, ctx)

    async def run_once(
        self,
        scope: Scope,
        fingerprint: Fingerprint,
        method: Method,
        message: Any,
        ctx: Context,
        check: Callable[[Any], None],
        title: str,
    ) -> Any:
        """Run the handler of a `once` request, or return its stored answer. Raises like `Once.run`."""

        async def run(guard: Guard, final: Callable[[Any], Statement], claim: Claim | None) -> Any:
            try:
                return await self.run(method, message, ctx, check, guard, final, claim)
            except BaseException as error:  # compensations run before another attempt can take the claim
                if isinstance(error, UnstorableValue):
                    error = name_field(error, message)
                raise await self._failures.to_caller_error(error, ctx, title) from None

        if self._makes_requests:
            return await self._once.run_claimed(scope, fingerprint, run, lambda: ctx.remaining)
        return await self._once.run(scope, fingerprint, run, ctx.remaining)

    async def stored(self, scope: Scope, fingerprint: Fingerprint) -> StoredReply | None:
        """Return the stored reply of a `once` request, or None. Raises the stored error."""
        return await self._once.stored(scope, fingerprint)
