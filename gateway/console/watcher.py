"""The watcher: it asks the nodes once a second what they do, as long as somebody looks at the console."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from gateway.console.picture import Picture
from gateway.console.requests import instances
from runtime import Clock, ServiceError
from runtime.durable.console import ShowStreams, StreamReport
from runtime.node.observation import Observe, Observed
from runtime.node.proxy import NoNode, Proxy
from runtime.tasks import finish

_INTERVAL = 1.0
_ANSWERS_WITHIN = 2.0
_STREAMS_EVERY = 3
"""The ticks after which the services are asked about their streams again."""

Look = Callable[[str, Any], None]
"""Gets the news of each tick: the name of an event, and its data."""


class Watcher:
    """Watches the system for everybody who looks at it.

    Attributes:
        picture: what is known; empty while nobody looks.
    """

    def __init__(self, proxy: Proxy, clock: Clock) -> None:
        self.picture: Picture = Picture()
        self._proxy = proxy
        self._clock = clock
        self._looking: list[Look] = []
        self._task: asyncio.Task[None] | None = None
        self._known: dict[str, Observed] = {}
        self._streams: dict[str, Any] = {}
        self._snapshot: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Watcher for {len(self._looking)}, {self.picture!r}>"

    @asynccontextmanager
    async def looking(self, look: Look) -> AsyncGenerator[None, None]:
        """Pass the news of each tick to `look` inside the `async with` block, and first what is known already."""
        if self._task is None:
            self.picture, self._known, self._streams, self._snapshot = Picture(), {}, {}, {}
            self._task = asyncio.create_task(self._watch(), name="console watcher")
        elif self._snapshot:
            look("snapshot", self._snapshot)
            look("traces", self.picture.traces())
            look("logs", msgspec.to_builtins(self.picture.logs()))
            look("streams", list(self._streams.values()))
        self._looking.append(look)
        try:
            yield
        finally:
            self._looking.remove(look)
            if not self._looking:
                task, self._task = self._task, None
                await finish(_ended(task))
                self.picture = Picture()

    async def _watch(self) -> None:
        tick = 0
        while True:
            await self._observe()
            self._snapshot = {
                "at": self._clock.timestamp(),
                "instances": instances(self._proxy),
                "services": self.picture.services(),
                "flows": self.picture.flows(),
                "nodes": sorted(self._known),
                "one_in": self.picture.one_in,
            }
            self._tell("snapshot", self._snapshot)
            if traces := self.picture.new_traces():
                self._tell("traces", traces)
            if logs := self.picture.new_logs():
                self._tell("logs", msgspec.to_builtins(logs))
            if tick % _STREAMS_EVERY == 0 and await self._ask_streams():
                self._tell("streams", list(self._streams.values()))
            tick += 1
            await self._clock.sleep(_INTERVAL)

    def _tell(self, event: str, data: Any) -> None:
        for look in list(self._looking):
            look(event, data)

    async def _observe(self) -> None:
        nodes = {member.address.node for member in self._proxy.registry}
        answers = await asyncio.gather(*(self._ask_node(node) for node in nodes))
        self._known = {node: answer for node, answer in zip(nodes, answers, strict=True) if answer is not None}
        self.picture.tick(self._known)

    async def _ask_node(self, node: str) -> Observed | None:
        known = self._known.get(node)
        message = Observe(one_in=self.picture.one_in)
        if known is not None:
            message = Observe(known.recording, known.last_span, known.last_log, self.picture.one_in)
        try:
            return await self._proxy.ask_node(node, message, _ANSWERS_WITHIN)
        except (ServiceError, NoNode):  # it is gone, or of a version that does not record
            return None

    async def _ask_streams(self) -> bool:
        """Ask the services about their streams. Return whether anything has changed."""
        services = sorted({member.manifest.service for member in self._proxy.registry} - {"gateway"})
        reports = await asyncio.gather(*(self._ask_stream(service) for service in services))
        found = {
            service: msgspec.to_builtins(report) for service, report in zip(services, reports, strict=True) if report is not None
        }
        changed, self._streams = found != self._streams, found
        return changed

    async def _ask_stream(self, service: str) -> StreamReport | None:
        try:
            return await self._proxy.ask_service(service, ShowStreams(), _ANSWERS_WITHIN)
        except ServiceError:  # it has no database, or is gone
            return None


async def _ended(task: "asyncio.Task[None] | None") -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
