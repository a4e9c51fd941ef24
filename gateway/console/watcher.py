"""The watcher: it asks the nodes once a second what they do, as long as somebody looks at the console."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from gateway.console.picture import Picture
from gateway.console.requests import instances
from runtime import Clock, ServiceError
from runtime.durable.console import ShowStreams, StreamReport
from runtime.node.observation import Observed
from runtime.node.proxy import NoNode, Proxy
from runtime.repeats import fault
from runtime.tasks import finish

_INTERVAL = 1.0
_AT_ONCE = 0.3
"""Seconds for which a tick waits for the nodes. The answer of a slower one counts in a later tick."""
_ANSWERS_WITHIN = 5.0
_STREAMS_EVERY = 3.0

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
        self._tasks: list[asyncio.Task[None]] = []
        self._asking: dict[str, asyncio.Task[Observed | None]] = {}
        self._streams: dict[str, Any] = {}
        self._snapshot: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Watcher for {len(self._looking)}, {self.picture!r}>"

    @asynccontextmanager
    async def looking(self, look: Look) -> AsyncGenerator[None, None]:
        """Pass the news of each tick to `look` inside the `async with` block, and first what is known already."""
        if not self._looking:
            self.picture, self._asking, self._streams, self._snapshot = Picture(), {}, {}, {}
            self._tasks = [asyncio.create_task(self._watch(), name="console"), asyncio.create_task(self._watch_streams())]
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
                tasks = [*self._tasks, *self._asking.values()]
                self._tasks, self._asking, self.picture = [], {}, Picture()
                await finish(_ended(tasks))

    async def _watch(self) -> None:
        before = self._clock.monotonic() - _INTERVAL
        while True:
            try:
                await self._ask_nodes()
                now = self._clock.monotonic()
                self._tick(self._answers(), max(now - before, 0.001))
                before = now
            except Exception as error:
                self._log(error)
            await self._clock.sleep(_INTERVAL)

    def _tick(self, answers: dict[str, Observed], seconds: float) -> None:
        self.picture.tick(answers, seconds)
        self._snapshot = {
            "at": self._clock.timestamp(),
            "instances": instances(self._proxy),
            "with_routes": sorted(self._with_routes()),
            "services": self.picture.services(),
            "flows": self.picture.flows(),
            "one_in": self.picture.one_in,
        }
        self._tell("snapshot", self._snapshot)
        if traces := self.picture.new_traces():
            self._tell("traces", traces)
        if logs := self.picture.new_logs():
            self._tell("logs", msgspec.to_builtins(logs))

    def _with_routes(self) -> set[str]:
        manifests = (member.manifest for member in self._proxy.registry)
        return {manifest.service for manifest in manifests if any(info.http is not None for info in manifest.requests)}

    def _tell(self, event: str, data: Any) -> None:
        for look in list(self._looking):
            look(event, data)

    def _log(self, error: Exception) -> None:
        key, message = ("console", fault(error)), "the console cannot show everything: %r"
        self._proxy.repeats.log(self._proxy.log, logging.ERROR, key, message, error, exc_info=error)

    # Nodes

    async def _ask_nodes(self) -> None:
        """Ask every node that is not being asked already, and wait a moment for the answers."""
        for node in {member.address.node for member in self._proxy.registry} - self._asking.keys():
            self._asking[node] = asyncio.create_task(self._ask_node(node))
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=_AT_ONCE)

    def _answers(self) -> dict[str, Observed]:
        """Return the answers that have come."""
        ended = {node: task for node, task in self._asking.items() if task.done()}
        for node in ended:
            del self._asking[node]
        return {node: answer for node, task in ended.items() if (answer := task.result()) is not None}

    async def _ask_node(self, node: str) -> Observed | None:
        try:
            return await self._proxy.ask_node(node, self.picture.question(node), _ANSWERS_WITHIN)
        except (ServiceError, NoNode):  # it is gone, or of a version that does not record
            return None
        except Exception as error:  # an answer that cannot be decoded, for example
            self._log(error)
            return None

    # Streams

    async def _watch_streams(self) -> None:
        while True:
            services = sorted({member.manifest.service for member in self._proxy.registry} - {"gateway"})
            reports = await asyncio.gather(*(self._ask_stream(service) for service in services))
            known = zip(services, reports, strict=True)
            found = {service: msgspec.to_builtins(report) for service, report in known if report is not None}
            if found != self._streams:
                self._streams = found
                self._tell("streams", list(found.values()))
            await self._clock.sleep(_STREAMS_EVERY)

    async def _ask_stream(self, service: str) -> StreamReport | None:
        try:
            return await self._proxy.ask_service(service, ShowStreams(), _ANSWERS_WITHIN)
        except ServiceError:  # it has no database, or is gone
            return None
        except Exception as error:
            self._log(error)
            return None


async def _ended(tasks: "list[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
