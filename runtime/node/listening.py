"""Listening for a while to topics that a service's class does not name, as a gateway does for its clients."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from runtime.execution.instance import Instance
from runtime.network.envelope import Envelope, Topic
from runtime.network.transport import TransportError
from runtime.tasks import finish

Listener = Callable[[Envelope], None]
"""Is called for each envelope, in the event loop. It returns at once, and never raises."""


_SECONDS = 2.0
"""How long leaving a topic may take; then it is left to itself."""


class Listening:
    """The topics that one instance listens to at the moment."""

    def __init__(self, instance: Instance) -> None:
        self._name = instance.name
        self._transport = instance.environment.transport
        self._log = instance.log
        self._listeners: dict[Topic, list[Listener]] = {}
        self._turns: dict[Topic, asyncio.Lock] = {}
        self._recent: deque[str] = deque(maxlen=64)
        instance.observer = self._take

    @asynccontextmanager
    async def to(self, topic: Topic, listener: Listener) -> AsyncGenerator[None, None]:
        """Hears what is multicast on a topic until the block ends. What is published meanwhile may still be lost on its way."""
        self._listeners.setdefault(topic, []).append(listener)
        try:
            async with self._turn(topic):
                await self._transport.subscribe(topic, self._name, broadcast=True)
            yield
        finally:
            await finish(self._leave(topic, listener))

    def _turn(self, topic: Topic) -> asyncio.Lock:
        """Who comes and who goes take turns: else the one's leaving could undo the other's coming."""
        return self._turns.setdefault(topic, asyncio.Lock())

    async def _leave(self, topic: Topic, listener: Listener) -> None:
        listeners = self._listeners[topic]
        listeners.remove(listener)
        async with self._turn(topic):
            if listeners or self._listeners.get(topic) is not listeners:
                return
            del self._listeners[topic]
            try:
                async with asyncio.timeout(_SECONDS):
                    await self._transport.unsubscribe(topic, self._name)
            except (TransportError, TimeoutError) as error:
                self._log.debug("%s: is still subscribed to: %s", topic, error)
            if topic not in self._listeners:
                self._turns.pop(topic, None)

    def _take(self, envelope: Envelope) -> None:
        if envelope.kind == "signal":
            if envelope.id in self._recent:
                return  # a broker sends a copy for each of two topics that both fit
            self._recent.append(envelope.id)
        service, _, name = envelope.subject.partition(".")
        topics = (
            [Topic("stream", envelope.caller)]
            if envelope.kind == "head"
            else [Topic("signal", service, name, key) for key in {"-", envelope.signal_key or "-"}]
        )
        for topic in topics:
            for listener in list(self._listeners.get(topic, ())):
                listener(envelope)
