"""The client of a request, as ASGI shows it: its access token, and whether it is still there."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


_UNWATCHED = 0.05
"""Seconds."""


class Gone(Exception):
    """The client has gone: nobody waits for an answer."""


def bearer(headers: dict[bytes, bytes]) -> str | None:
    """The access token of a request.

    An empty one stands for an Authorization field that carries no bearer token (RFC 6750, section 2.1).
    """
    value = headers.get(b"authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"bearer" or not token or not token.isascii():
        return ""
    return token.strip().decode()


async def until_gone(work: Awaitable[T], receive: Receive, loop: asyncio.AbstractEventLoop) -> T:
    """Awaits work; cancels it when the client goes away.

    Work that takes no time is not watched over: asking the server whether the client is there costs more than most requests.

    Raises:
        Gone: the client has gone.
    """
    task = asyncio.current_task(loop)
    assert task is not None
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(_UNWATCHED, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise Gone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
