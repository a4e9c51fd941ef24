"""A client of server-sent events, as a browser would read them."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from runtime.testing import eventually


class Events:
    """What has come so far: (event, data, id); `ended` once the server has closed the stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.came: list[tuple[str, Any, str]] = []
        self.beats = 0
        self.last_id = ""
        self.ended = False

    @property
    def numbers(self) -> list[int]:
        return [data["number"] for _, data, _ in self.came if "number" in data]

    @property
    def kinds(self) -> list[str]:
        return [event for event, _, _ in self.came]

    async def count(self, wanted: int) -> None:
        await eventually(lambda: len(self.came) >= wanted, f"{wanted} events come, not {self.came}")

    async def read(self) -> None:
        event, data, id = "", "", ""
        async for line in self.response.aiter_lines():
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if line == ":":
                self.beats += 1
            elif not line:
                if data:
                    self.came.append((event, json.loads(data), id))
                event, data, id = "", "", ""
            elif name == "event":
                event = value
            elif name == "data":
                data = value
            elif name == "id":
                id = self.last_id = value
        self.ended = True


@asynccontextmanager
async def follow(
    url: str, headers: dict[str, str], *, after: str | None = None, path: str = "/live"
) -> AsyncGenerator[Events, None]:
    """Follows a stream until the block ends; then the line is cut."""
    sent = headers if after is None else {**headers, "Last-Event-ID": after}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client, client.stream("GET", path, headers=sent) as response:
        assert response.status_code == 200, await response.aread()
        events = Events(response)
        reading = asyncio.create_task(events.read())
        try:
            yield events
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
