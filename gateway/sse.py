"""Server-sent events (WHATWG HTML, section 9.2): one response that goes on and on."""

import asyncio
from typing import Any

import msgspec

from gateway.client import Send

_RETRY_MILLISECONDS = 1000


class SlowReader(Exception):
    """The client does not take what it is sent."""


class EventStream:
    """The events of one response.

    Args:
        patience: seconds that a client may take to receive a piece. What it has not taken waits in the connection's
            buffers, and nowhere else.
    """

    def __init__(self, send: Send, patience: float) -> None:
        self._send = send
        self._patience = patience
        self._begun = False

    async def begin(self, position: str = "") -> None:
        """Sends the response's head, unless that was done; the first event does it, too.

        Args:
            position: what the client sends as `Last-Event-ID` if it comes back before any event.
        """
        if self._begun:
            return
        self._begun = True
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._write(f"{_place(position)}retry: {_RETRY_MILLISECONDS}\n\n")

    async def event(self, kind: str, data: Any, *, position: str = "") -> None:
        """Sends an event, whose data become JSON text.

        Args:
            position: what the client sends as `Last-Event-ID` when it comes back.
        """
        await self.begin()
        await self._write(f"{_place(position)}event: {kind}\ndata: {msgspec.json.encode(data).decode()}\n\n")

    async def beat(self) -> None:
        """Sends a comment, so that both sides and what lies between know that the line stands."""
        await self._write(":\n\n")

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, text: str) -> None:
        """Sends a piece.

        Raises:
            SlowReader: the client took too long to receive it.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        except TimeoutError:
            raise SlowReader from None


def _place(position: str) -> str:
    return f"id: {position}\n" if position else ""
