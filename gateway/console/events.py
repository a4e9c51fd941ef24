"""`/console/events`: what the console shows, as server-sent events, once a second.

A client that reads too slowly gets the newest picture, and loses traces and log records: a bounded number waits for it.
"""

from collections import deque
from typing import Any

from gateway.asgi import Receive, Scope, Send
from gateway.console.access import Access
from gateway.console.watcher import Watcher
from gateway.sse import EventStream
from gateway.subscribers import Subscriber, Subscribers
from runtime.node.proxy import Proxy

_WAITING = 100
_LATEST = ("snapshot", "streams")
"""Events that take the place of an older one."""


class ConsoleEvents:
    """The ASGI application of `/console/events`."""

    def __init__(self, proxy: Proxy, subscribers: Subscribers, access: Access, watcher: Watcher) -> None:
        self._proxy = proxy
        self._subscribers = subscribers
        self._access = access
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream what the console shows to an operator (ASGI)."""
        identity, token = await self._access.require(scope)
        subscriber = _Viewer(self._proxy, identity.subject, token)
        async with self._watcher.looking(subscriber.look):
            await self._subscribers.serve(subscriber, receive, send)


class _Viewer(Subscriber):
    """One client of `/console/events`."""

    def __init__(self, proxy: Proxy, user: str, token: str) -> None:
        super().__init__(proxy, user, token)
        self._latest: dict[str, Any] = {}
        self._queued: deque[tuple[str, Any]] = deque(maxlen=_WAITING)

    def look(self, event: str, data: Any) -> None:
        """Take news."""
        if event in _LATEST:
            self._latest[event] = data
        else:
            self._queued.append((event, data))
        self.wake()

    async def poll(self, stream: EventStream, *, every_service: bool) -> bool:
        latest, self._latest = self._latest, {}
        for event, data in latest.items():
            await stream.event(event, data)
        while self._queued:
            event, data = self._queued.popleft()
            await stream.event(event, data)
        return True
