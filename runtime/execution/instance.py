"""An instance: one running copy of a service. Everything between a message's arrival and its handler's end is here."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

from runtime.contract.access import Allow
from runtime.contract.errors import (
    CallCycle,
    DeadlineExceeded,
    Forbidden,
    NotDelivered,
    Unauthenticated,
    UsageError,
)
from runtime.contract.messages import Contract, Signal, spec_of
from runtime.durable.idempotency import Claim, Once, Scope
from runtime.durable.stream import Batch, Position, Pull, Stream, StreamEvent, StreamHead
from runtime.durable.subscription import Source, Subscription
from runtime.execution.caller import Caller
from runtime.execution.endpoint import Endpoint, encode
from runtime.execution.environment import Environment
from runtime.execution.failures import Failures
from runtime.execution.local import within
from runtime.execution.mailbox import Mailbox
from runtime.execution.unit_of_work import EventKeys, UnitOfWork
from runtime.identity import Identity, Verifier
from runtime.network.envelope import Address, Envelope, Topic
from runtime.network.transport import TransportError
from runtime.service.context import Context
from runtime.service.handlers import Handler
from runtime.service.service import Service
from runtime.storage.database import Database, Guard, Statement, Transaction
from runtime.tasks import finish
from runtime.telemetry import new_trace


class Instance:
    """One running copy of a service on a node."""

    def __init__(
        self, service: Service, environment: Environment, caller: Caller, verifier: Verifier, database: Database | None
    ) -> None:
        self.service = service
        self.definition = service.definition
        self.name = service.definition.contract.name
        self.address = Address(self.name, environment.node)
        self.place = str(self.address)
        self.takes_requests = bool(service.definition.requests)
        self.log = logging.getLogger(f"callboard.{self.name}")
        self.environment = environment
        self.clock = environment.clock
        self.random = environment.random
        self.metrics = environment.metrics
        self.id = environment.random.hex(16)
        self.mailbox = Mailbox(self.name, service.concurrency, service.capacity)
        self.local: dict[type[Any], Any] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.listeners: dict[str, Endpoint] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.stream: Stream | None = None
        self.observer: Callable[[Envelope], None] | None = None
        """Is shown the signals and heads that come for topics which the service's class does not name."""
        self.failures = Failures(self.name, environment, self.log, self.context)
        self._once: Once | None = None
        self.caller = caller
        self.verifier = verifier
        self._database = database
        self._calls = {contract.name for contract in (*self.definition.calls, self.definition.contract)}
        self._bind()

    def __repr__(self) -> str:
        return f"<Instance {self.place} {self.mailbox!r}>"

    @property
    def database(self) -> Database:
        """The service's own database."""
        if self._database is None:
            raise UsageError(f"{self.name} has no database: give its node one for it")
        return self._database

    def _bind(self) -> None:
        definition = self.definition
        for group, endpoints in ((definition.requests, self.endpoints), (definition.signals | definition.events, self.listeners)):
            for name, handler in group.items():
                endpoints[name] = Endpoint(handler, getattr(self.service, handler.name))
        if self._database is None:
            return
        self.stream = stream = Stream(self._database, self.clock, self.random)
        self._database.publisher = self
        for spec, method in ((spec_of(Pull), stream.pull), (spec_of(StreamHead), self._stream_head)):
            self.endpoints[spec.full_name] = Endpoint(Handler(spec.name, method, spec, False, idempotent=True), method)
        self._once = Once(
            self._database,
            self.clock,
            self.random,
            self.id,
            lambda owner: owner == self.id or self.environment.registry.has_instance(owner),
            definition.known_error,
            self.log,
        )
        attempts: dict[str, dict[str, int]] = {}
        for name, handler in definition.events.items():
            attempts.setdefault(handler.spec.contract.name, {})[name] = handler.attempts
        self.subscriptions = {
            publisher: Subscription(publisher, types, not definition.calls, self) for publisher, types in attempts.items()
        }

    async def prune(self) -> None:
        """Deletes what the database need not keep any longer."""
        if self.stream is not None and self._once is not None:
            await self.stream.prune()
            await self._once.prune()

    # What a context asks of its instance

    async def request(self, ctx: Context, message: Any, timeout: float | None, key: str | None) -> Any:
        spec = spec_of(cast(type[Any], type(message)))
        if spec.kind != "request":
            raise UsageError(f"ctx.request takes a Request, got the {spec.kind} {spec.full_name}")
        if spec.contract.name not in self._calls:
            raise UsageError(f"{self.name} asks for {spec.full_name}, but {spec.contract.name} is not in its calls: add it there")
        work = ctx.work
        if work is not None:
            if work.begun:
                raise UsageError(
                    f"{spec.full_name} is asked for after the transaction has begun: make requests first, write afterwards "
                    "(nobody holds a lock while waiting for the network)"
                )
            key = key or work.key_for(spec.full_name)
            # whoever is asked, perhaps this service itself, is not in this handler's transaction
            token = self.database.current.set(None)
            try:
                return await self._ask(ctx, spec.contract.name, message, timeout, key)
            finally:
                self.database.current.reset(token)
        return await self._ask(ctx, spec.contract.name, message, timeout, key)

    async def _ask(self, ctx: Context, service: str, message: Any, timeout: float | None, key: str | None) -> Any:
        return await self.caller.request(ctx, service, message, timeout, key, self.definition.known_error)

    async def publish(self, ctx: Context, signal: Signal) -> None:
        spec = spec_of(type(signal))
        if spec.contract.name not in self._calls:
            raise UsageError(
                f"{self.name} publishes {spec.full_name}, but {spec.contract.name} is neither its own contract nor in its calls: add it there"
            )
        body = signal if self.environment.transport.zero_copy else encode(signal)
        key = None if spec.key is None else getattr(signal, spec.key)
        envelope = Envelope("signal", self.new_id(), spec.full_name, body, trace=ctx.trace, signal_key=key)
        topic = Topic("signal", spec.contract.name, spec.name, "-" if key is None else key)
        try:
            await self.environment.transport.multicast(topic, envelope, self.name)
        except TransportError as error:
            self.metrics.count("signals_dropped_total", service=self.name)
            self.log.debug(
                "%s was not sent: %s", spec.full_name, error
            )  # there may be many; the network says once that it is down

    async def caught_up(self, ctx: Context, contract: Contract) -> bool:
        subscription = self.subscriptions.get(contract.name)
        if subscription is None:
            raise UsageError(f"{self.name} subscribes to no event of {contract.name}: there is nothing to catch up with")
        if ctx.work is not None and ctx.work.begun:
            raise UsageError("ctx.caught_up asks another service: call it before the first statement")
        head = await self.ask(contract.name, StreamHead())
        position = await subscription.position()
        assert isinstance(head, Position)
        return (position.epoch == head.epoch and position.seq >= head.seq) or head.seq == 0

    def new_id(self) -> str:
        return self.random.hex(32)

    def new_trace(self) -> str:
        return new_trace(self.random)

    def monotonic(self) -> float:
        return self.clock.monotonic()

    def default_timeout(self) -> float:
        return self.environment.settings.request_timeout

    def context(self) -> Context:
        """A context in which nobody waits: for timers and lifecycle hooks."""
        ctx = Context(self, None)
        ctx.unbounded = True
        return ctx

    # Requests

    async def handle(self, endpoint: Endpoint, decode: Callable[[], Any], ctx: Context) -> Any:
        """Runs a request's handler and gives its reply. Nothing is decoded before it is known that the caller may ask.

        Raises:
            ServiceError: whatever went wrong, as the caller may see it.
        """
        handler = endpoint.handler
        try:
            if not handler.allow.anyone:
                await self._authorize(handler.allow, ctx)
            message = decode()
            key = None if handler.key is None else (handler.key, getattr(message, handler.key))
            ctx.held_key = None if key is None else f"{key[0]}={key[1]}"
            if key is not None or not self.mailbox.enter_now():
                if self.mailbox.must_wait(key):
                    self._refuse_cycle(ctx)
                await self.mailbox.enter(key)
            try:
                if handler.once:
                    return await self._run_once(endpoint, message, ctx)
                if handler.takes_tx:
                    return await self._transact(endpoint, message, ctx)
                reply = await endpoint.method(message, ctx)
                endpoint.check(reply, quickly=self.environment.transport.zero_copy)
                return reply
            finally:
                self.mailbox.leave(key)
        except BaseException as error:
            raise await self.failures.seen(error, ctx, endpoint.place, handler) from None

    async def _authorize(self, allow: Allow, ctx: Context) -> None:
        found = await self._verified(ctx.token)
        ctx.identity = found
        if (allow.every_service and ctx.caller) or ctx.caller in allow.services:
            return
        if not allow.roles:
            raise Forbidden
        if found is None:
            raise Unauthenticated("an access token is needed, as `Authorization: Bearer …`")
        if found.role not in allow.roles:
            raise Forbidden

    async def _verified(self, token: str | None) -> Identity | None:
        if token is None:
            return None
        return self.verifier.cached(token) or await self.verifier.verify(token)

    def _refuse_cycle(self, ctx: Context) -> None:
        """A handler that would wait for one that waits for it gets an error instead."""
        waiting = ctx.path[:-1]
        if ctx.held_key is not None and ctx.place in waiting:
            raise CallCycle(ctx.path)
        if self.mailbox.concurrency == 1 and any(place.partition("#")[0] == self.place for place in waiting):
            raise CallCycle(ctx.path)

    async def _transact(
        self,
        endpoint: Endpoint,
        message: Any,
        ctx: Context,
        guard: Guard | None = None,
        final: Callable[[Any], Statement] | None = None,
        claim: Claim | None = None,
    ) -> Any:
        tx: Transaction | None = None
        work: UnitOfWork | None = None
        try:
            async with self.database.transaction(guard) as tx:
                work = UnitOfWork(tx, claim)
                ctx.work = work
                tx.trace = ctx.trace
                reply = await endpoint.method(message, ctx, tx)
                endpoint.check(reply, quickly=self.environment.transport.zero_copy)
                if final is not None:
                    tx.final.append(final(reply))
            return reply
        finally:
            if tx is not None and work is not None and tx.committed:
                self._committed(work.signals, ctx)
            ctx.work = None

    def append(self, tx: Transaction) -> None:
        """Puts a transaction's events at its end; the database calls this before every commit."""
        assert self.stream is not None
        named: list[tuple[str, str]] = []
        for event in tx.events:
            spec = spec_of(type(event))
            if spec.contract.name != self.name:
                raise UsageError(f"{self.name} publishes {spec.full_name}, which belongs to {spec.contract.name}")
            named.append((spec.full_name, encode(event).decode()))
        self.stream.append(tx, named, tx.trace or self.new_trace())

    def appended(self, tx: Transaction) -> None:
        """Hints that there are events; the database calls this after every commit that has some."""
        assert self.stream is not None
        self.metrics.count("events_published_total", len(tx.events), service=self.name)
        self.environment.spawn(self.broadcast_head(self.stream.appended(tx)))

    def _committed(self, signals: Sequence[Signal], ctx: Context) -> None:
        """What follows a commit, whatever became of the caller: no compensation, but the signals."""
        ctx.compensations = None
        if signals:
            self.environment.spawn(self._publish_all(signals, ctx))

    async def _publish_all(self, signals: Sequence[Signal], ctx: Context) -> None:
        for signal in signals:
            await self.publish(ctx, signal)

    async def broadcast_head(self, head: Any) -> None:
        """Hints to subscribers how far the stream goes. A hint that is lost is made up for by the next."""
        envelope = Envelope(
            "head", self.new_id(), f"{self.name}.head", head if self.environment.transport.zero_copy else encode(head)
        )
        try:
            await self.environment.transport.multicast(Topic("stream", self.name), envelope, self.name)
        except TransportError:
            self.metrics.count("hints_dropped_total", service=self.name)

    async def _run_once(self, endpoint: Endpoint, message: Any, ctx: Context) -> Any:
        assert self._once is not None
        subject = "" if ctx.identity is None else ctx.identity.subject
        scope = Scope(ctx.caller, subject, endpoint.name, ctx.idempotency_key or self.new_id())

        async def run(guard: Guard, final: Callable[[Any], Statement], claim: Claim | None) -> Any:
            try:
                return await self._transact(endpoint, message, ctx, guard, final, claim)
            except BaseException as error:  # compensations go before the claim is free for the next attempt
                raise await self.failures.seen(error, ctx, endpoint.place) from None

        if not self.definition.calls:
            return await self._once.run(scope, encode(message), endpoint.reply, run)
        return await self._once.run_claimed(scope, encode(message), endpoint.reply, run, lambda: ctx.remaining)

    # Signals and events

    async def take_signal(self, envelope: Envelope) -> None:
        """Runs a signal's handler. A full mailbox drops the signal."""
        endpoint = self.listeners.get(envelope.subject)
        if endpoint is None:
            self.metrics.count("signals_unknown_total", service=self.name)
            return
        if envelope.caller not in endpoint.handler.allow.services:
            self.metrics.count("signals_refused_total", service=self.name)
            self.log.warning("%s refused: %s may not publish it", envelope.subject, envelope.caller or "a stranger")
            return
        ctx = Context(self, None)
        ctx.envelope = envelope
        try:
            if not self.mailbox.enter_now():
                await self.mailbox.enter()
        except NotDelivered:
            self.metrics.count("signals_dropped_total", service=self.name)
            return
        try:
            message = endpoint.message(envelope)
            key = endpoint.handler.spec.key
            if key is not None and getattr(message, key) != envelope.signal_key:
                self.metrics.count("signals_refused_total", service=self.name)
                self.log.warning("%s refused: it came under the key %r of another", envelope.subject, envelope.signal_key)
                return
            work = self._transact(endpoint, message, ctx) if endpoint.handler.takes_tx else endpoint.method(message, ctx)
            await within(ctx, work, self.environment.settings.deadlines)  # type: ignore[arg-type]  # any awaitable will do
        except Exception as error:
            if isinstance(error, DeadlineExceeded):
                self.log.warning("%s took too long over %s, which is given up", endpoint.place, envelope.subject)
            await self._signal_failed(error, endpoint, ctx)
        finally:
            self.mailbox.leave()

    async def _signal_failed(self, error: Exception, endpoint: Endpoint, ctx: Context) -> None:
        self.metrics.count("signals_failed_total", service=self.name)
        await self.failures.seen(error, ctx, endpoint.place)

    def _limit(self) -> float | None:
        return self.environment.settings.request_timeout if self.environment.settings.deadlines else None

    async def ask(self, publisher: str, message: Pull | StreamHead) -> Batch | Position:
        """Asks a publisher about its stream."""
        answer: Batch | Position = await self._ask(self.context(), publisher, message, None, None)
        return answer

    async def apply(self, source: Source, events: Sequence[StreamEvent], guard: Guard) -> None:
        """Runs the handlers of a publisher's events in one transaction, begun by the guard."""
        await self.mailbox.enter()
        works: list[UnitOfWork] = []
        last: Context | None = None
        tx: Transaction | None = None
        try:
            limit = self._limit()
            # requests end first, as errors that say nothing about the event; a handler that hangs by itself is the event's fault
            async with asyncio.timeout(None if limit is None else limit + 1), self.database.transaction(guard) as tx:
                deadline = self.clock.monotonic() + self.environment.settings.request_timeout
                for event in events:
                    last = ctx = Context(self, None)
                    ctx.fixed_deadline = deadline
                    ctx.timed = False
                    ctx.envelope = Envelope(
                        "signal", event.id, event.type, event.body.encode(), source.publisher, trace=event.trace
                    )
                    endpoint = self.listeners[event.type]
                    work = UnitOfWork(tx, EventKeys(source))
                    works.append(work)
                    ctx.work = work
                    await endpoint.method(endpoint.message(ctx.envelope), ctx, tx)
                    tx.trace = event.trace
        except BaseException:
            if last is not None and last.compensations and not (tx is not None and tx.committed):
                await finish(self.failures.compensate(last.compensations))
            raise
        finally:
            self.mailbox.leave()
            if tx is not None and tx.committed and last is not None:
                last.work = None
                self._committed([signal for work in works for signal in work.signals], last)

    async def _stream_head(self, message: StreamHead, ctx: Context) -> Position:
        assert self.stream is not None
        return await self.stream.position()
