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


async def until_gone(work: Awaitable[T], receive: Receive) -> T:
    """Awaits work; cancels it when the client goes away.

    Raises:
        Gone: the client has gone.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise Gone from None
        raise
    finally:
        watcher.cancel()
