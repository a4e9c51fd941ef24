"""The receiving side of a node: requests for its instances, replies, cancels, signals, and hints."""

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from runtime.contract.codec import to_json
from runtime.contract.errors import Draining, InstanceLost, InternalError, NoInstance, Overloaded, ServiceError, UnknownRequest
from runtime.execution.byte_streams import TRANSFERS
from runtime.execution.caller import Caller
from runtime.execution.environment import Environment
from runtime.execution.event_endpoint import SignalEndpoint
from runtime.execution.failures import HandlerAborted
from runtime.execution.instance import Instance
from runtime.execution.request_endpoint import RequestEndpoint
from runtime.execution.transfers import RequestKey, request_key
from runtime.network.envelope import Address, Envelope, EnvelopeKind, Head
from runtime.network.manifest import Manifest
from runtime.network.transport import Receiver, TransportError, Unsendable
from runtime.service.context import Context
from runtime.stacks import of_task
from runtime.tasks import finish
from runtime.telemetry import current

_FINAL_REPLY_TIMEOUT = 1.0
"""The seconds that a stopping node may take to send an error to each waiting caller."""


class Inbound(Receiver):
    """The receiver of one node. Each request runs in its own task, which a cancel with the request's id cancels.

    Attributes:
        instances: the instances on this node that take messages, by service.
    """

    def __init__(self, environment: Environment, caller: Caller) -> None:
        self.instances: dict[str, Instance] = {}
        self._environment = environment
        self._exchange = caller.exchange
        self._transfers = caller.transfers
        self._running: dict[RequestKey, asyncio.Task[None]] = {}
        self._signals: set[asyncio.Task[None]] = set()
        self._cancelled: dict[RequestKey, float] = {}
        self._cancelling: set[RequestKey] = set()
        self._done: dict[RequestKey, float] = {}
        self._stopping = False
        self._transfers.is_running = self._running.__contains__
        self._cut_off: set[str] = set()
        environment.metrics.gauge("requests_running", lambda: len(self._running))

    def receive(self, envelope: Envelope, to: str) -> None:
        match envelope.kind:
            case "request":
                self._request(envelope, to)
            case "reply" | "error":
                self._exchange.receive(envelope)
            case "cancel":
                self._cancel(envelope, to)
            case "signal":
                self._signal(envelope, to)
            case "head":
                self._head(envelope, to)

    def load(self, service: str) -> int:
        instance = self.instances.get(service)
        return 0 if instance is None else instance.mailbox.load

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        self._environment.registry.join(manifest, load)
        for instance in self.instances.values():
            subscription = instance.subscriptions.get(manifest.service)
            if subscription is not None:
                subscription.hint()
            if instance.compensations is not None and manifest.service in instance.definition.needs:
                instance.compensations.hint()

    def left(self, address: Address, *, lost: bool) -> None:
        if self._environment.registry.leave(address, lost=lost) and lost:
            self._environment.metrics.count("instances_lost_total", service=address.service)
        if lost:  # one that withdraws still replies to its running requests
            self._exchange.lost(address)

    def suspected(self, address: Address) -> None:
        self._environment.registry.suspect(address)

    def cut(self) -> None:
        self._environment.metrics.count("links_lost_total")
        self._exchange.cut()

    def unreadable(self) -> None:
        self._environment.metrics.count("unreadable_total")

    def retained(self) -> None:
        self._environment.metrics.count("retained_dropped_total")

    def failed(self, error: TransportError) -> None:
        self._environment.fail(error)

    # Signals and hints

    def _signal(self, envelope: Envelope, to: str) -> None:
        instance = self.instances.get(to)
        if instance is None:
            return
        endpoint = instance.signals.get(envelope.subject)
        if endpoint is not None:
            task = self._environment.clock.loop.create_task(endpoint.take(envelope))
            self._signals.add(task)
            task.add_done_callback(partial(self._signal_ended, endpoint))
        elif instance.observer is not None:
            instance.observer(envelope)
        else:
            self._environment.metrics.count("signals_unknown_total", service=to)

    def _signal_ended(self, endpoint: SignalEndpoint, task: asyncio.Task[None]) -> None:
        self._signals.discard(task)
        if not self._stopping and (task.cancelled() or task.exception() is not None):
            endpoint.ended_task("CancelledError" if task.cancelled() else repr(task.exception()))

    def _head(self, envelope: Envelope, to: str) -> None:
        instance = self.instances.get(to)
        if instance is None:
            return
        if instance.observer is not None:
            instance.observer(envelope)
        subscription = instance.subscriptions.get(envelope.caller)
        if subscription is None:
            return
        text: bytes | None = None if isinstance(envelope.body, Head) else envelope.body
        try:
            head = envelope.body if text is None else msgspec.json.decode(text, type=Head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._environment.metrics.count("hints_malformed_total")
            self._environment.repeats.log(
                instance.log, logging.WARNING, ("head", envelope.caller),
                "a hint about the stream of %s cannot be decoded, and is dropped; it begins with %r", envelope.caller, (text or b"")[:64],
            )  # fmt: skip
            return
        subscription.hint(head.seq)  # the publisher is asked for the true head, so a wrong hint costs one pull

    # Requests

    def _request(self, envelope: Envelope, to: str) -> None:
        instance = self.instances.get(to)
        if instance is None:
            self._environment.metrics.count("requests_refused_total", service=to, code=NoInstance.code)
            self._environment.spawn(self._reply_no_instance(envelope, to))
            return
        endpoint = instance.endpoints.get(envelope.subject)
        if endpoint is None and envelope.subject in TRANSFERS:
            key = request_key(envelope, to)
            if key not in self._running and (not self._cancelled or self._cancelled.pop(key, None) is None):
                self._running[key] = self._environment.clock.loop.create_task(self._handle_transfer(envelope, instance, key))
            return
        if endpoint is None:
            self._environment.metrics.count("requests_refused_total", service=to, code=UnknownRequest.code)
            self._environment.spawn(self._reply_unknown(envelope, instance))
            return
        mailbox = instance.mailbox
        if mailbox.running >= mailbox.limit and mailbox.full:
            self._refuse(envelope, instance, Draining(to) if mailbox.limit < 0 else Overloaded(to))
            return
        key = request_key(envelope, to)
        if self._cancelled and self._cancelled.pop(key, None) is not None:
            return  # its cancel arrived first
        if key in self._running or key in self._done:
            self._environment.metrics.count("duplicate_requests_total", service=to)
            return
        self._running[key] = self._environment.clock.loop.create_task(self._handle_request(envelope, instance, endpoint, key))

    async def _handle_request(self, envelope: Envelope, instance: Instance, endpoint: RequestEndpoint, key: RequestKey) -> None:
        environment = self._environment
        budget = environment.settings.request_timeout if envelope.budget is None else envelope.budget
        ctx = Context(instance, None, envelope=envelope, fixed_deadline=environment.clock.loop.time() + budget)
        current.set(ctx)  # of this task
        codec = endpoint.codec
        try:
            if codec is not None and envelope.params is None:
                reply = await endpoint.enter(ctx, envelope.body, codec.decode, endpoint.reply_to_json)
            else:
                is_text = codec is not None or isinstance(envelope.body, bytes)  # JSON text is answered with JSON text
                encoder = endpoint.reply_to_json if is_text else None
                reply = await endpoint.enter(ctx, envelope, endpoint.message, encoder)
        except ServiceError as error:
            await self._reply_error(envelope, instance, error)
        except asyncio.CancelledError as error:
            stopping = self._stopping or instance.name in self._cut_off
            if stopping:
                await finish(self._reply_lost(envelope, instance))
            if stopping or key in self._cancelling:
                raise
            await self._reply_aborted(envelope, instance, endpoint, ctx, error)
        except GeneratorExit as error:  # raised by the handler; or the loop has ended, and nothing can be awaited any more
            if not environment.clock.loop.is_running():
                raise
            environment.spawn(self._reply_aborted(envelope, instance, endpoint, ctx, error))
        else:
            await self._reply(envelope, instance, "reply", reply)
        finally:
            self._ended(key)

    async def _handle_transfer(self, envelope: Envelope, instance: Instance, key: RequestKey) -> None:
        """Handle a piece of a stream. It takes no slot in the mailbox: the handler that waits for it has one."""
        try:
            reply = await self._transfers.answer(envelope, instance.name)
        except ServiceError as error:
            await self._reply_error(envelope, instance, error)
        else:
            await self._reply(envelope, instance, "reply", reply)
        finally:
            self._ended(key)

    def _ended(self, key: RequestKey) -> None:
        """Forget a request once its handler and its compensations have ended. Calling it twice is harmless."""
        self._cancelling.discard(key)
        if self._transfers.intakes:
            self._transfers.ended(key)
        if self._running.pop(key, None) is not None and self._environment.transport.capabilities.duplicates:  # another copy
            self._remember(self._done, key)

    def _remember(self, tombstones: dict[RequestKey, float], key: RequestKey) -> None:
        """Keep the key of a request for a while: a cancel that overtakes it, or a copy of it, arrives moments later."""
        now = self._environment.clock.monotonic()
        while tombstones and tombstones[oldest := next(iter(tombstones))] <= now:
            del tombstones[oldest]
        if len(tombstones) < 65536:
            tombstones[key] = now + self._environment.settings.request_timeout

    def _cancel(self, envelope: Envelope, to: str) -> None:
        key = request_key(envelope, to)
        task = self._running.get(key)
        if task is None:
            self._remember(self._cancelled, key)
            return
        self._cancelling.add(key)
        task.cancel()
        task.add_done_callback(lambda _: self._ended(key))  # a task that has not taken its first step will not do that itself

    # Replies

    async def _reply_no_instance(self, request: Envelope, service: str) -> None:
        if request.reply_to is None:
            return
        data = NoInstance(service).data()
        reply = Envelope("error", request.id, request.subject, data if self._environment.transport.zero_copy else to_json(data))
        try:
            await self._environment.transport.unicast(request.reply_to, reply, service)
        except TransportError as error:
            self._environment.log.debug("no reply was sent that %s is not on this node: %s", service, error)

    async def _reply_unknown(self, request: Envelope, instance: Instance) -> None:
        """Answer a request that this instance does not have. The network may have chosen it, although one of a newer version has it."""
        with suppress(TransportError):
            await self._environment.watch(instance.name)
        elsewhere = self._environment.registry.has(instance.name, request.subject)
        await self._reply_error(request, instance, NoInstance(instance.name) if elsewhere else UnknownRequest(request.subject))

    async def _reply_aborted(
        self, request: Envelope, instance: Instance, endpoint: RequestEndpoint, ctx: Context, error: BaseException
    ) -> None:
        """Answer a request whose handler has ended its own task."""
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)  # a cancellation that has not arrived yet ends here
        aborted = HandlerAborted(f"{endpoint.title} ended with {error!r}, although nothing cancelled it")
        aborted.__cause__ = error
        outcome = await instance.failures.to_caller_error(aborted, ctx, endpoint.title)
        if isinstance(outcome, ServiceError):
            await self._reply_error(request, instance, outcome)

    async def _reply_lost(self, request: Envelope, instance: Instance) -> None:
        try:
            async with asyncio.timeout(_FINAL_REPLY_TIMEOUT):  # the link may be down
                await self._reply_error(request, instance, InstanceLost(instance.name))
        except TimeoutError:
            return

    async def _reply_error(self, request: Envelope, instance: Instance, error: ServiceError) -> None:
        data = error.data()
        await self._reply(request, instance, "error", data if self._environment.transport.zero_copy else to_json(data))

    async def _reply(self, request: Envelope, instance: Instance, kind: EnvelopeKind, body: Any) -> None:
        to = request.reply_to
        if to is None:
            return  # no reply is wanted
        transport = self._environment.transport
        reply = Envelope(kind, request.id, request.subject, body, load=instance.mailbox.load)
        try:
            if not transport.unicast_now(to, reply, instance.name):
                await transport.unicast(to, reply, instance.name)
        except TransportError as error:
            self._environment.metrics.count("replies_dropped_total", service=instance.name)
            if isinstance(error, Unsendable):
                key = ("answer", request.subject)
                incident = self._environment.incident(key, "the answer to %s: %s", request.subject, error, log=instance.log)
                await self._reply_error(request, instance, InternalError(incident))

    def _refuse(self, envelope: Envelope, instance: Instance, error: ServiceError) -> None:
        self._environment.metrics.count("requests_refused_total", service=instance.name, code=error.code)
        self._environment.spawn(self._reply_error(envelope, instance, error))

    async def cut_off(self, service: str, timeout: float) -> None:
        """Cancel everything that runs for a service, send errors to its callers, and wait for so many seconds until it has ended."""
        tasks = [task for (_, _, to, _), task in self._running.items() if to == service]
        self._cut_off.add(service)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        self._cut_off.discard(service)

    async def cancel_all(self) -> None:
        """Cancel everything that runs, send errors to waiting callers, and wait until all of it has ended."""
        self._stopping = True
        tasks = [*self._running.values(), *self._signals]
        for task in tasks:
            task.cancel()
        if tasks:
            settings = self._environment.settings
            _, rest = await asyncio.wait(tasks, timeout=max(settings.drain_timeout, settings.undo_timeout))
            for task in rest:
                self._environment.log.error("%s does not end although it was cancelled", of_task(task))
