"""The bodies of requests that are answered before they have been read."""

import asyncio
from collections.abc import Callable

from gateway.asgi import Receive

_MOST_BYTES = 64 * 1024 * 1024
_LONGEST = 30.0
"""Seconds that the rest of a body may take in all."""
_LONGEST_PAUSE = 2.0
"""Seconds that the next part of a body may take."""


class Unread:
    """Receives and drops the rest of bodies, so that their clients see the answer.

    A server that closes a connection with unread data behind it resets it. Then most clients report a connection error, even if
    the answer has reached them (RFC 9112, section 9.6).

    Args:
        most: how many bodies are drained at once. The connections of further ones close.
        stopping: returns whether the gateway is stopping.
    """

    def __init__(self, most: int, stopping: Callable[[], bool]) -> None:
        self._most = most
        self._stopping = stopping
        self._draining = 0

    def __repr__(self) -> str:
        return f"<Unread {self._draining} of {self._most}>"

    async def drain(self, receive: Receive) -> None:
        """Receive the rest of a body, after the answer was sent, within limits of size and time."""
        if self._draining >= self._most:
            return
        self._draining += 1
        try:
            async with asyncio.timeout(_LONGEST):
                size = 0
                while size <= _MOST_BYTES and not self._stopping():
                    async with asyncio.timeout(_LONGEST_PAUSE):
                        message = await receive()
                    if not message.get("more_body", False):  # as with http.disconnect
                        return
                    size += len(message.get("body", b""))
        except TimeoutError:
            return
        finally:
            self._draining -= 1
