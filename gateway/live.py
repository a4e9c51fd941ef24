"""`/live`: what a user should see at once, as server-sent events.

A service marks a signal `live`, and names the request that lists what came after a number. The signal only says that
there is something new; what it is, and in which order, the request says. So nothing is missed and nothing comes twice,
however many signals are lost, and a client that comes back goes on where it was.
"""

import re
from typing import Annotated

import msgspec

from gateway.client import Receive, Scope, Send, bearer
from gateway.events import EventStream
from gateway.following import Follower, Followers
from gateway.problems import Problem
from runtime import ServiceError, Unauthenticated
from runtime.envelope import Topic
from runtime.manifest import LiveInfo
from runtime.proxy import Proxy
from runtime.transport import TransportError

_POSITION = re.compile(r"(?P<service>[a-z][a-z0-9_-]*)=(?P<number>[0-9]{1,18})", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_SECONDS = 10.0
"""How long a service may take to say what is new."""


class _Item(msgspec.Struct):
    number: int
    kind: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+\Z")]


class _Page(msgspec.Struct):
    items: tuple[msgspec.Raw, ...]
    last: int


class Live:
    """Serves `/live`."""

    def __init__(self, proxy: Proxy, followers: Followers) -> None:
        self._proxy = proxy
        self._followers = followers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends what concerns the user whose token came (ASGI)."""
        headers = dict(scope["headers"])
        token = bearer(headers)
        if token is None:
            raise Unauthenticated("an access token is needed, as `Authorization: Bearer …`")
        user = (await self._proxy.identify(token)).subject
        reader = _Reader(self._proxy, user, token, headers.get(b"last-event-id", b"").decode("latin-1"))
        await self._followers.serve(reader, receive, send)


class _Reader(Follower):
    """One client that follows what concerns its user.

    Args:
        last_event_id: where it was; a plain number stands for that number in everything there is, nothing for now.

    Raises:
        Problem: that is no position.
    """

    def __init__(self, proxy: Proxy, user: str, token: str, last_event_id: str) -> None:
        super().__init__(proxy, user, token)
        self._positions: dict[str, int] = {}
        self._first: int | None = None
        if _NUMBER.fullmatch(last_event_id):
            self._first = int(last_event_id)
        elif last_event_id:
            found = [_POSITION.fullmatch(part) for part in last_event_id.split(",", 100)]
            if not all(found):
                raise Problem(400, "bad-last-event-id", "Expected a Last-Event-ID as an event's id said, e.g. notices=12.")
            self._positions = {match["service"]: int(match["number"]) for match in found if match}

    async def look(self, stream: EventStream) -> bool:
        complete = True
        for service, feed in self._feeds().items():
            try:
                await self.hear(Topic("signal", service, feed.signal, self.user))
                await self._tell(stream, service, feed)
            except (ServiceError, TransportError):
                complete = False
        return complete

    def _feeds(self) -> dict[str, LiveInfo]:
        """What is marked `live`, by service; of several such signals of one service the first counts."""
        manifests = (member.manifest for member in self.proxy.registry)
        return {manifest.service: manifest.live[0] for manifest in manifests if manifest.live}

    async def _tell(self, stream: EventStream, service: str, feed: LiveInfo) -> None:
        """Sends what a service has to tell after the position."""
        while True:
            position = self._positions.get(service, self._first)
            page = await self._page(service, feed, position)
            if position is None or position > page.last or not page.items:
                self._positions[service] = page.last
                return
            for item in page.items:
                said = msgspec.json.decode(item, type=_Item)
                self._positions[service] = said.number
                where = ",".join(f"{name}={number}" for name, number in self._positions.items())
                await stream.event(said.kind, bytes(item).decode(), position=where)
            if self._positions[service] >= page.last:
                return

    async def _page(self, service: str, feed: LiveInfo, after: int | None) -> _Page:
        ctx = self.proxy.context(self.proxy.new_id(), self.token, None, _SECONDS)
        answer = await self.proxy.ask(ctx, service, feed.request, msgspec.json.encode({"after": after}))
        return msgspec.json.decode(answer, type=_Page)
