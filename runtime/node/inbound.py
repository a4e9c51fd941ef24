"""What comes to a node from its transport: requests for its instances, replies, cancels, signals and hints."""

import asyncio
from typing import Any

import msgspec

from runtime.contract.errors import Draining, InstanceLost, InternalError, NoInstance, Overloaded, ServiceError, UnknownRequest
from runtime.execution.caller import Caller
from runtime.execution.endpoint import Endpoint, encode
from runtime.execution.environment import Environment
from runtime.execution.instance import Instance
from runtime.execution.local import within
from runtime.network.envelope import Address, Envelope, EnvelopeKind, Head
from runtime.network.manifest import Manifest
from runtime.network.transport import TooLarge, TransportError
from runtime.service.context import Context
from runtime.tasks import finish

_LAST_WORD = 1.0
"""Seconds that a node which stops may take to tell those who wait."""

_Work = tuple[str, str, str, str]
"""A request under way: who asks on which node, who is asked, and the request's id."""


def _work(envelope: Envelope, to: str) -> _Work:
    return envelope.caller, envelope.reply_to.node if envelope.reply_to is not None else "", to, envelope.id


class Inbound:
    """The receiver of one node. Each request runs in a task of its own; the id that a cancel names is the caller's."""

    def __init__(self, environment: Environment, caller: Caller) -> None:
        self.instances: dict[str, Instance] = {}
        self._environment = environment
        self._caller = caller
        self._running: dict[_Work, asyncio.Task[None]] = {}
        self._signals: dict[int, asyncio.Task[None]] = {}
        self._number = 0
        self._cancelled: dict[_Work, float] = {}
        self._done: dict[_Work, float] = {}
        self._stopping = False
        self.broken = asyncio.Event()
        """Set when the transport has ended for good."""
        self.failure: TransportError | None = None
        environment.metrics.gauge("requests_running", lambda: len(self._running))

    def receive(self, envelope: Envelope, to: str) -> None:
        """An envelope has come for the service `to`."""
        match envelope.kind:
            case "request":
                self._request(envelope, to)
            case "reply" | "error":
                self._caller.answered(envelope)
            case "cancel":
                self._cancel(envelope, to)
            case "signal":
                instance = self.instances.get(to)
                if instance is not None and envelope.subject not in instance.listeners and instance.observer is not None:
                    instance.observer(envelope)
                elif instance is not None:
                    self._number += 1
                    self._signals[self._number] = self._environment.clock.loop.create_task(
                        self._signal(instance, envelope, self._number)
                    )
            case "head":
                self._head(envelope, to)

    def load(self, service: str) -> int:
        """How much a service's instance here has to do."""
        instance = self.instances.get(service)
        return 0 if instance is None else instance.mailbox.load

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        """An instance is there."""
        self._environment.registry.join(manifest, load)
        for instance in self.instances.values():
            subscription = instance.subscriptions.get(manifest.service)
            if subscription is not None:
                subscription.nudge()

    def left(self, address: Address, *, lost: bool) -> None:
        """An instance is gone."""
        if self._environment.registry.leave(address, lost=lost) and lost:
            self._environment.metrics.count("instances_lost_total", service=address.service)
        if lost:  # one that withdraws still answers what it has begun
            self._caller.lost(address)

    def suspected(self, address: Address) -> None:
        """An instance is silent."""
        self._environment.registry.suspect(address)

    def cut(self) -> None:
        """The node's link is down."""
        self._environment.metrics.count("links_lost_total")
        self._caller.cut()

    def unreadable(self) -> None:
        """Something came that cannot be read, and was dropped."""
        self._environment.metrics.count("unreadable_total")

    def failed(self, error: TransportError) -> None:
        """The transport has ended for good."""
        self.failure = error
        self.broken.set()

    async def _signal(self, instance: Instance, envelope: Envelope, number: int) -> None:
        try:
            await instance.take_signal(envelope)
        finally:
            del self._signals[number]

    def _request(self, envelope: Envelope, to: str) -> None:
        instance = self.instances.get(to)
        if instance is None:
            self._environment.metrics.count("requests_refused_total", service=to, code=NoInstance.code)
            self._environment.spawn(self._disown(envelope, to))
            return
        endpoint = instance.endpoints.get(envelope.subject)
        if endpoint is None:
            self._refuse(envelope, instance, UnknownRequest(envelope.subject))
            return
        if instance.mailbox.full:
            self._refuse(envelope, instance, Draining(to) if instance.mailbox.limit < 0 else Overloaded(to))
            return
        work = _work(envelope, to)
        if self._cancelled and self._cancelled.pop(work, None) is not None:
            return  # its cancel came first
        if work in self._running or work in self._done:
            self._environment.metrics.count("duplicate_requests_total", service=to)
            return
        self._running[work] = self._environment.clock.loop.create_task(self._serve(envelope, instance, endpoint, work))

    def _ended(self, work: _Work) -> None:
        del self._running[work]
        if self._environment.transport.capabilities.duplicates:  # a second copy may still be on its way
            self._remember(self._done, work)

    async def _disown(self, request: Envelope, service: str) -> None:
        """Answers for an instance that is not here (any more)."""
        if request.reply_to is None:
            return
        data = NoInstance(service).data()
        answer = Envelope("error", request.id, request.subject, data if self._environment.transport.zero_copy else encode(data))
        try:
            await self._environment.transport.unicast(request.reply_to, answer, service)
        except TransportError as error:
            self._environment.log.debug("nobody was told that %s is not here: %s", service, error)

    def _remember(self, tombstones: dict[_Work, float], work: _Work) -> None:
        """Keeps a request's id for a while: what overtakes it, or is a copy of it, is moments away from it."""
        now = self._environment.clock.monotonic()
        while tombstones and tombstones[oldest := next(iter(tombstones))] <= now:
            del tombstones[oldest]
        if len(tombstones) < 65536:
            tombstones[work] = now + self._environment.settings.request_timeout

    async def _serve(self, envelope: Envelope, instance: Instance, endpoint: Endpoint, work: _Work) -> None:
        settings = self._environment.settings
        budget = settings.request_timeout if envelope.budget is None else envelope.budget
        ctx = Context(instance, None)
        ctx.envelope = envelope
        ctx.fixed_deadline = self._environment.clock.monotonic() + budget
        try:
            reply = await within(
                ctx, instance.handle(endpoint, lambda: endpoint.message(envelope), ctx), deadlines=settings.deadlines
            )
            if not self._environment.transport.zero_copy:
                reply = encode(reply)
        except ServiceError as error:
            await self._fail(envelope, instance, error)
        except asyncio.CancelledError:
            if self._stopping:
                await finish(self._abandon(envelope, instance))
            raise
        else:
            await self._answer(envelope, instance, "reply", reply)
        finally:
            if work in self._running:
                self._ended(work)

    async def _abandon(self, request: Envelope, instance: Instance) -> None:
        """Tells who waits that the node stops; no longer than a moment: its link may be down."""
        try:
            async with asyncio.timeout(_LAST_WORD):
                await self._fail(request, instance, InstanceLost(instance.name))
        except TimeoutError:
            return

    async def _fail(self, request: Envelope, instance: Instance, error: ServiceError) -> None:
        data = error.data()
        await self._answer(request, instance, "error", data if self._environment.transport.zero_copy else encode(data))

    async def _answer(self, request: Envelope, instance: Instance, kind: EnvelopeKind, body: Any) -> None:
        to = request.reply_to
        if to is None:
            return  # one-way
        transport = self._environment.transport
        answer = Envelope(kind, request.id, request.subject, body, load=instance.mailbox.load)
        try:
            if not transport.unicast_now(to, answer, instance.name):
                await transport.unicast(to, answer, instance.name)
        except TransportError as error:
            self._environment.metrics.count("replies_dropped_total", service=instance.name)
            if isinstance(error, TooLarge):
                incident = self._environment.random.hex(16)
                instance.log.error("incident %s: the answer to %s: %s", incident, request.subject, error)
                await self._fail(request, instance, InternalError(incident))

    def _refuse(self, envelope: Envelope, instance: Instance, error: ServiceError) -> None:
        self._environment.metrics.count("requests_refused_total", service=instance.name, code=error.code)
        self._environment.spawn(self._fail(envelope, instance, error))

    def _cancel(self, envelope: Envelope, to: str) -> None:
        work = _work(envelope, to)
        task = self._running.get(work)
        if task is None:
            self._remember(self._cancelled, work)
            return
        self._ended(work)  # one that has not taken its first step yet would not say so itself
        task.cancel()

    def _head(self, envelope: Envelope, to: str) -> None:
        instance = self.instances.get(to)
        if instance is None:
            return
        if instance.observer is not None:
            instance.observer(envelope)
        subscription = instance.subscriptions.get(envelope.caller)
        if subscription is None:
            return
        try:
            if not isinstance(envelope.body, Head):
                msgspec.json.decode(envelope.body, type=Head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._environment.metrics.count("hints_malformed_total")
            return
        subscription.nudge()  # how far the stream goes is asked of the publisher: a wrong hint costs a pull, nothing else

    async def cancel_all(self) -> None:
        """Cancels what is under way, tells those who wait, and returns when all of it has ended."""
        self._stopping = True
        tasks = [*self._running.values(), *self._signals.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
