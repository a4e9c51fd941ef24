"""The client of a request: its access token, and cancellation when it disconnects."""

import asyncio
from collections.abc import Awaitable
from functools import lru_cache
from typing import TypeVar

from gateway.asgi import Receive
from runtime import Unauthenticated
from runtime.node.proxy import Proxy
from runtime.tasks import watching
from runtime.tokens import MAX_TOKEN, TOKEN_CHARACTERS

T = TypeVar("T")

_WATCH_AFTER = 0.05
"""Seconds that work may take before the client's connection is watched."""


class ClientDisconnected(Exception):
    """The client disconnected, and the work for its request was cancelled."""


def bearer_token(headers: dict[bytes, bytes]) -> str | None:
    """Return the access token of a request, or None if the request has no bearer token (RFC 6750, section 2.1).

    Raises:
        Unauthenticated: if no token can look like this. Such a token is not passed on to any service.
    """
    value = headers.get(b"authorization")
    return None if value is None else _bearer_token(value)


@lru_cache(maxsize=1024)
def _bearer_token(value: bytes) -> str | None:
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    if len(value) > MAX_TOKEN:
        raise Unauthenticated("the token is too large")
    token = token.strip(b" ")
    if not token or token.translate(None, TOKEN_CHARACTERS):
        raise Unauthenticated("the token contains characters that no token has")
    return token.decode()


def require_token(token: str | None) -> str:
    """Return the access token that `bearer_token` found.

    Raises:
        Unauthenticated: if the request has no token.
    """
    if token is None:
        raise Unauthenticated
    return token


def known_user(proxy: Proxy, headers: dict[bytes, bytes]) -> str | None:
    """Return the user of a request's access token, if the gateway has verified the token before."""
    try:
        token = bearer_token(headers)
    except Unauthenticated:
        return None
    identity = None if token is None else proxy.known_identity(token)
    return None if identity is None else identity.subject


async def cancel_on_disconnect(work: Awaitable[T], receive: Receive, loop: asyncio.AbstractEventLoop) -> T:
    """Await work and return its result. Cancel it if the client disconnects.

    The connection is watched only once the work has taken 0.05 seconds, because watching it costs more than most requests.

    Raises:
        ClientDisconnected: if the client disconnected and the work was cancelled.
    """
    task = asyncio.current_task(loop)
    assert task is not None
    disconnected = False

    async def watch() -> None:
        nonlocal disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        task.cancel()

    try:
        with watching(watch, _WATCH_AFTER):
            return await work
    except asyncio.CancelledError:
        if disconnected and task.uncancel() == 0:
            raise ClientDisconnected from None
        raise
