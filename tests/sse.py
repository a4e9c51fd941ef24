"""A client for server-sent events that reads them as a browser would."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from runtime.testing import eventually


class Events:
    """The events of one stream.

    Attributes:
        received: The (event, data, id) of each event so far.
        heartbeats: How many empty comments the server has sent to keep the connection open.
        last_id: The last id that the server has sent.
        retry: The milliseconds after which the client reconnects if the stream ends.
        ended: Whether the server has closed the stream.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.received: list[tuple[str, Any, str]] = []
        self.heartbeats = 0
        self.last_id = ""
        self.retry = 0
        self.ended = False

    @property
    def numbers(self) -> list[int]:
        return [data["number"] for _, data, _ in self.received if "number" in data]

    @property
    def kinds(self) -> list[str]:
        return [event for event, _, _ in self.received]

    async def wait_for(self, count: int) -> None:
        """Wait until the stream has delivered `count` events."""
        await eventually(lambda: len(self.received) >= count, f"{count} events have arrived; so far: {self.received}")

    async def read(self) -> None:
        event, data, id = "", "", ""
        async for line in self.response.aiter_lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if line == ":":
                self.heartbeats += 1
            elif not line:
                if data:
                    self.received.append((event, json.loads(data), id))
                event, data, id = "", "", ""
            elif name == "event":
                event = value
            elif name == "data":
                data = value
            elif name == "id":
                id = self.last_id = value
            elif name == "retry":
                self.retry = int(value)
        self.ended = True


@asynccontextmanager
async def follow(
    url: str, headers: dict[str, str], *, after: str | None = None, path: str = "/live"
) -> AsyncGenerator[Events, None]:
    """Follow a stream until the block ends, then cut the connection."""
    request_headers = headers if after is None else {**headers, "Last-Event-ID": after}
    async with (
        httpx.AsyncClient(base_url=url, timeout=60, verify=False) as client,
        client.stream("GET", path, headers=request_headers) as response,
    ):
        assert response.status_code == 200, await response.aread()
        events = Events(response)
        reading = asyncio.create_task(events.read())
        try:
            yield events
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
