"""Followers: clients that stay, and are told at once what is new, until they go, their token no longer holds, or the gateway stops."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

from gateway.client import Gone, Receive, Send, until_gone
from gateway.problems import Problem
from gateway.settings import GatewaySettings
from gateway.sse import EventStream, SlowReader
from runtime import Clock, ServiceError, Unauthenticated
from runtime.network import Envelope, Topic
from runtime.node.proxy import Proxy

_AGAIN = 1.0
"""Seconds after which a service that could not be asked is asked again."""

_PATIENCE = 5.0
"""Seconds that a stream waits to begin for services that cannot be asked."""


async def together(work: Sequence[Coroutine[Any, Any, bool]]) -> bool:
    """Does several things at once, all of them to their end, and says whether all of them say so. Raises the first error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return all(task.result() for task in tasks)


class Follower(ABC):
    """One client that follows something.

    Args:
        user: whose token it came with.
    """

    waits_for_all = True
    """Whether it can only begin when everybody concerned could be asked: else it would not know where."""

    def __init__(self, proxy: Proxy, user: str, token: str) -> None:
        self.user = user
        self.token = token
        self.ending = False
        self.proxy = proxy
        self._woken = asyncio.Event()
        self._heard: set[Topic] = set()
        self._topics = AsyncExitStack()

    @property
    def position(self) -> str:
        """Where the client is: what it sends as `Last-Event-ID` when it comes back. Empty where it cannot come back."""
        return ""

    @abstractmethod
    async def look(self, stream: EventStream, *, everywhere: bool) -> bool:
        """Sends what is new, for a little while: whoever has more to send wakes itself.

        Args:
            everywhere: also where nothing was heard from: at first, and at every heartbeat.

        Returns:
            Whether everybody concerned could be asked; else it is called again soon.

        Raises:
            SlowReader: the client takes nothing.
        """

    def wake(self) -> None:
        """Something may be new."""
        self._woken.set()

    async def hear(self, topic: Topic) -> None:
        """Listens to a topic from now on. Raises `TransportError`."""
        if topic not in self._heard:
            self._heard.add(topic)
            try:
                await self._topics.enter_async_context(self.proxy.listening(topic, self.heard))
            except BaseException:
                self._heard.discard(topic)
                raise

    def heard(self, envelope: Envelope) -> None:
        """Something was said on a topic."""
        self.wake()

    async def follow(self, stream: EventStream, clock: Clock, heartbeat: float) -> None:
        """Sends what is new until there is a reason to end.

        Raises:
            SlowReader: the client takes nothing.
        """
        begun_at = clock.monotonic()
        beat_at = begun_at + heartbeat
        async with self._topics:
            complete = await self.look(stream, everywhere=True)
            while not complete and not self.ending and clock.monotonic() - begun_at < _PATIENCE:
                await clock.sleep(_AGAIN)
                complete = await self.look(stream, everywhere=True)
            if not complete and self.waits_for_all and not self.ending:
                raise Problem(
                    503, "not-ready", "A service that has to be followed cannot be asked: try again.", [(b"retry-after", b"1")]
                )
            await stream.begin(self.position)  # not before it is known where "from now on" begins
            while (reason := await self._over()) is None:
                now = clock.monotonic()
                told = complete and self.proxy.has_signals
                await self._wait(beat_at - now if told else min(beat_at - now, _AGAIN))
                self._woken.clear()
                now = clock.monotonic()
                beat = now >= beat_at
                if beat:
                    await stream.beat()
                    beat_at = now + heartbeat
                complete = await self.look(stream, everywhere=beat or not complete)
        await stream.event("end", {"reason": reason})
        await stream.end()

    async def _over(self) -> str | None:
        """Why the stream has to end, if it has to."""
        if self.ending:
            return "the gateway is stopping"
        try:
            await self.proxy.identify(self.token)
        except Unauthenticated as error:
            return error.detail
        except ServiceError:  # the token cannot be looked at now: the next time comes soon
            pass
        return None

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass


class Followers:
    """All who follow at the moment."""

    def __init__(self, settings: GatewaySettings, proxy: Proxy, clock: Clock) -> None:
        self._settings = settings
        self._proxy = proxy
        self._clock = clock
        self._by_user: dict[str, set[Follower]] = {}
        self._count = 0
        self._ending = False
        proxy.registry.watch(self._wake_all)
        proxy.metrics.gauge("followers", lambda: self.count)

    @property
    def count(self) -> int:
        """How many there are."""
        return self._count

    async def serve(self, follower: Follower, receive: Receive, send: Send) -> None:
        """Answers a client's request with what it follows, to the end.

        Raises:
            Problem: there are too many already, of this user (429) or of all (503).
        """
        stream = EventStream(send, self._settings.stream_patience)
        followers = self._admit(follower)
        try:
            await until_gone(follower.follow(stream, self._clock, self._settings.stream_heartbeat), receive, self._clock.loop)
        except Gone:
            pass
        except SlowReader:
            self._proxy.metrics.count("slow_readers_total")
        finally:
            followers.discard(follower)
            self._count -= 1
            if not followers:
                self._by_user.pop(follower.user, None)

    def _admit(self, follower: Follower) -> set[Follower]:
        followers = self._by_user.get(follower.user, set())
        if len(followers) >= self._settings.streams_per_user:
            detail = f"{len(followers)} streams of yours are open: close one first."
            raise Problem(429, "too-many-streams", detail, [(b"retry-after", b"1")])
        if self._ending or self.count >= self._settings.max_streams:
            raise Problem(503, "overloaded", "No more streams can be opened here: try again.", [(b"retry-after", b"1")])
        self._by_user[follower.user] = followers
        followers.add(follower)
        self._count += 1
        return followers

    def check_tokens(self) -> None:
        """Lets those look at their token that may have lost it; to be called every second or so."""
        for follower in self._all():
            if self._proxy.known_identity(follower.token) is None:
                follower.wake()

    def end(self) -> None:
        """Ends all streams, and lets no new one begin."""
        self._ending = True
        for follower in self._all():
            follower.ending = True
            follower.wake()

    def _wake_all(self) -> None:
        for follower in self._all():
            follower.wake()

    def _all(self) -> list[Follower]:
        return [follower for followers in self._by_user.values() for follower in followers]
