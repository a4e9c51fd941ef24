"""`/live`: new items for a user, as server-sent events.

A service marks a signal as `live` and names the request that lists the items after a given number. The signal only
announces that there are new items. The request returns them, in order. So a client misses no item and receives none
twice, even if signals are lost, and a client that reconnects resumes where it left off.
"""

import asyncio
import logging
import re
from typing import Annotated, Any, NamedTuple

import msgspec

from gateway.asgi import Receive, Scope, Send
from gateway.client import bearer_token, require_token
from gateway.manifests import Manifests
from gateway.problems import Problem
from gateway.routing import query_params
from gateway.sse import EventStream
from gateway.subscribers import Subscriber, Subscribers, run_all
from gateway.tickets import Tickets
from runtime import ServiceError
from runtime.network import LiveInfo, Topic, TransportError
from runtime.node.proxy import Proxy

_POSITION = re.compile(r"(?:(?P<service>[a-z][a-z0-9_-]*)=)?(?P<number>[0-9]{1,18})(?:\.(?P<id>[A-Za-z0-9_-]{1,64}))?", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_TIMEOUT = 2.0
"""Seconds that a service may take to list its new items, so that the other services of the stream need not wait longer."""


class _Item(msgspec.Struct):
    number: int
    kind: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+\Z")]
    id: Any = None


class _Page(msgspec.Struct):
    items: tuple[dict[str, Any], ...]
    last: int
    last_id: str = ""
    forked_at: int | None = None


class _Seen(NamedTuple):
    """The last item of a service that a client has seen: its number, and its id if it has one.

    Two histories of a service that was restored from a backup number their items alike, but no two items have one id.
    """

    number: int
    id: str | None = None

    def __str__(self) -> str:
        return str(self.number) if self.id is None else f"{self.number}.{self.id}"


def _seen(number: int, id: object) -> _Seen:
    return _Seen(number, id if isinstance(id, str) and _ID.fullmatch(id) else None)


def _positions(last_event_id: str) -> dict[str | None, _Seen]:
    """Return the positions in a `Last-Event-ID`: comma-separated parts `service=number.id`; the service and the id may be missing.

    Raises:
        Problem: if it is malformed (400).
    """
    found: dict[str | None, _Seen] = {}
    for part in last_event_id.split(",", 100) if last_event_id else ():
        match = _POSITION.fullmatch(part)
        if match is None:
            raise Problem(400, "bad-last-event-id", "Expected a Last-Event-ID with the id of an event, e.g. notices=12.")
        found[match["service"]] = _Seen(int(match["number"]), match["id"])
    return found


class Live:
    """The ASGI application of `/live`."""

    def __init__(self, proxy: Proxy, subscribers: Subscribers, manifests: Manifests, tickets: Tickets) -> None:
        self._tickets = tickets
        self._proxy = proxy
        self._subscribers = subscribers
        self._manifests = manifests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the new items of the user to whom the access token or the ticket belongs (ASGI)."""
        headers = dict(scope["headers"])
        query = dict(query_params(scope["query_string"]))
        # a new EventSource cannot send the header
        positions = _positions(headers.get(b"last-event-id", b"").decode("latin-1") or query.get("last_event_id", ""))
        if "ticket" in query and b"authorization" not in headers:
            token = await self._tickets.redeem(query["ticket"])
        else:
            token = require_token(bearer_token(headers))
        user = (await self._proxy.identify(token)).subject
        subscriber = _LiveSubscriber(self._proxy, self._manifests, user, token, positions)
        await self._subscribers.serve(subscriber, receive, send)


class _LiveSubscriber(Subscriber):
    """One client of `/live`.

    Args:
        proxy: access to the node, for services and topics.
        manifests: what each service marks as `live`.
        user: the id of the user whose items the client receives.
        token: the access token of the client.
        positions: the last items that the client has seen, by service. That without a service applies to services that are not
            named. Without one, their items are sent from now on.
    """

    def __init__(self, proxy: Proxy, manifests: Manifests, user: str, token: str, positions: dict[str | None, _Seen]) -> None:
        super().__init__(proxy, user, token)
        self._manifests = manifests
        self._default_position: _Seen | None = positions.get(None)
        self._positions: dict[str, _Seen] = {name: seen for name, seen in positions.items() if name is not None}

    @property
    def position(self) -> str:
        default = [] if self._default_position is None else [str(self._default_position)]
        return ",".join(default + [f"{service}={seen}" for service, seen in self._positions.items()])

    async def poll(self, stream: EventStream, *, every_service: bool) -> bool:
        feeds = self._manifests.feeds()
        return await run_all([self._poll_service(stream, service, feed) for service, feed in feeds.items()])

    async def _poll_service(self, stream: EventStream, service: str, feed: LiveInfo) -> bool:
        """Send the new items of one service. Return whether it answered and its signals are subscribed to."""
        subscribed = True
        try:
            if self.proxy.has_signals:
                async with asyncio.timeout(_TIMEOUT):
                    await self.subscribe(Topic("signal", service, feed.signal, self.user))
        except (TransportError, TimeoutError):  # without signals the service is polled repeatedly
            subscribed = False
        try:
            async with asyncio.timeout(_TIMEOUT):
                page = await self._page(service, feed)
        except TimeoutError:
            return False
        except ServiceError as error:
            return not error.retryable
        except msgspec.MsgspecError as error:
            key, message = ("live", service), "the reply of %s to %s is not a page of live items: %s"
            self.proxy.repeats.log(self.proxy.log, logging.WARNING, key, message, service, feed.request, error)
            return subscribed
        await self._send_items(stream, service, page)
        return subscribed

    async def _send_items(self, stream: EventStream, service: str, page: _Page) -> None:
        seen = self._positions.get(service, self._default_position)
        if seen is not None and (page.forked_at is not None or seen.number > page.last):
            after = page.last if page.forked_at is None else page.forked_at
            self._positions[service] = _seen(after, page.last_id if after == page.last else None)
            why = "the service was restored from a backup: after this number, its items are not those that were sent before"
            await stream.event("gap", {"from": service, "after": after, "why": why}, position=self.position)
        elif seen is None or not page.items:
            self._positions[service] = _seen(page.last, page.last_id)
            return
        for item in page.items:
            header = msgspec.convert(item, _Item)
            self._positions[service] = _seen(header.number, header.id)
            await stream.event(header.kind, item, position=self.position)
        if self._positions[service].number < page.last:
            self.wake()  # there are more items, but the other services get their turn first

    async def _page(self, service: str, feed: LiveInfo) -> _Page:
        seen = self._positions.get(service, self._default_position)
        asked = {"after": None} if seen is None else {"after": seen.number, "after_id": seen.id}
        ctx = self.proxy.context(self.proxy.new_id(), self.token, None, _TIMEOUT)
        answer = await self.proxy.ask(ctx, service, feed.request, msgspec.json.encode(asked))
        return msgspec.json.decode(answer, type=_Page)
