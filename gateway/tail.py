"""`/console/tail`: events and signals as they pass, for operators, as server-sent events.

Events are read from their publishers' streams, in order and without gaps, from the moment of asking on; signals are
shown as they come, and dropped when the client is slower than they are. Nothing waits for a client, and no event is
kept for one.
"""

import asyncio
from collections import deque
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from gateway.client import Receive, Scope, Send
from gateway.console import operator
from gateway.problems import Problem
from gateway.routing import query_params
from gateway.sse import EventStream
from gateway.subscribers import Follower, Followers, together
from runtime import ServiceError
from runtime.durable.stream import Batch, Diverged, Position, PositionPruned, Pull, StreamEvent, StreamHead
from runtime.network import Envelope, Manifest, Topic, TransportError
from runtime.node.proxy import Proxy

_WAITING = 1000
"""Signals that may wait for a client."""

_SECONDS = 2.0
"""How long a publisher may take to answer; the others wait no longer for it."""


class Tail:
    """Serves `/console/tail?match=rides.*&kind=event`: both may be given several times, or not at all."""

    def __init__(self, proxy: Proxy, followers: Followers) -> None:
        self._proxy = proxy
        self._followers = followers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Shows what passes (ASGI)."""
        identity, token = await operator(self._proxy, dict(scope["headers"]))
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

    waits_for_all = False

    def __init__(self, proxy: Proxy, user: str, token: str, patterns: list[str], kinds: set[str]) -> None:
        super().__init__(proxy, user, token)
        self._patterns = patterns
        self._kinds = kinds
        self._positions: dict[str, Position] = {}
        self._due: set[str] = set()
        self._signals: deque[Envelope] = deque()
        self._dropped = 0

    def heard(self, envelope: Envelope) -> None:
        if envelope.kind == "head":
            self._due.add(envelope.caller)
        elif len(self._signals) < _WAITING:
            self._signals.append(envelope)
        else:
            self._dropped += 1
        self.wake()

    async def look(self, stream: EventStream, *, everywhere: bool) -> bool:
        manifests = {member.manifest.service: member.manifest for member in self.proxy.registry}
        due, self._due = manifests.keys() if everywhere else self._due, set()
        complete = await together([self._follow(stream, manifest, manifest.service in due) for manifest in manifests.values()])
        await self._show_signals(stream)
        return complete

    async def _follow(self, stream: EventStream, manifest: Manifest, due: bool) -> bool:
        """Hears a service, and shows a batch of its events if there may be new ones. Says whether that could be done."""
        try:
            async with asyncio.timeout(_SECONDS):
                for name in self._wanted("signal", manifest.signals):
                    await self.hear(Topic("signal", manifest.service, name.partition(".")[2]))
                events = self._wanted("event", manifest.events)
                if not events or not (due or manifest.service not in self._positions):
                    return True
                await self.hear(Topic("stream", manifest.service))
                batch = await self._pull(manifest.service, events)
        except (Diverged, PositionPruned) as error:  # there is no going on from here
            del self._positions[manifest.service]
            await stream.event("gap", {"from": manifest.service, "why": error.title()})
            return False
        except ServiceError as error:
            return not error.retryable
        except (TransportError, TimeoutError):
            return False
        for event in batch.events:
            await stream.event("event", _event(manifest.service, event))
        if batch.scanned.seq < batch.head:
            self._due.add(manifest.service)
            self.wake()  # there is more; in between others have their turn
        return True

    async def _pull(self, publisher: str, types: tuple[str, ...]) -> Batch:
        """What follows in a stream; at first only where it ends."""
        position = self._positions.get(publisher)
        if position is None:
            head = await self.proxy.ask_stream(publisher, StreamHead())
            assert isinstance(head, Position)
            position = self._positions[publisher] = head
        batch = await self.proxy.ask_stream(publisher, Pull(position, types, peek=True))
        assert isinstance(batch, Batch)
        self._positions[publisher] = batch.scanned
        return batch

    def _wanted(self, kind: str, names: tuple[str, ...]) -> tuple[str, ...]:
        if kind not in self._kinds or (kind == "signal" and not self.proxy.has_signals):
            return ()
        return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in self._patterns))

    async def _show_signals(self, stream: EventStream) -> None:
        for _ in range(len(self._signals)):
            envelope = self._signals.popleft()
            try:
                await stream.event("signal", _signal(envelope))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._dropped += 1  # it is no JSON: nobody takes it
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            await stream.event("dropped", {"signals": dropped})


def _event(publisher: str, event: StreamEvent) -> dict[str, Any]:
    return {
        "name": event.type, "from": publisher, "seq": event.seq, "id": event.id, "at": event.at, "trace": event.trace,
        "body": msgspec.json.decode(event.body),
    }  # fmt: skip


def _signal(envelope: Envelope) -> dict[str, Any]:
    body = msgspec.json.decode(envelope.body) if isinstance(envelope.body, bytes) else envelope.body
    return {"name": envelope.subject, "from": envelope.caller, "id": envelope.id, "trace": envelope.trace, "body": body}
