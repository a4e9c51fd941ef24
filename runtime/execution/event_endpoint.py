"""Endpoints of signals, and of the events that a subscription applies."""

import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from runtime.contract.errors import CallboardError, DeadlineExceeded, Invalid, Malformed, NotDelivered, ServiceError
from runtime.durable.dead_letters import Advance, NeedsNewerVersion, Source
from runtime.durable.stream import StreamEvent
from runtime.execution.deadlines import Deadlines
from runtime.execution.endpoint import Call, Endpoint, Unattended
from runtime.execution.environment import Environment
from runtime.execution.failures import Failures, HandlerAborted
from runtime.execution.mailbox import Mailbox
from runtime.execution.unit_of_work import EventWork, Transactions, UnitOfWork
from runtime.network.envelope import Envelope
from runtime.service.context import Context
from runtime.service.handlers import Handler
from runtime.service.host import Host
from runtime.storage.database import Guard, Transaction
from runtime.telemetry import current, log_refusal
from runtime.trace import from_stored
from runtime.tracing import CALLER, MESSAGE, REQUEST_ID, Begun, Tracing

_SHOWN = 64
"""The bytes of a signal that cannot be decoded which the log shows."""


class SignalDropped(CallboardError):
    """A signal was not handled. `metric` counts such signals."""

    def __init__(self, metric: str, reason: str = "") -> None:
        super().__init__(reason)
        self.metric = metric


class SignalEndpoint(Endpoint):
    """The handler of a signal. A full mailbox drops the signal. Errors of the handler are logged and counted."""

    __slots__ = ("_environment", "_method", "_transactions", "handler")

    def __init__(
        self,
        handler: Handler,
        method: Callable[..., Awaitable[Any]],
        host: Host,
        mailbox: Mailbox,
        failures: Failures,
        environment: Environment,
        transactions: Transactions | None,
    ) -> None:
        measured = environment.metrics.histogram("signal_duration_seconds", service=host.name, signal=handler.spec.full_name)
        super().__init__(host, getattr(method, "__qualname__", handler.name), mailbox, failures, environment.deadlines, measured)
        self.handler: Handler = handler
        self.restricted: bool = True
        self._environment = environment
        self._method = method
        self._transactions = transactions
        self.time_limit: float | None = host.request_timeout
        self.call: Call = self._transact if handler.takes_tx else method

    async def take(self, envelope: Envelope) -> None:
        """Handle a signal that has arrived. Its failure has been logged and counted when this returns."""
        ctx = Context(self.host, None, envelope=envelope, unbounded=True)
        current.set(ctx)  # of this task
        try:
            await self.enter(ctx, envelope, self._message)
        except (ServiceError, SignalDropped):
            return

    def begin_span(self, tracing: Tracing, ctx: Context) -> Begun | None:
        if not tracing.wants(ctx.trace):
            return None
        name = self.handler.spec.full_name
        span = tracing.begin(self.host.name, f"process {name}", "CONSUMER", ctx.trace, _messaging("signal", name, ctx))
        if span is not None:
            ctx.within(span.trace)
        return span

    def ended_task(self, error: str) -> None:
        """Count and log a handler that has ended its own task, for example by cancelling it."""
        self._environment.metrics.count("signals_failed_total", service=self.host.name)
        self._log(logging.ERROR, "ended", "%s ended with %s, although nothing cancelled it", self.title, error)

    def _log(self, level: int, what: str, message: str, *args: object) -> None:
        """Log something about a signal. There may be many signals, of which only the first is logged in full."""
        self._environment.repeats.log(self.host.log, level, (self.title, what), message, *args)

    async def authorize(self, ctx: Context) -> None:
        if ctx.caller not in self.handler.allow.services:
            name = self.handler.spec.full_name
            log_refusal(
                self._environment.repeats,
                "authorization",
                "not in allow=",
                service=self.host.name,
                signal=name,
                caller=ctx.caller,
            )
            raise SignalDropped("signals_refused_total", f"{ctx.caller or 'a stranger'} may not publish it")

    def _message(self, envelope: Envelope) -> Any:
        try:
            message = self.handler.spec.codec.decode(envelope.body) if isinstance(envelope.body, bytes) else envelope.body
        except (Malformed, Invalid) as error:
            raise SignalDropped("signals_failed_total", self._unreadable(envelope, error)) from None
        key = self.handler.spec.key
        if key is not None and getattr(message, key) != envelope.signal_key:
            raise SignalDropped("signals_refused_total", f"it came under the key {envelope.signal_key!r} of another")
        return message

    def _unreadable(self, envelope: Envelope, error: Malformed | Invalid) -> str:
        spec, key = self.handler.spec, envelope.signal_key
        topic = f"{spec.contract.name}/{spec.name}/{'-' if key is None else key}"
        return f"it cannot be decoded: {error.explained()}; it came on {topic:.200} and begins with {envelope.body[:_SHOWN]!r}"

    async def take_slot(self, ctx: Context, message: Any) -> Hashable:
        try:
            return await super().take_slot(ctx, message)
        except NotDelivered:
            raise SignalDropped("signals_dropped_total") from None

    async def _transact(self, message: Any, ctx: Context) -> None:
        assert self._transactions is not None
        await self._transactions.run(self._method, message, ctx, None)

    async def handle_failure(self, error: BaseException, ctx: Context) -> BaseException:
        metrics, service = self._environment.metrics, self.host.name
        if isinstance(error, SignalDropped):
            metrics.count(error.metric, service=service)
            if str(error):
                sender = "" if ctx.envelope is None else (ctx.caller, ctx.envelope.signal_key)
                self._environment.repeats.log(
                    self.host.log, logging.WARNING, (self.title, error.metric, sender),
                    "%s from %s refused: %s", self.handler.spec.full_name, ctx.caller or "a stranger", error,
                )  # fmt: skip
            return error
        if isinstance(error, DeadlineExceeded):
            name = self.handler.spec.full_name
            self._log(logging.WARNING, "late", "%s took too long over %s, which is given up", self.title, name)
        outcome = await self.failures.to_caller_error(error, ctx, self.title)
        if isinstance(outcome, Exception):
            metrics.count("signals_failed_total", service=service)
        return outcome


def _messaging(kind: Literal["event", "signal"], name: str, ctx: Context) -> dict[str, str | int]:
    """Return the attributes of the span in which a message is handled."""
    return {
        "messaging.system": "callboard", "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": name, "messaging.message.id": ctx.message_id,
        CALLER: ctx.caller, REQUEST_ID: ctx.request_id, MESSAGE: kind,
    }  # fmt: skip


BATCH_SECONDS = 0.05
"""The seconds after which a transaction that applies several events ends."""


class EventBatch(NamedTuple):
    """Events that are applied in one transaction, which the guard begins. With `advance` it may end before the last of them."""

    source: Source
    events: Sequence[StreamEvent]
    guard: Guard
    advance: Advance | None


class EventHandler:
    """The handler of one type of event."""

    __slots__ = ("handler", "method")

    def __init__(self, handler: Handler, method: Callable[..., Awaitable[Any]]) -> None:
        self.handler: Handler = handler
        self.method: Callable[..., Awaitable[Any]] = method

    def message(self, event: StreamEvent) -> Any:
        """Return the message of an event.

        Raises:
            NeedsNewerVersion: if this version cannot decode it.
        """
        try:
            return self.handler.spec.codec.decode(event.body.encode())
        except (Malformed, Invalid) as error:
            raise NeedsNewerVersion(f"{event.type} {event.seq}: {error.explained()}") from None


class EventsEndpoint(Unattended):
    """The handlers of events: a batch enters as one message, and runs in one transaction."""

    __slots__ = ("_handlers", "_transactions")

    def __init__(
        self,
        handlers: Mapping[str, EventHandler],
        host: Host,
        mailbox: Mailbox,
        failures: Failures,
        deadlines: Deadlines | None,
        transactions: Transactions,
    ) -> None:
        super().__init__(host, f"the event handlers of {host.name}", mailbox, failures, deadlines)
        self._handlers = handlers
        self._transactions = transactions
        # Requests of the handlers end a second earlier, with errors that name the service that did not answer
        self.time_limit: float | None = host.request_timeout + 1
        self.call: Call = self._apply

    async def apply(self, source: Source, events: Sequence[StreamEvent], guard: Guard, advance: Advance | None) -> int:
        """Run the handlers of events in one transaction that the guard begins. Return how many events it has applied.

        With `advance`, the transaction ends after `BATCH_SECONDS`, or as soon as another one waits for it: the service's own
        writes do not wait until it has caught up, and no deadline undoes what was applied. Raises what a handler raises.
        """
        applied: int = await self.enter_in_task(
            Context(self.host, None, unbounded=True), EventBatch(source, events, guard, advance)
        )
        return applied

    def _handler(self, event: StreamEvent) -> EventHandler:
        handler = self._handlers.get(event.type)
        if handler is None:
            raise NeedsNewerVersion(f"{event.type} {event.seq}: this version does not take this type")
        return handler

    async def _handle(self, handler: EventHandler, event: StreamEvent, ctx: Context, tx: Transaction) -> None:
        tracing = self.host.tracing
        if tracing is None or not tracing.wants(ctx.trace):
            await handler.method(handler.message(event), ctx, tx)
            return
        attributes = _messaging("event", event.type, ctx)
        span = tracing.begin(self.host.name, f"process {event.type}", "CONSUMER", ctx.trace, attributes, link=True)
        if span is None:
            await handler.method(handler.message(event), ctx, tx)
            return
        ctx.within(span.trace)
        try:
            await handler.method(handler.message(event), ctx, tx)
        except BaseException as error:
            span.end(error)
            raise
        span.end()

    async def _apply(self, batch: EventBatch, ctx: Context) -> int:
        works: list[UnitOfWork] = []
        last: Context | None = None
        tx: Transaction | None = None
        try:
            first = self._handler(batch.events[0]).method
            database = self._transactions.database
            holder = database.holder_until(getattr(first, "__qualname__", self.title), ctx.deadline)
            async with database.transaction(batch.guard, holder) as tx:
                began = self.host.clock.monotonic()
                deadline = began + self.host.request_timeout
                for event in batch.events:
                    trace, trace_fields = from_stored(event.trace)
                    envelope = Envelope(
                        "signal", event.id, event.type, event.body, batch.source.publisher, trace=trace, trace_fields=trace_fields
                    )
                    work = EventWork(tx, batch.source, event.seq)
                    works.append(work)
                    last = Context(
                        self.host, None, envelope=envelope, fixed_deadline=deadline, enforced=False, work=work
                    )  # fmt: skip
                    current.set(last)
                    handler = self._handler(event)
                    try:
                        await self._handle(handler, event, last, tx)
                    except GeneratorExit as error:  # raised by the handler: it would end the transaction's own generator
                        raise HandlerAborted(f"{holder.title} raised {error!r}, which is no Exception") from error
                    tx.trace = event.trace
                    if batch.advance is not None and (database.contended or self.host.clock.monotonic() - began >= BATCH_SECONDS):
                        break
                if batch.advance is not None and len(works) > 1:
                    tx.final.append(batch.advance(batch.events[len(works) - 1]))
            return len(works)
        finally:
            if last is not None:
                last.work = None
                if tx is not None and tx.committed:
                    self._transactions.committed([signal for work in works for signal in work.signals], last)
                ctx.compensations = last.compensations
