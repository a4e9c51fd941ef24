"""The publishing side of an instance: its signals, and the events of its committed transactions."""

import logging
from collections.abc import Sequence
from typing import Any

from runtime.contract.codec import to_json, too_large
from runtime.contract.errors import Invalid, UsageError, Violation
from runtime.contract.messages import MessageSpec, Signal, spec_of
from runtime.durable.stream import Stream
from runtime.execution.environment import Environment
from runtime.network.envelope import Envelope, Head, Topic
from runtime.network.transport import TransportError, Unsendable
from runtime.service.context import Context
from runtime.service.host import Host
from runtime.storage.database import Transaction

MAX_KEY = 1024
"""The characters of a signal's key. It becomes part of a topic, whose length every transport bounds."""


class SignalPublisher:
    """Publishes signals, which may be lost.

    Args:
        known: the names of the contracts whose signals the instance may publish.
    """

    def __init__(self, host: Host, environment: Environment, known: frozenset[str]) -> None:
        self._host = host
        self._environment = environment
        self._known = known

    def encode(self, signal: Signal) -> tuple[MessageSpec, str | None, Any]:
        """Return what is known about a signal, its key, and its body.

        Raises:
            UsageError: if it belongs to a contract that the service does not know, does not fit its type, or if it or its key is
                too large.
        """
        spec = spec_of(type(signal))
        if spec.contract.name not in self._known:
            raise UsageError(
                f"{self._host.name} publishes {spec.full_name}, but {spec.contract.name} is neither its own contract nor in its calls: add it there"
            )
        key = None if spec.key is None else getattr(signal, spec.key)
        body = signal if self._environment.transport.zero_copy else spec.codec.encode_checked(signal)
        limit = self._environment.transport.capabilities.max_signal
        if isinstance(body, bytes) and len(body) > limit:
            raise UsageError(too_large(f"the signal {spec.full_name}", len(body), limit))
        if key is not None and len(key) > MAX_KEY:
            raise UsageError(f"{spec.full_name}: /{spec.key}: a key of {len(key):,} characters: expected at most {MAX_KEY:,}")
        return spec, key, body

    async def publish(self, ctx: Context, signal: Signal) -> None:
        """Publish a signal now.

        Raises:
            UsageError: as `encode`.
            Invalid: if the network cannot carry it.
        """
        host, environment = self._host, self._environment
        spec, key, body = self.encode(signal)
        envelope = Envelope(
            "signal", host.new_id(), spec.full_name, body, trace=ctx.trace, signal_key=key, trace_fields=ctx.passed_fields
        )
        topic = Topic("signal", spec.contract.name, spec.name, key)
        if environment.observer is not None:
            environment.observer(signal)
        try:
            await environment.transport.multicast(topic, envelope, host.name)
        except Unsendable as error:
            raise Invalid((Violation("", f"{spec.full_name} cannot be sent: {error}"),)) from None
        except TransportError as error:
            environment.metrics.count("signals_dropped_total", service=host.name)
            # There may be many: the transport logs once that it is down
            host.log.debug("%s was not sent: %s", spec.full_name, error)

    def publish_later(self, signals: Sequence[Signal], ctx: Context) -> None:
        """Publish signals in the background, in order."""
        self._environment.spawn(self._publish_all(signals, ctx))

    async def _publish_all(self, signals: Sequence[Signal], ctx: Context) -> None:
        for signal in signals:
            try:
                await self.publish(ctx, signal)
            except (Invalid, UsageError) as error:  # the handler has returned, so that only the log can report it
                self._environment.metrics.count("signals_dropped_total", service=self._host.name)
                key = ("signal", type(signal), type(error))
                self._environment.repeats.log(self._host.log, logging.ERROR, key, "%s", error)


class EventPublisher:
    """Appends the events of an instance's transactions to its stream, and broadcasts the head after each commit."""

    def __init__(self, host: Host, environment: Environment, stream: Stream) -> None:
        self._host = host
        self._environment = environment
        self._stream = stream
        self._latest: Head | None = None

    def append(self, tx: Transaction) -> None:
        """Add the statements that append a transaction's events. The database calls this before every commit.

        Raises:
            UsageError: if an event belongs to another service, does not fit its type, or is too large.
        """
        named: list[tuple[str, str]] = []
        for event in tx.events:
            spec = spec_of(type(event))
            if spec.contract.name != self._host.name:
                raise UsageError(f"{self._host.name} publishes {spec.full_name}, which belongs to {spec.contract.name}")
            named.append((spec.full_name, spec.codec.encode_checked(event).decode()))
        self._stream.append(tx, named, tx.trace or self._host.new_trace())

    def committed(self, tx: Transaction) -> None:
        """Hint that there are new events. The database calls this after every commit of a transaction with events."""
        self._environment.metrics.count("events_published_total", len(tx.events), service=self._host.name)
        if self._environment.observer is not None:
            for event in tx.events:
                self._environment.observer(event)
        if self._latest is None:  # else the broadcast that has not begun yet takes this head
            self._environment.spawn(self._broadcast_latest())
        self._latest = self._stream.appended(tx)

    async def _broadcast_latest(self) -> None:
        head, self._latest = self._latest, None
        assert head is not None
        await self.broadcast_head(head)

    async def broadcast_head(self, head: Head) -> None:
        """Broadcast the head of the stream as a hint. A lost hint costs nothing but time: heartbeats repeat it."""
        host, transport = self._host, self._environment.transport
        body = head if transport.zero_copy else to_json(head)
        try:
            await transport.multicast(
                Topic("stream", host.name), Envelope("head", host.new_id(), f"{host.name}.head", body), host.name
            )
        except TransportError:
            self._environment.metrics.count("hints_dropped_total", service=host.name)
