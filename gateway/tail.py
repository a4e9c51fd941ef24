"""`/console/tail`: a live view of events and signals for operators, as server-sent events.

Events are read from their publishers' streams, in order and without gaps, starting when the client connects, or at the first
event since a time that the client names. Those of the past are merged by their times, as far as their publishers answer. Signals are not retained: they are shown as they arrive and dropped if the client is
too slow. No publisher waits for a client or retains events for it.
"""

import asyncio
import heapq
from collections import deque
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec

from gateway.asgi import Receive, Scope, Send
from gateway.console.access import Access
from gateway.problems import Problem
from gateway.routing import query_params
from gateway.sse import EventStream
from gateway.subscribers import Subscriber, Subscribers, run_all
from runtime import ServiceError
from runtime.clock import rfc3339
from runtime.durable.stream import MOST_ROWS, Batch, Diverged, Position, PositionPruned, Pull, StreamEvent, StreamHead
from runtime.network import Envelope, Manifest, Topic, TransportError
from runtime.node.proxy import Proxy
from runtime.trace import from_stored

_MAX_QUEUED_SIGNALS = 1000
"""Signals that may wait for one client. Further ones are dropped."""

_TIMEOUT = 2.0
"""Seconds that a publisher may take to answer, so that the others need not wait longer."""


class Tail:
    """The ASGI application of `/console/tail?match=rides.*&kind=event&since=2026-11-30T08:00:00Z`.

    All parameters are optional. `match` and `kind` are repeatable.
    """

    def __init__(self, proxy: Proxy, subscribers: Subscribers, access: Access) -> None:
        self._access = access
        self._proxy = proxy
        self._subscribers = subscribers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the events and signals that the query selects (ASGI)."""
        identity, token = await self._access.require_operator(scope)
        subscriber = _TailSubscriber(self._proxy, identity.subject, token, *_parse_query(scope["query_string"]))
        await self._subscribers.serve(subscriber, receive, send)


def _parse_query(query: bytes) -> tuple[list[str], set[str], str]:
    """Return the name patterns and the kinds that a query selects, and the time since which, as streams store it.

    Without patterns or kinds, everything is selected. Without a time, the text is empty.

    Raises:
        Malformed: if the percent-decoded query is not UTF-8.
        Problem: if the query has another parameter, an unknown kind, or no RFC 3339 time (422).
    """
    patterns: list[str] = []
    kinds: set[str] = set()
    since = ""
    for name, value in query_params(query):
        if name == "match":
            patterns.append(value)
        elif name == "ticket":
            continue  # the access has read it
        elif name == "kind" and value in ("event", "signal"):
            kinds.add(value)
        elif name == "since" and (moment := _moment(value)):
            since = moment
        else:
            raise Problem(
                422,
                "invalid",
                f"{name}={value}"[:80] + ": expected match=PATTERN, kind=event, kind=signal, or since= and an RFC 3339 time.",
            )
    return patterns or ["*"], kinds or {"event", "signal"}, since


def _moment(text: str) -> str:
    """Return an RFC 3339 time as streams store it, so that their texts compare like times. Empty if it is not one."""
    try:
        return rfc3339(msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)]))
    except (msgspec.ValidationError, OverflowError):
        return ""


class _TailSubscriber(Subscriber):
    """One client of `/console/tail`.

    Args:
        proxy: access to the node, for streams and topics.
        user: the id of the user to whom the access token belongs.
        token: the access token of the client.
        patterns: the patterns that names of events and signals have to match, as in `fnmatch`.
        kinds: the kinds to show, out of `event` and `signal`.
        since: the time of the first events to show, as streams store it. If empty, only later ones are shown.
    """

    def __init__(self, proxy: Proxy, user: str, token: str, patterns: list[str], kinds: set[str], since: str) -> None:
        super().__init__(proxy, user, token)
        self._patterns = patterns
        self._kinds = kinds
        self._since = since
        self._begun: set[str] = set()
        self._positions: dict[str, Position] = {}
        self._past: set[str] = set()
        """The publishers whose past is being read. As long as there are some, the others wait."""
        self._pulled: list[tuple[str, Batch]] = []
        self._due: set[str] = set()
        self._signals: deque[Envelope] = deque()
        self._dropped = 0

    def on_envelope(self, envelope: Envelope) -> None:
        if envelope.kind == "head":
            self._due.add(envelope.caller)
        elif len(self._signals) < _MAX_QUEUED_SIGNALS:
            self._signals.append(envelope)
        else:
            self._dropped += 1
        self.wake()

    async def poll(self, stream: EventStream, *, every_service: bool) -> bool:
        manifests = {member.manifest.service: member.manifest for member in self.proxy.registry}
        due, self._due = manifests.keys() if every_service else self._due, set()
        self._past &= manifests.keys()
        complete = await run_all([self._poll_service(stream, one, one.service in due) for one in manifests.values()])
        await self._send_past(stream)
        await self._send_signals(stream)
        return complete

    async def _poll_service(self, stream: EventStream, manifest: Manifest, due: bool) -> bool:
        """Subscribe to the topics of a service and send a batch of its events.

        Args:
            stream: the stream of the client.
            manifest: the manifest of the service.
            due: whether the service may have new events.

        Returns:
            False if the service has to be polled again soon.
        """
        try:
            async with asyncio.timeout(_TIMEOUT):
                for name in self._select("signal", manifest.signals):
                    await self.subscribe(Topic("signal", manifest.service, name.partition(".")[2]))
                events = self._select("event", manifest.events)
                if not events:
                    self._past.discard(manifest.service)  # another version of it has come
                    return True
                if not (due or manifest.service not in self._positions):
                    return True
                if self._past and manifest.service in self._positions and manifest.service not in self._past:
                    self._due.add(manifest.service)  # once the past of the others has been read
                    return True
                await self.subscribe(Topic("stream", manifest.service))
                batch = await self._pull(manifest, events)
        except (Diverged, PositionPruned) as error:  # the stream cannot be resumed from this position
            del self._positions[manifest.service]
            self._past.discard(manifest.service)
            await stream.event("gap", {"from": manifest.service, "why": error.title()})
            return False
        except (ServiceError, TransportError, TimeoutError) as error:
            self._past.discard(manifest.service)  # nobody waits for it
            return isinstance(error, ServiceError) and not error.retryable
        if manifest.service in self._past:
            self._pulled.append((manifest.service, batch))
            return True
        for event in batch.events:
            await stream.event("event", _event(manifest.service, event))
        if batch.scanned.seq < batch.head:
            self._due.add(manifest.service)
            self.wake()  # there are more events, but the other services get their turn first
        return True

    async def _send_past(self, stream: EventStream) -> None:
        """Send the past events that were pulled, by their times, up to those that a publisher may have others before.

        The rest is pulled again, with what follows.
        """
        pulled, self._pulled = self._pulled, []
        ahead = [batch.events for _, batch in pulled if batch.scanned.seq < batch.head]
        known = min((max((event.at for event in events), default="") for events in ahead), default=None)
        named = [[(event, publisher) for event in batch.events] for publisher, batch in pulled]
        for event, publisher in heapq.merge(*named, key=lambda one: one[0].at):
            if known is not None and event.at > known:
                break
            await stream.event("event", _event(publisher, event))
            self._positions[publisher] = Position("", event.seq)
        for publisher, batch in pulled:
            if not batch.events or self._positions[publisher].seq == batch.events[-1].seq:
                self._positions[publisher] = Position("", batch.scanned.seq)
                if batch.scanned.seq >= batch.head:
                    self._positions[publisher] = batch.scanned
                    self._past.discard(publisher)
        self._due |= self._past
        if self._due:
            self.wake()

    async def _pull(self, manifest: Manifest, types: tuple[str, ...]) -> Batch:
        """Return the next batch of a publisher's stream. The first call starts at the end of the stream, or at a time."""
        publisher = manifest.service
        position = self._positions.get(publisher)
        if position is None:
            position = await self.proxy.ask_service(publisher, StreamHead())
            if self._since and publisher not in self._begun:  # after a gap, it continues at the end
                self._past.add(publisher)
                position = await self._find(publisher, manifest.events, position.seq)
            self._begun.add(publisher)
            self._positions[publisher] = position
        batch = await self.proxy.ask_service(publisher, Pull(position, types, peek=True))
        if publisher not in self._past:
            self._positions[publisher] = batch.scanned
        return batch

    async def _find(self, publisher: str, types: tuple[str, ...], head: int) -> Position:
        """Return the position before the first retained event since the time, found by bisection."""
        low, high = 0, head
        while low < high:
            middle = (low + high) // 2 if low else 0  # first the oldest one that is retained
            found = await self._first(publisher, types, middle, high)
            if found is None or found.at >= self._since:
                high = middle
            else:
                low = found.seq
        return Position("", low)

    async def _first(self, publisher: str, types: tuple[str, ...], after: int, until: int) -> StreamEvent | None:
        """Return the first event of one of the types after a number, or None if there is none up to another one."""
        limit = 1
        while after < until:
            batch = await self.proxy.ask_service(publisher, Pull(Position("", after), types, limit, peek=True))
            if batch.events:
                return batch.events[0]
            if batch.scanned.seq <= after:
                break
            after, limit = batch.scanned.seq, MOST_ROWS  # the publisher does not declare the types of these any more
        return None

    def _select(self, kind: str, names: tuple[str, ...]) -> tuple[str, ...]:
        if kind not in self._kinds or (kind == "signal" and not self.proxy.has_signals):
            return ()
        return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in self._patterns))

    async def _send_signals(self, stream: EventStream) -> None:
        for _ in range(len(self._signals)):
            envelope = self._signals.popleft()
            try:
                await stream.event("signal", _signal(envelope))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._dropped += 1  # it is not valid JSON, so no subscriber accepts it either
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            await stream.event("dropped", {"signals": dropped})


def _event(publisher: str, event: StreamEvent) -> dict[str, Any]:
    return {
        "name": event.type, "from": publisher, "seq": event.seq, "id": event.id, "at": event.at, "trace": from_stored(event.trace)[0],
        "body": msgspec.json.decode(event.body),
    }  # fmt: skip


def _signal(envelope: Envelope) -> dict[str, Any]:
    body = msgspec.json.decode(envelope.body) if isinstance(envelope.body, bytes) else envelope.body
    return {"name": envelope.subject, "from": envelope.caller, "id": envelope.id, "trace": envelope.trace, "body": body}
