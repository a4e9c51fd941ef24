"""Bodies that the gateway passes on in pieces, in both directions, with a limited number of bytes ahead of their readers."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple

from gateway.exchange import Exchange
from gateway.problems import Headers, Problem
from gateway.responses import with_security
from runtime import StreamBroken

_CLOSE: Headers = [(b"connection", b"close")]
INCOMPLETE = "The body ended before it was complete."
TOO_SLOW = "The body did not arrive in time."


def too_large(limit: int) -> Problem:
    """Return the problem of a body that is too large."""
    return Problem(413, "too-large", f"The body is longer than {limit} bytes.", _CLOSE)


class BodyStream:
    """The body of a request, as it comes.

    Args:
        limit: the most bytes.
        patience: how long the client may take for a piece, in seconds.

    Attributes:
        problem: why it has failed.
    """

    def __init__(self, exchange: Exchange, limit: int, patience: float) -> None:
        self.problem: Problem | None = None
        self._exchange = exchange
        self._limit = limit
        self._patience = patience

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body. Raises the problem, if there is one."""
        size = 0
        while True:
            try:
                async with asyncio.timeout(self._patience):
                    message = await self._exchange.receive()
            except TimeoutError:
                raise self._failed(Problem(408, "body-too-slow", TOO_SLOW, _CLOSE)) from None
            if message["type"] == "http.disconnect":
                raise self._failed(Problem(400, "incomplete", INCOMPLETE, _CLOSE))
            size += len(message["body"])
            if size > self._limit:
                raise self._failed(too_large(self._limit))
            yield message["body"]
            if not message["more_body"]:
                return

    def _failed(self, problem: Problem) -> Problem:
        self.problem = problem
        return problem


class Streamed(NamedTuple):
    """A response whose body follows in pieces.

    Attributes:
        size: the number of bytes, if it is known.
        close: closes the body, whether or not it was read.
        patience: how long the client may take to receive a piece, in seconds.
    """

    status: int
    headers: Headers
    chunks: AsyncGenerator[bytes, None]
    size: int | None
    close: Callable[[], Awaitable[None]]
    patience: float


async def send(exchange: Exchange, response: Streamed, cors: Headers) -> StreamBroken | None:
    """Send a response in pieces. If its body fails, the answer stays unfinished, so that the client notices; return the failure."""
    headers = with_security(response.headers) + cors
    if response.size is not None:
        headers = [*headers, (b"content-length", b"%d" % response.size)]
    try:
        exchange.start(response.status, headers)
        if exchange.method != "HEAD":
            async for chunk in response.chunks:
                async with asyncio.timeout(response.patience):
                    await exchange.write(chunk)
                if exchange.is_gone:
                    return None
        exchange.end()
    except StreamBroken as error:
        return error
    except TimeoutError:
        return None  # the client reads too slowly: its connection is closed
    except asyncio.CancelledError:
        if not (exchange.was_cancelled and exchange.task.uncancel() == 0):
            raise
    finally:
        await response.chunks.aclose()
        await response.close()
    return None
