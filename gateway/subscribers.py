"""Clients that keep an event stream open.

A client receives new items until it disconnects, its access token expires or is revoked, or the gateway stops.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

from gateway.asgi import Receive, Send
from gateway.client import ClientDisconnected, cancel_on_disconnect
from gateway.problems import Problem
from gateway.settings import GatewaySettings
from gateway.sse import EventStream, SlowReader
from runtime import Clock, ServiceError, Unauthenticated
from runtime.network import Envelope, Topic
from runtime.node.proxy import Proxy
from runtime.tasks import wait_for_event

_RETRY_INTERVAL = 1.0
"""Seconds before the services are polled again if one did not answer or if there are no signals."""

_START_TIMEOUT = 2.0
"""Seconds for which the head of a new stream waits for services that do not answer."""

_RETRY_WHEN_REPLACED = 60
"""Seconds after which a client reconnects whose stream has ended for a newer one of its user. Meanwhile, the newer ones stay."""


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
        ending: why the stream has to end, or empty if it continues.
        is_replaced: whether it ends because its user has opened newer ones.
    """

    def __init__(self, proxy: Proxy, user: str, token: str) -> None:
        self.user = user
        self.token = token
        self.ending = ""
        self.is_replaced = False
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

        The head of the response follows once every service has answered, so that its client misses nothing from then
        on. But it never fails to come: a browser whose stream is refused, while it reconnects, does not try again (WHATWG HTML,
        section 9.2.3). So the stream stays open while a service is away, and the position follows when it is known.

        Args:
            stream: the stream of the client.
            clock: the clock of the node.
            heartbeat: the interval between heartbeats, in seconds.

        Raises:
            SlowReader: if the client reads too slowly.
        """
        started_at = clock.monotonic()
        heartbeat_at = started_at + heartbeat
        async with self._topics:
            complete = await self.poll(stream, every_service=True)
            while not complete and not self.ending and clock.monotonic() - started_at < _START_TIMEOUT:
                await clock.sleep(_RETRY_INTERVAL)
                complete = await self.poll(stream, every_service=True)
            await stream.begin()
            is_positioned = False
            while (reason := await self._end_reason()) is None:
                if complete and not is_positioned:
                    is_positioned = True
                    await stream.position(self.position)
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
        end = {"reason": reason, "replaced": self.is_replaced}
        await stream.event("end", end, retry=_RETRY_WHEN_REPLACED if self.is_replaced else None)
        await stream.end()

    async def _end_reason(self) -> str | None:
        """Return why the stream has to end, or None if it continues."""
        if self.ending:
            return self.ending
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
        self._by_user: dict[str, dict[Subscriber, None]] = {}
        self._count = 0
        self._ending = ""
        proxy.registry.watch(self._wake_all)
        proxy.metrics.gauge("followers", lambda: self.count)

    @property
    def count(self) -> int:
        """The number of open streams."""
        return self._count

    async def serve(self, subscriber: Subscriber, receive: Receive, send: Send) -> None:
        """Send a client its stream until the stream ends.

        If its user has as many streams open as one user may, the oldest of them ends. It may be one whose client has vanished
        without a word, and a client that is refused would have to wait until that is noticed.

        Raises:
            Problem: if the gateway has too many streams open (503), or too many of the user's are still ending (429).
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
            del of_user[subscriber]
            self._count -= 1
            if not of_user:
                self._by_user.pop(subscriber.user, None)

    def _admit(self, subscriber: Subscriber) -> dict[Subscriber, None]:
        of_user = self._by_user.get(subscriber.user, {})
        limit = self._settings.streams_per_user
        if len(of_user) >= 2 * limit:
            raise Problem(
                429, "too-many-streams", f"More than {limit} of your streams are ending: wait.", [(b"retry-after", b"1")]
            )
        if self.count >= self._settings.max_streams:
            raise Problem(503, "overloaded", "This gateway cannot open more streams: try again.", [(b"retry-after", b"1")])
        staying = [one for one in of_user if not one.ending]
        if len(staying) >= limit:
            self._end(staying[0], f"you have opened {limit} newer streams")
            staying[0].is_replaced = True
        self._by_user[subscriber.user] = of_user
        of_user[subscriber] = None
        self._count += 1
        subscriber.ending = self._ending
        return of_user

    def check_tokens(self) -> None:
        """Wake the subscribers whose token may have become invalid, so that they check it. Call this about once a second."""
        for subscriber in self._all():
            if self._proxy.known_identity(subscriber.token) is None:
                subscriber.wake()

    def end(self) -> None:
        """End all streams, and new ones at once: their clients reconnect, to another gateway."""
        self._ending = "the gateway is stopping"
        for subscriber in self._all():
            self._end(subscriber, self._ending)

    def _end(self, subscriber: Subscriber, reason: str) -> None:
        subscriber.ending = reason
        subscriber.wake()

    def _wake_all(self) -> None:
        for subscriber in self._all():
            subscriber.wake()

    def _all(self) -> list[Subscriber]:
        return [subscriber for of_user in self._by_user.values() for subscriber in of_user]
