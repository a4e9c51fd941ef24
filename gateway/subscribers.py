"""Clients that keep an event stream open.

A client receives new items until it disconnects, its access token expires or is revoked, or the gateway stops.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

from gateway.client import ClientDisconnected, Receive, Send, cancel_on_disconnect
from gateway.problems import Problem
from gateway.settings import GatewaySettings
from gateway.sse import EventStream, SlowReader
from runtime import Clock, ServiceError, Unauthenticated
from runtime.network import Envelope, Topic
from runtime.node.proxy import Proxy
from runtime.tasks import wait_for_event

_RETRY_INTERVAL = 1.0
"""Seconds before the services are polled again if one did not answer or if there are no signals."""

_START_TIMEOUT = 5.0
"""Seconds for which a new stream waits for services that do not answer."""


async def run_all(work: Sequence[Coroutine[Any, Any, bool]]) -> bool:
    """Run coroutines concurrently and return whether all of them returned True.

    Raises:
        Exception: the first error that one of the coroutines raised.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return all(task.result() for task in tasks)


class Subscriber(ABC):
    """One client with an open stream.

    Args:
        proxy: access to the node, for services and topics.
        user: the id of the user to whom the access token belongs.
        token: the access token of the client.

    Attributes:
        ending: whether the stream has to end because the gateway is stopping.
    """

    requires_all = True
    """Whether the stream can start only once every service has answered. Without all answers its start would be unknown."""

    def __init__(self, proxy: Proxy, user: str, token: str) -> None:
        self.user = user
        self.token = token
        self.ending = False
        self.proxy = proxy
        self._woken = asyncio.Event()
        self._subscribed: set[Topic] = set()
        self._topics = AsyncExitStack()

    @property
    def position(self) -> str:
        """The value that the client sends as `Last-Event-ID` to resume the stream. Empty if the stream cannot be resumed."""
        return ""

    @abstractmethod
    async def poll(self, stream: EventStream, *, every_service: bool) -> bool:
        """Send a limited number of new items. An implementation that has more to send calls `wake`.

        Args:
            stream: the stream of the client.
            every_service: whether to poll every service, not only those that announced something new. True at the
                start, at every heartbeat, and after a poll that was incomplete.

        Returns:
            Whether every service answered. If not, `poll` is called again soon.

        Raises:
            SlowReader: if the client reads too slowly.
        """

    def wake(self) -> None:
        """Poll soon, because there may be new items."""
        self._woken.set()

    async def subscribe(self, topic: Topic) -> None:
        """Receive the envelopes of a topic until the stream ends.

        Raises:
            TransportError: if the transport has no signals or no connection.
        """
        if topic not in self._subscribed:
            self._subscribed.add(topic)
            try:
                await self._topics.enter_async_context(self.proxy.listening(topic, self.on_envelope))
            except BaseException:
                self._subscribed.discard(topic)
                raise

    def on_envelope(self, envelope: Envelope) -> None:
        """Handle an envelope that arrived on a topic."""
        self.wake()

    async def run(self, stream: EventStream, clock: Clock, heartbeat: float) -> None:
        """Send new items until the stream has to end.

        Args:
            stream: the stream of the client.
            clock: the clock of the node.
            heartbeat: the interval between heartbeats, in seconds.

        Raises:
            Problem: if a service that the stream requires does not answer (503).
            SlowReader: if the client reads too slowly.
        """
        started_at = clock.monotonic()
        heartbeat_at = started_at + heartbeat
        async with self._topics:
            complete = await self.poll(stream, every_service=True)
            while not complete and not self.ending and clock.monotonic() - started_at < _START_TIMEOUT:
                await clock.sleep(_RETRY_INTERVAL)
                complete = await self.poll(stream, every_service=True)
            if not complete and self.requires_all and not self.ending:
                raise Problem(
                    503, "not-ready", "A service that this stream needs does not answer: try again.", [(b"retry-after", b"1")]
                )
            await stream.begin(self.position)  # not before the position is known from which the client resumes
            while (reason := await self._end_reason()) is None:
                now = clock.monotonic()
                wait = heartbeat_at - now
                if not (complete and self.proxy.has_signals):
                    wait = min(wait, _RETRY_INTERVAL)
                await wait_for_event(self._woken, wait)
                self._woken.clear()
                now = clock.monotonic()
                heartbeat_due = now >= heartbeat_at
                if heartbeat_due:
                    await stream.heartbeat()
                    heartbeat_at = now + heartbeat
                complete = await self.poll(stream, every_service=heartbeat_due or not complete)
        await stream.event("end", {"reason": reason})
        await stream.end()

    async def _end_reason(self) -> str | None:
        """Return why the stream has to end, or None if it continues."""
        if self.ending:
            return "the gateway is stopping"
        try:
            await self.proxy.identify(self.token)
        except Unauthenticated as error:
            return error.detail
        except ServiceError:  # the token cannot be verified now; the next check follows soon
            pass
        return None


class Subscribers:
    """The clients that have a stream open."""

    def __init__(self, settings: GatewaySettings, proxy: Proxy, clock: Clock) -> None:
        self._settings = settings
        self._proxy = proxy
        self._clock = clock
        self._by_user: dict[str, set[Subscriber]] = {}
        self._count = 0
        self._ending = False
        proxy.registry.watch(self._wake_all)
        proxy.metrics.gauge("followers", lambda: self.count)

    @property
    def count(self) -> int:
        """The number of open streams."""
        return self._count

    async def serve(self, subscriber: Subscriber, receive: Receive, send: Send) -> None:
        """Send a client its stream until the stream ends.

        Raises:
            Problem: if the user (429) or the gateway (503) has too many streams open, or a service that the stream
                requires does not answer (503).
        """
        stream = EventStream(send, self._settings.stream_patience)
        of_user = self._admit(subscriber)
        try:
            running = subscriber.run(stream, self._clock, self._settings.stream_heartbeat)
            await cancel_on_disconnect(running, receive, self._clock.loop)
        except ClientDisconnected:
            pass
        except SlowReader:
            self._proxy.metrics.count("slow_readers_total")
        finally:
            of_user.discard(subscriber)
            self._count -= 1
            if not of_user:
                self._by_user.pop(subscriber.user, None)

    def _admit(self, subscriber: Subscriber) -> set[Subscriber]:
        of_user = self._by_user.get(subscriber.user, set())
        if len(of_user) >= self._settings.streams_per_user:
            detail = f"You have {len(of_user)} streams open: close one first."
            raise Problem(429, "too-many-streams", detail, [(b"retry-after", b"1")])
        if self._ending or self.count >= self._settings.max_streams:
            raise Problem(503, "overloaded", "This gateway cannot open more streams: try again.", [(b"retry-after", b"1")])
        self._by_user[subscriber.user] = of_user
        of_user.add(subscriber)
        self._count += 1
        return of_user

    def check_tokens(self) -> None:
        """Wake the subscribers whose token may have become invalid, so that they check it. Call this about once a second."""
        for subscriber in self._all():
            if self._proxy.known_identity(subscriber.token) is None:
                subscriber.wake()

    def end(self) -> None:
        """End all streams and refuse new ones."""
        self._ending = True
        for subscriber in self._all():
            subscriber.ending = True
            subscriber.wake()

    def _wake_all(self) -> None:
        for subscriber in self._all():
            subscriber.wake()

    def _all(self) -> list[Subscriber]:
        return [subscriber for of_user in self._by_user.values() for subscriber in of_user]
