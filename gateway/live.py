"""`/live`: what a user should see at once, as server-sent events.

A service marks a signal `live`, and names the request that lists what came after a number. The signal only says that
there is something new; what it is, and in which order, the request says. So nothing is missed and nothing comes twice,
however many signals are lost, and a client that comes back goes on where it was.
"""

import asyncio
import re
from typing import Annotated, Any

import msgspec

from gateway.client import Receive, Scope, Send, bearer
from gateway.problems import Problem
from gateway.sse import EventStream
from gateway.subscribers import Follower, Followers, together
from runtime import ServiceError, Unauthenticated
from runtime.network import LiveInfo, Topic, TransportError
from runtime.node.proxy import Proxy

_POSITION = re.compile(r"(?:(?P<service>[a-z][a-z0-9_-]*)=)?(?P<number>[0-9]{1,18})", re.ASCII)
_SECONDS = 2.0
"""How long a service may take to say what is new; the others of the stream wait no longer for it."""


class _Item(msgspec.Struct):
    number: int
    kind: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+\Z")]


class _Page(msgspec.Struct):
    items: tuple[dict[str, Any], ...]
    last: int


class Live:
    """Serves `/live`."""

    def __init__(self, proxy: Proxy, followers: Followers) -> None:
        self._proxy = proxy
        self._followers = followers
        self._feeds: dict[str, LiveInfo] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends what concerns the user whose token came (ASGI)."""
        headers = dict(scope["headers"])
        token = bearer(headers)
        if token is None:
            raise Unauthenticated("an access token is needed, as `Authorization: Bearer …`")
        user = (await self._proxy.identify(token)).subject
        reader = _Reader(self._proxy, self._feeds, user, token, headers.get(b"last-event-id", b"").decode("latin-1"))
        await self._followers.serve(reader, receive, send)


class _Reader(Follower):
    """One client that follows what concerns its user.

    Args:
        feeds: what is marked `live`, by service, also of services that have been there and are gone at the moment.
        last_event_id: where it was, as `service=number` by commas; a plain number counts for services that are not
            named, and without one they are followed from now on.

    Raises:
        Problem: that is no position.
    """

    def __init__(self, proxy: Proxy, feeds: dict[str, LiveInfo], user: str, token: str, last_event_id: str) -> None:
        super().__init__(proxy, user, token)
        self._feeds = feeds
        self._positions: dict[str, int] = {}
        self._first: int | None = None
        for part in last_event_id.split(",", 100) if last_event_id else ():
            match = _POSITION.fullmatch(part)
            if match is None:
                raise Problem(400, "bad-last-event-id", "Expected a Last-Event-ID as an event's id said, e.g. notices=12.")
            if match["service"] is None:
                self._first = int(match["number"])
            else:
                self._positions[match["service"]] = int(match["number"])

    @property
    def position(self) -> str:
        first = [] if self._first is None else [str(self._first)]
        return ",".join(first + [f"{service}={number}" for service, number in self._positions.items()])

    async def look(self, stream: EventStream, *, everywhere: bool) -> bool:
        for member in self.proxy.registry:
            if member.manifest.live is not None:
                self._feeds[member.manifest.service] = member.manifest.live
        return await together([self._follow(stream, service, feed) for service, feed in self._feeds.items()])

    async def _follow(self, stream: EventStream, service: str, feed: LiveInfo) -> bool:
        """Sends what one service has to tell. Says whether it could be asked, and will be heard when there is more."""
        heard = True
        try:
            if self.proxy.has_signals:
                async with asyncio.timeout(_SECONDS):
                    await self.hear(Topic("signal", service, feed.signal, self.user))
        except (TransportError, TimeoutError):  # none at the moment: then it is asked again and again
            heard = False
        try:
            async with asyncio.timeout(_SECONDS):
                page = await self._page(service, feed)
        except TimeoutError:
            return False
        except ServiceError as error:
            return not error.retryable
        except msgspec.MsgspecError as error:
            self.proxy.log.warning("what %s answers to %s cannot be shown: %s", service, feed.request, error)
            return heard
        await self._tell(stream, service, page)
        return heard

    async def _tell(self, stream: EventStream, service: str, page: _Page) -> None:
        position = self._positions.get(service, self._first)
        if position is None or position > page.last or not page.items:
            self._positions[service] = page.last
            return
        for item in page.items:
            said = msgspec.convert(item, _Item)
            self._positions[service] = said.number
            await stream.event(said.kind, item, position=self.position)
        if self._positions[service] < page.last:
            self.wake()  # there is more; in between others have their turn

    async def _page(self, service: str, feed: LiveInfo) -> _Page:
        after = self._positions.get(service, self._first)
        ctx = self.proxy.context(self.proxy.new_id(), self.token, None, _SECONDS)
        answer = await self.proxy.ask(ctx, service, feed.request, msgspec.json.encode({"after": after}))
        return msgspec.json.decode(answer, type=_Page)
