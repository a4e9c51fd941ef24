"""Followers: clients that stay, and are told at once what is new, until they go, their token no longer holds, or the gateway stops."""

import asyncio
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack

import msgspec

from gateway.client import Gone, Receive, Send, until_gone
from gateway.events import EventStream, SlowReader
from gateway.problems import Problem
from gateway.settings import GatewaySettings
from runtime import Clock, ServiceError, Unauthenticated
from runtime.envelope import Envelope, Topic
from runtime.proxy import Proxy

_AGAIN = 1.0
"""Seconds after which a service that could not be asked is asked again."""


class Follower(ABC):
    """One client that follows something.

    Args:
        user: whose token it came with.
    """

    def __init__(self, proxy: Proxy, user: str, token: str) -> None:
        self.user = user
        self.token = token
        self.ending = False
        self.proxy = proxy
        self._woken = asyncio.Event()
        self._heard: set[Topic] = set()
        self._topics = AsyncExitStack()

    @abstractmethod
    async def look(self, stream: EventStream) -> bool:
        """Sends what is new. Says whether everybody concerned could be asked; else it is called again soon.

        Raises:
            SlowReader: the client takes nothing.
        """

    def wake(self) -> None:
        """Something may be new."""
        self._woken.set()

    async def hear(self, topic: Topic) -> None:
        """Listens to a topic from now on. Raises `TransportError`."""
        if topic not in self._heard:
            await self._topics.enter_async_context(self.proxy.listening(topic, self.heard))
            self._heard.add(topic)

    def heard(self, envelope: Envelope) -> None:
        """Something was said on a topic."""
        self.wake()

    async def follow(self, stream: EventStream, clock: Clock, heartbeat: float) -> None:
        """Sends what is new until there is a reason to end.

        Raises:
            SlowReader: the client takes nothing.
        """
        beat_at = clock.monotonic() + heartbeat
        async with self._topics:
            while (reason := await self._over()) is None:
                self._woken.clear()
                complete = await self.look(stream)
                await stream.begin()  # not before it is known where "from now on" begins
                now = clock.monotonic()
                if now >= beat_at:
                    await stream.beat()
                    beat_at = now + heartbeat
                await self._wait(beat_at - now if complete else min(beat_at - now, _AGAIN))
        await stream.event("end", msgspec.json.encode({"reason": reason}).decode())
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
        self._ending = False
        proxy.registry.watch(self._wake_all)
        proxy.metrics.gauge("followers", lambda: self.count)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(len(followers) for followers in self._by_user.values())

    async def serve(self, follower: Follower, receive: Receive, send: Send) -> None:
        """Answers a client's request with what it follows, to the end.

        Raises:
            Problem: there are too many already, of this user (429) or of all (503).
        """
        stream = EventStream(send, self._settings.stream_patience)
        followers = self._admit(follower)
        try:
            await until_gone(follower.follow(stream, self._clock, self._settings.stream_heartbeat), receive)
        except Gone:
            pass
        except SlowReader:
            self._proxy.metrics.count("slow_readers_total")
        finally:
            followers.discard(follower)
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
