"""An instance: one running copy of a service, with the endpoints of its handlers."""

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar, cast

from runtime.clock import Clock, Random
from runtime.contract.access import Allow
from runtime.contract.byte_stream import ByteStream
from runtime.contract.errors import ServiceError, UsageError
from runtime.contract.messages import Contract, MessageSpec, Request, Signal, spec_of
from runtime.durable.compensations import Compensations
from runtime.durable.console import Drain
from runtime.durable.idempotency import Once
from runtime.durable.leases import TimerLease
from runtime.durable.operations import Operations
from runtime.durable.stream import Batch, Position, Pull, Stream, StreamHead
from runtime.durable.subscription import Subscription, Taken
from runtime.execution.caller import Caller
from runtime.execution.endpoint import HookEndpoint, TimerEndpoint
from runtime.execution.environment import Environment
from runtime.execution.event_endpoint import EventHandler, EventsEndpoint, SignalEndpoint
from runtime.execution.failures import Failures
from runtime.execution.instance_metrics import begin_metrics, measure_database
from runtime.execution.local import local_call
from runtime.execution.mailbox import Mailbox
from runtime.execution.once_endpoint import OnceEndpoint
from runtime.execution.publisher import EventPublisher, SignalPublisher
from runtime.execution.request_endpoint import RequestEndpoint
from runtime.execution.transfers import request_key
from runtime.execution.unit_of_work import Transactions
from runtime.identity import Verifier
from runtime.metrics import Metrics
from runtime.network.envelope import Address, Envelope
from runtime.service.context import Context, Registered
from runtime.service.handlers import Handler, Timer
from runtime.service.host import Host, LocalCall
from runtime.service.service import Definition, Service
from runtime.storage.database import Database
from runtime.telemetry import service_logger
from runtime.trace import new_trace
from runtime.tracing import Tracing

T = TypeVar("T")

_OPERATORS = 8
"""How many requests of operators may run at once."""
_HEAD_SECONDS = 2.0
"""The seconds that another service may take to tell an operator how many events it has."""


class Instance(Host):
    """One running copy of a service on a node.

    Attributes:
        endpoints: the endpoints of its requests, by their full names.
        routes: those with a route, by their routes.
        signals: the endpoints of its signals, by their full names.
        timers: the endpoints of its `@every` methods, with their intervals in seconds, and their leases if instances share them.
        subscriptions: its subscriptions, by publisher.
        stream: its stream of events; None without a database.
        compensations: those that nobody has answered yet; None without a database.
        observer: receives signals and heads on topics that the service's class does not name.
        before_request: while `on_start` runs, called before each request with the called service, the full name of the request
            (None if every instance has it), and the request's timeout.
    """

    def __init__(
        self, service: Service, environment: Environment, caller: Caller, verifier: Verifier, database: Database | None
    ) -> None:
        definition = service.definition
        self.service: Service = service
        self.definition: Definition = definition
        self.name: str = definition.contract.name
        self.address: Address = Address(self.name, environment.node)
        self.takes_requests: bool = bool(definition.requests)
        self.request_timeout: float = environment.settings.request_timeout
        self.log: logging.Logger = service_logger(self.name)
        self.environment: Environment = environment
        self.clock: Clock = environment.clock
        self.random: Random = environment.random
        self.metrics: Metrics = environment.metrics
        self.tracing: Tracing | None = environment.tracing
        self.id: str = environment.random.hex(16)
        self.caller: Caller = caller
        self.verifier: Verifier = verifier
        self.mailbox: Mailbox = Mailbox(self.name, service.concurrency, service.capacity)
        begin_metrics(self.metrics, service, self.mailbox)
        self.compensations: Compensations | None = None if database is None else self._compensations(database)
        self.failures: Failures = Failures(self.name, environment, self.log, self.context, self.compensations)
        self.local_calls: dict[type[Any], LocalCall] = {}
        self._called: dict[type[Any], RequestEndpoint] = {}
        self.observer: Callable[[Envelope], None] | None = None
        self.before_request: Callable[[str, str | None, float | None], Awaitable[None]] | None = None
        self.stream: Stream | None = None
        self.events: EventPublisher | None = None
        self._database = database
        self._once: Once | None = None
        self._requested: dict[type[Any], str] = {}
        """The services whose requests this instance may make and has made, by the class of the request."""
        self._known = frozenset(contract.name for contract in (*definition.calls, definition.contract))
        self._signals = SignalPublisher(self, environment, self._known)
        transactions = None if database is None else self._bind_database(database)
        self.endpoints: dict[str, RequestEndpoint] = {
            name: self._request_endpoint(handler, service.method(handler), transactions)
            for name, handler in definition.requests.items()
        }
        self.routes: dict[str, RequestEndpoint] = {
            handler.http.route: self.endpoints[name] for name, handler in definition.requests.items() if handler.http is not None
        }
        if self.stream is not None:
            for message, method in ((Pull, self._pull), (StreamHead, self._stream_head)):
                spec = spec_of(message)
                handler = Handler(spec.name, method, spec, False, idempotent=True)
                self.endpoints[spec.full_name] = self._request_endpoint(handler, method, transactions)
        self._consoled = Mailbox(self.name, _OPERATORS, _OPERATORS)
        self.add_console(Drain, self._drain)
        self.signals: dict[str, SignalEndpoint] = {
            name: SignalEndpoint(handler, service.method(handler), self, self.mailbox, self.failures, environment, transactions)
            for name, handler in definition.signals.items()
        }
        self.timers: list[tuple[TimerEndpoint, float, TimerLease | None]] = [
            (
                TimerEndpoint(self, f"{self.name}.{timer.name}", self.mailbox, self.failures, service.method(timer)),
                timer.seconds,
                None if database is None or not database.is_shared or timer.each else self._lease(database, timer),
            )
            for timer in definition.timers
        ]
        self.subscriptions: dict[str, Subscription] = {} if transactions is None else self._subscriptions(transactions)
        if database is not None and self.stream is not None:
            events = {publisher: definition.events_of(publisher) for publisher in self.subscriptions}
            operations = Operations(
                self.name, database, events, self.log, self._head_of, self.subscriptions, self.stream.retention
            )
            for message, answer in operations.answers.items():
                self.add_console(message, answer)

    def __repr__(self) -> str:
        return f"<Instance {self.address} {self.mailbox!r}>"

    @property
    def database(self) -> Database:
        """The service's own database."""
        if self._database is None:
            raise UsageError(f"{self.name} has no database: give its node one for it")
        return self._database

    def _request_endpoint(
        self,
        handler: Handler,
        method: Callable[..., Awaitable[Any]],
        transactions: Transactions | None,
        mailbox: Mailbox | None = None,
    ) -> RequestEndpoint:
        return (OnceEndpoint if handler.once else RequestEndpoint)(
            handler,
            method,
            self,
            mailbox or self.mailbox,
            self.failures,
            self.environment.deadlines,
            verifier=self.verifier,
            transactions=transactions,
            transport=self.environment.transport,
            repeats=self.environment.repeats,
            metrics=self.metrics,
        )

    def add_console(self, message: type[Request[Any]], answer: Callable[[Any], Awaitable[Any]]) -> None:
        """Add an endpoint for operators, for whom the gateway asks. It takes no slot of the service's own mailbox."""
        spec, method = spec_of(message), partial(_answered, answer)
        handler = Handler(spec.name, method, spec, False, allow=Allow(services=("gateway",)))
        self.endpoints[spec.full_name] = self._request_endpoint(handler, method, None, self._consoled)

    def _bind_database(self, database: Database) -> Transactions:
        self.stream = Stream(database, self.clock, self.random, lambda: self.environment.transport.capabilities.max_body)
        self.events = EventPublisher(self, self.environment, self.stream)
        database.before_commit, database.after_commit = self.events.append, self.events.committed
        measure_database(self.metrics, self.name, database, self.stream, self.clock)
        settings = self.environment.settings
        database.transaction_timeout = settings.transaction_timeout if settings.deadlines else None
        database.log = self.log
        self._once = Once(
            database,
            self.clock,
            self.random,
            self.id,
            self._is_alive,
            self.log,
            self.environment.repeats,
        )
        return Transactions(
            database,
            self._once,
            self.failures,
            makes_requests=bool(self.definition.calls),
            committed=self._signals.publish_later,
        )

    def _is_alive(self, instance: str) -> bool:
        """Return whether the instance of this service with an id is known to run."""
        return instance == self.id or self.environment.registry.has_instance(instance)

    def _lease(self, database: Database, timer: Timer) -> TimerLease:
        return TimerLease(
            database,
            timer.name,
            timer.seconds,
            owner=self.id,
            alive=self._is_alive,
            clock=self.clock,
            missed=partial(self.count_missed, timer.name),
            log=self.log,
        )

    def count_missed(self, timer: str, ticks: int) -> None:
        """Count ticks at which a timer did not run."""
        self.metrics.count("timer_ticks_missed_total", ticks, service=self.name, timer=timer)

    def _compensations(self, database: Database) -> Compensations:
        undo_timeout = self.environment.settings.undo_timeout
        called = {contract.name: contract for contract in (*self.definition.calls, self.definition.contract)}

        def find(request: str) -> MessageSpec | None:
            contract, _, name = request.partition(".")
            return called[contract].messages.get(name) if contract in called else None

        return Compensations(
            database,
            service=self.name,
            ask=lambda message, key: self.context().request(message, timeout=undo_timeout, key=key),
            find=find,
            clock=self.clock,
            random=self.random,
            metrics=self.metrics,
            log=self.log,
        )

    def _subscriptions(self, transactions: Transactions) -> dict[str, Subscription]:
        handlers: dict[str, EventHandler] = {}
        taken: dict[str, dict[str, Taken]] = {}
        for name, handler in self.definition.events.items():
            handlers[name] = EventHandler(handler, self.service.method(handler))
            taken.setdefault(handler.spec.contract.name, {})[name] = Taken(handler.spec.cls, handler.attempts)
        endpoint = EventsEndpoint(
            handlers, self, self.mailbox, self.failures, self.environment.deadlines, transactions
        )  # fmt: skip
        subscriptions = {
            publisher: Subscription(
                publisher,
                types,
                batched=not self.definition.calls,
                service=self.name,
                database=transactions.database,
                ask=self.ask,
                apply=endpoint.apply,
                clock=self.clock,
                random=self.random,
                metrics=self.metrics,
                log=self.log,
                repeats=self.environment.repeats,
            )
            for publisher, types in taken.items()
        }
        for publisher, subscription in subscriptions.items():
            self.environment.add_subscription(self.name, publisher, subscription.progress)
        return subscriptions

    async def prune(self) -> None:
        """Delete what the database does not have to retain any longer."""
        if self.stream is not None and self._once is not None:
            await self.stream.retention.prune(self.log)
            await self._once.prune()
            await self.database.shrink()

    def hook(self, name: str) -> HookEndpoint:
        """Return the endpoint of a lifecycle hook: `on_start` or `on_stop`."""
        return HookEndpoint(self, f"{type(self.service).__qualname__}.{name}", self.failures, getattr(self.service, name))

    def context(self) -> Context:
        """Return a context in which nobody waits: for timers, lifecycle hooks, and compensations."""
        return Context(self, None, unbounded=True, enforced=False, holds_slot=False)

    def call_locally(self, target: "Instance") -> None:
        """Make the requests of this instance to another one in this process directly."""
        if target.name in self._known:
            for endpoint in target.endpoints.values():
                if endpoint.handler.spec.stream is not None:
                    continue  # its stream is closed with the answer
                self.local_calls[endpoint.handler.spec.cls] = local_call(endpoint, self.definition.known_error)
                self._called[endpoint.handler.spec.cls] = endpoint

    def stop_calling_locally(self, target: "Instance") -> None:
        """Undo `call_locally`."""
        for endpoint in target.endpoints.values():
            if self._called.get(endpoint.handler.spec.cls) is endpoint:
                del self.local_calls[endpoint.handler.spec.cls], self._called[endpoint.handler.spec.cls]

    # What a context needs of its host

    def request(self, ctx: Context, message: Any, timeout: float | None, key: str | None) -> Coroutine[Any, Any, Any]:
        service = self._requested.get(message.__class__)
        if service is None or ctx.work is not None or self.before_request is not None:
            return self._request_checked(ctx, message, timeout, key)
        return self.caller.request(ctx, service, message, timeout, key, self.definition.known_error)

    async def _request_checked(self, ctx: Context, message: Any, timeout: float | None, key: str | None) -> Any:
        spec = spec_of(cast(type[Any], type(message)))
        if spec.kind != "request":
            raise UsageError(f"ctx.request takes a Request, got the {spec.kind} {spec.full_name}")
        if spec.contract.name not in self._known:
            raise UsageError(f"{self.name} asks for {spec.full_name}, but {spec.contract.name} is not in its calls: add it there")
        self._requested[spec.cls] = spec.contract.name
        work = ctx.work
        if work is None:
            return await self._request(ctx, spec.contract.name, message, timeout, key)
        if work.begun:
            raise UsageError(
                f"{spec.full_name} is asked for after the transaction has begun: make requests first, write afterwards "
                "(nobody holds a lock while waiting for the network)"
            )
        # The callee, which may be this service itself, is not part of this handler's transaction
        token = self.database.current.set(None)
        try:
            return await self._request(ctx, spec.contract.name, message, timeout, key or work.key_for(spec.full_name))
        finally:
            self.database.current.reset(token)

    async def _request(self, ctx: Context, service: str, message: Any, timeout: float | None, key: str | None) -> Any:
        if self.before_request is not None:
            spec = spec_of(cast(type[Any], type(message)))
            await self.before_request(service, spec.full_name if spec.contract.name == service else None, timeout)
        return await self.caller.request(ctx, service, message, timeout, key, self.definition.known_error)

    def note_compensations(self, registered: Registered) -> None:
        self.failures.uncommitted.add(registered)

    def require_publishable(self, signal: Signal) -> None:
        self._signals.encode(signal)

    async def publish(self, ctx: Context, signal: Signal) -> None:
        await self._signals.publish(ctx, signal)

    async def caught_up(self, ctx: Context, contract: Contract) -> bool:
        subscription = self.subscriptions.get(contract.name)
        if subscription is None:
            raise UsageError(f"{self.name} subscribes to no event of {contract.name}: there is nothing to catch up with")
        if ctx.work is not None and ctx.work.begun:
            raise UsageError("ctx.caught_up asks another service: call it before the first statement")
        head = await self.ask(contract.name, StreamHead())
        position = await subscription.position()
        return (position.epoch == head.epoch and position.seq >= head.seq) or head.seq == 0

    def offer(self, ctx: Context, chunks: AsyncIterable[bytes], size: int | None) -> ByteStream:
        return self.caller.transfers.offer(chunks, size, self.name, ctx.caller)

    def read(self, ctx: Context, stream: ByteStream) -> AsyncGenerator[bytes, None]:
        if ctx.work is not None and ctx.work.begun:
            raise UsageError("ctx.read waits for other services: read the stream before the first statement")
        envelope = ctx.envelope
        is_remote = envelope is not None and envelope.kind == "request" and envelope.reply_to is not None
        request = request_key(envelope, self.name) if envelope is not None and is_remote else None
        return self.caller.transfers.read(stream, request)

    def new_id(self) -> str:
        return self.random.hex(32)

    def new_trace(self) -> str:
        return new_trace(self.random, is_sampled=self.tracing is None or not self.tracing.exports)  # nobody has recorded its root

    # Streams

    async def ask(self, service: str, message: Request[T], timeout: float | None = None) -> T:
        """Make a request that every service answers: about its stream, or for the console. Raises `ServiceError`."""
        answer: T = await self._request(self.context(), service, message, timeout, None)
        return answer

    async def _head_of(self, publisher: str) -> int | None:
        try:
            return (await self.ask(publisher, StreamHead(), _HEAD_SECONDS)).seq
        except ServiceError:
            return None

    async def _drain(self, message: Drain) -> None:
        self.log.warning("an operator lets this node finish its work and stop")
        self.environment.drained.set()

    async def _pull(self, message: Pull, ctx: Context) -> Batch:
        assert self.stream is not None
        return await self.stream.pull(message, ctx.caller)

    async def _stream_head(self, message: StreamHead, ctx: Context) -> Position:
        assert self.stream is not None
        return await self.stream.position()


async def _answered(answer: Callable[[Any], Awaitable[Any]], message: Any, ctx: Context) -> Any:
    return await answer(message)
