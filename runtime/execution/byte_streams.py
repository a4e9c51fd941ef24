"""A stream of bytes at either end: the messages that carry its pieces, what was offered, and what has arrived."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from contextvars import copy_context
from typing import Any

from runtime.contract.errors import StreamBroken
from runtime.contract.messages import Contract, Request, Struct

AHEAD = 256 * 1024
"""The bytes that are kept ahead of a reader, and the largest piece."""
_TURN = 100
"""The number of pieces from a source after which others get their turn."""
bytes_contract: Contract = Contract("bytes")


class Piece(Struct):
    """A piece of a stream.

    Attributes:
        data: the bytes.
        last: whether nothing follows.
    """

    data: bytes
    last: bool = False


@bytes_contract.message
class Push(Request[None]):
    """The next piece of the stream in a request, from its caller.

    Attributes:
        request: the id of the request's envelope.
        stream: the id of the stream.
        at: the number of bytes before this piece.
    """

    request: str
    stream: str
    at: int
    piece: Piece


@bytes_contract.message
class Drop(Request[None]):
    """The rest of the stream in a reply is not wanted."""

    stream: str


@bytes_contract.message
class Take(Request[Piece]):
    """The next piece of the stream in a reply. The piece before can be taken again, as it may have been lost on the way.

    Attributes:
        stream: the id of the stream.
        at: the number of bytes before this piece.
    """

    stream: str
    at: int


TRANSFERS: frozenset[str] = frozenset(spec.full_name for spec in bytes_contract.messages.values())
"""The full names of the messages about streams."""


class _Pieces:
    """Bytes on their way from a writer to a reader, with a limit for those that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._failure: Exception | None = None
        self._changed: asyncio.Future[None] | None = None

    async def put(self, data: bytes) -> None:
        """Add bytes, as soon as there is room."""
        while self._size >= AHEAD and self._failure is None:
            await self._change()
        self._waiting.append(data)
        self._size += len(data)
        self._notify()

    def end(self, failure: Exception | None = None) -> None:
        """Note that nothing follows, because of a failure if there is one. The first call counts."""
        if not self._ended:
            self._ended, self._failure = True, failure
            self._notify()

    async def take(self, most: int) -> Piece:
        """Return what waits, up to so many bytes. Wait until there is something. Raises the failure that has ended the stream."""
        while not self._waiting and not self._ended:
            await self._change()
        if self._failure is not None:
            raise self._failure
        found: list[bytes] = []
        size = 0
        while self._waiting and size < most:
            data = self._waiting.popleft()
            if size + len(data) > most:
                self._waiting.appendleft(data[most - size :])
                data = data[: most - size]
            found.append(data)
            size += len(data)
        self._size -= size
        self._notify()
        return Piece(found[0] if len(found) == 1 else b"".join(found), self._ended and not self._waiting)

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = self._loop.create_future()
        await asyncio.shield(self._changed)

    def _notify(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)


class Offer:
    """A stream that a handler has offered.

    Attributes:
        reader: the service that may take it from another node.
        owner: the service that offers it.
        all_taken: whether its last piece was taken.
    """

    def __init__(self, chunks: AsyncIterable[bytes], size: int | None, owner: str, reader: str) -> None:
        self.owner = owner
        self.reader = reader
        self.begun: bool = False
        self.all_taken: bool = False
        self.timer: asyncio.TimerHandle | None = None
        self._chunks = chunks
        self._size = size
        self._pieces: _Pieces | None = None
        self._filling: asyncio.Task[None] | None = None
        self._at = 0
        self._last = Piece(b"")
        self._lock = asyncio.Lock()
        self._context = copy_context()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes, and check their number.

        Raises:
            StreamBroken: if what was offered fails, or has another size.
        """
        self.begun = True
        count = 0
        try:
            async for chunk in self._chunks:
                if not isinstance(chunk, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]  # a handler may offer anything
                    raise StreamBroken(f"expected bytes, got {type(chunk).__name__}")
                count += len(chunk)
                if self._size is not None and count > self._size:
                    raise StreamBroken(f"there are more than the {self._size} bytes that were announced")
                if chunk:
                    yield bytes(chunk)
        except StreamBroken:
            raise
        except Exception as error:
            raise StreamBroken(f"its source failed: {type(error).__name__}") from error
        finally:
            await self._close_source()
        if self._size is not None and count < self._size:
            raise StreamBroken(f"there are {count} bytes, but {self._size} were announced")

    async def _close_source(self) -> None:
        close: Callable[[], Coroutine[Any, Any, None]] | None = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()

    async def take(self, at: int, most: int, loop: asyncio.AbstractEventLoop) -> Piece:
        """Return the piece that begins after `at` bytes: the next one, or the last one again. Raises `StreamBroken`."""
        async with self._lock:
            if at == self._at and self._last.data:
                return self._last
            if at != self._at + len(self._last.data):
                raise StreamBroken(f"the bytes after {at} are gone: a stream is read once")
            if self._pieces is None:
                if self.begun:
                    raise StreamBroken("it is being read already")
                self._pieces = _Pieces(loop)
                self._filling = loop.create_task(self._fill(self._pieces), context=self._context)
            piece = await self._pieces.take(most)
            self._at, self._last, self.all_taken = at, piece, piece.last
            return piece

    async def _fill(self, pieces: _Pieces) -> None:
        count = 0
        try:
            async for chunk in self.chunks():
                await pieces.put(chunk)
                count += 1
                if count % _TURN == 0:  # many small pieces that are there at once
                    await asyncio.sleep(0)
        except Exception as error:
            pieces.end(error)
        except asyncio.CancelledError:
            pieces.end(StreamBroken("nobody has read it for too long"))
            raise
        else:
            pieces.end()

    def restart(self) -> bool:
        """Return whether the stream can begin again, because no more than its first piece was taken."""
        return self._at == 0 and (not self.begun or self._pieces is not None)

    async def close(self) -> None:
        """Close what was offered."""
        if self.timer is not None:
            self.timer.cancel()
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait((self._filling,))
            if not self._filling.cancelled():
                self._filling.exception()
        elif not self.begun:
            self.begun = True
            await self._close_source()


class Intake(_Pieces):
    """The stream of a request that another node pushes.

    Attributes:
        stream: the id of the stream; None before its first piece.
        claimed: whether the handler reads it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.stream: str | None = None
        self.claimed: bool = False
        self._at = 0

    async def push(self, stream: str, at: int, piece: Piece) -> None:
        """Take a piece. One that has come before is ignored. Raises `StreamBroken`."""
        self.stream = stream
        if at < self._at:
            return
        if at > self._at:
            raise StreamBroken(f"the bytes between {self._at} and {at} are missing")
        self._at += len(piece.data)
        if piece.data:
            await self.put(piece.data)
        if piece.last:
            self.end()
