"""`/console/tail`: events and signals as they pass, for operators, as server-sent events.

Events are read from their publishers' streams, in order and without gaps, from the moment of asking on; signals are
shown as they come, and dropped when the client is slower than they are. Nothing waits for a client, and no event is
kept for one.
"""

from collections import deque
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from gateway.client import Receive, Scope, Send, bearer
from gateway.events import EventStream
from gateway.following import Follower, Followers
from gateway.problems import Problem
from gateway.routing import query_params
from runtime import Forbidden, ServiceError, Unauthenticated
from runtime.envelope import Envelope, Topic
from runtime.manifest import Manifest
from runtime.proxy import Proxy
from runtime.storage.stream import Batch, Position, Pull, StreamEvent, StreamHead
from runtime.transport import TransportError

_ROLES = ("operator", "admin")
_WAITING = 1000
"""Signals that may wait for a client."""


class Tail:
    """Serves `/console/tail?match=rides.*&kind=event`: both may be given several times, or not at all."""

    def __init__(self, proxy: Proxy, followers: Followers) -> None:
        self._proxy = proxy
        self._followers = followers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Shows what passes (ASGI)."""
        token = bearer(dict(scope["headers"]))
        if token is None:
            raise Unauthenticated("an access token is needed, as `Authorization: Bearer …`")
        identity = await self._proxy.identify(token)
        if identity.role not in _ROLES:
            raise Forbidden
        watcher = _Watcher(self._proxy, identity.subject, token, *_wanted(scope["query_string"]))
        await self._followers.serve(watcher, receive, send)


def _wanted(query: bytes) -> tuple[list[str], set[str]]:
    """The patterns of names and the kinds asked for; without any, all."""
    patterns: list[str] = []
    kinds: set[str] = set()
    for name, value in query_params(query):
        if name == "match":
            patterns.append(value)
        elif name == "kind" and value in ("event", "signal"):
            kinds.add(value)
        else:
            raise Problem(422, "invalid", f"{name}={value}"[:80] + ": expected match=PATTERN, kind=event or kind=signal.")
    return patterns or ["*"], kinds or {"event", "signal"}


class _Watcher(Follower):
    """One client that watches what passes."""

    def __init__(self, proxy: Proxy, user: str, token: str, patterns: list[str], kinds: set[str]) -> None:
        super().__init__(proxy, user, token)
        self._patterns = patterns
        self._kinds = kinds
        self._positions: dict[str, Position] = {}
        self._signals: deque[Envelope] = deque()
        self._dropped = 0

    def heard(self, envelope: Envelope) -> None:
        if envelope.kind == "signal":
            if len(self._signals) < _WAITING:
                self._signals.append(envelope)
            else:
                self._dropped += 1
        self.wake()

    async def look(self, stream: EventStream) -> bool:
        complete = True
        for manifest in {member.manifest.service: member.manifest for member in self.proxy.registry}.values():
            try:
                for name in self._wanted("signal", manifest.signals):
                    await self.hear(Topic("signal", manifest.service, name.partition(".")[2]))
                events = self._wanted("event", manifest.events)
                if events:
                    await self.hear(Topic("stream", manifest.service))
                    await self._show_events(stream, manifest, events)
            except (ServiceError, TransportError):
                complete = False
        await self._show_signals(stream)
        return complete

    def _wanted(self, kind: str, names: tuple[str, ...]) -> tuple[str, ...]:
        if kind not in self._kinds:
            return ()
        return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in self._patterns))

    async def _show_events(self, stream: EventStream, manifest: Manifest, types: tuple[str, ...]) -> None:
        publisher = manifest.service
        if publisher not in self._positions:
            head = await self.proxy.ask_stream(publisher, StreamHead())
            assert isinstance(head, Position)
            self._positions[publisher] = head
        while True:
            try:
                batch = await self.proxy.ask_stream(publisher, Pull(self._positions[publisher], types, peek=True))
            except ServiceError as error:
                if not error.retryable:  # pruned, or restored from a copy: there is no going on from here
                    del self._positions[publisher]
                raise
            assert isinstance(batch, Batch)
            for event in batch.events:
                await stream.event("event", _event(publisher, event))
            self._positions[publisher] = batch.scanned
            if batch.scanned.seq >= batch.head:
                return

    async def _show_signals(self, stream: EventStream) -> None:
        while self._signals:
            await stream.event("signal", _signal(self._signals.popleft()))
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            await stream.event("dropped", _json({"signals": dropped}))


def _event(publisher: str, event: StreamEvent) -> str:
    body = msgspec.Raw(event.body.encode())
    return _json(
        {
            "name": event.type,
            "from": publisher,
            "seq": event.seq,
            "id": event.id,
            "at": event.at,
            "trace": event.trace,
            "body": body,
        }
    )


def _signal(envelope: Envelope) -> str:
    body = msgspec.Raw(envelope.body) if isinstance(envelope.body, bytes) else envelope.body
    return _json({"name": envelope.subject, "from": envelope.caller, "id": envelope.id, "trace": envelope.trace, "body": body})


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
