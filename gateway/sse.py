"""Server-sent events (WHATWG HTML, section 9.2), sent in one response that stays open."""

import asyncio
from typing import Any

import msgspec

from gateway.asgi import Send

_RETRY_MILLISECONDS = 1000


class SlowReader(Exception):
    """The client reads its stream too slowly."""


class EventStream:
    """Writes the events of one response.

    Unread events wait only in the buffers of the connection.

    Args:
        send: the ASGI callable that sends the response.
        patience: how long the client may take to receive one write, in seconds.
    """

    def __init__(self, send: Send, patience: float) -> None:
        self._send = send
        self._patience = patience
        self._started = False

    async def begin(self) -> None:
        """Send the head of the response, unless it was sent before. The first event sends it too.

        Raises:
            SlowReader: if the client takes longer than `patience` to receive the write.
        """
        if self._started:
            return
        self._started = True
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(f"retry: {_RETRY_MILLISECONDS}\n")

    async def position(self, position: str) -> None:
        """Tell the client the value that it sends as `Last-Event-ID` if it reconnects before it has received an event. Empty: none.

        Raises:
            SlowReader: if the client takes longer than `patience` to receive it.
        """
        await self.begin()
        if position:
            await self._write(f"{_id_line(position)}\n")

    async def event(self, kind: str, data: Any, *, position: str = "", retry: int | None = None) -> None:
        """Send an event.

        Args:
            kind: the event type.
            data: the data, which is encoded as JSON.
            position: the value that the client sends as `Last-Event-ID` when it reconnects.
            retry: the seconds after which the client reconnects if its stream ends.

        Raises:
            SlowReader: if the client takes longer than `patience` to receive the event.
        """
        await self.begin()
        retry_line = "" if retry is None else f"retry: {retry * 1000}\n"
        await self._write(f"{_id_line(position)}{retry_line}event: {kind}\ndata: {msgspec.json.encode(data).decode()}\n\n")

    async def heartbeat(self) -> None:
        """Send a comment, so that the client and the proxies in between keep the connection open.

        Raises:
            SlowReader: if the client takes longer than `patience` to receive the comment.
        """
        await self._write(":\n")  # an empty line would end an event, and to some clients an empty one is an event

    async def end(self) -> None:
        """End the response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        except TimeoutError:
            raise SlowReader from None


def _id_line(position: str) -> str:
    return f"id: {position}\n" if position else ""
