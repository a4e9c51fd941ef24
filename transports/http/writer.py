"""Writing messages to a connection, no faster than the peer reads them."""

import asyncio

_PIECE = 256 * 1024
"""Bytes of a large body that are handed to the event loop at once."""


class Writer:
    """Writes one message after the other. Of a large one, the event loop gets a piece whenever it has room.

    Otherwise the event loop would copy all of it, and with TLS encrypt all of it before it does anything else.
    """

    __slots__ = ("_paused", "_transport", "_unwritten")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._unwritten: memoryview | None = None
        self._paused = False

    @property
    def handed_over(self) -> bool:
        """Whether the event loop has all of the message."""
        return self._unwritten is None

    @property
    def flushed(self) -> bool:
        """Whether the operating system has all of the message."""
        return self._unwritten is None and not self._transport.get_write_buffer_size()

    def write(self, head: bytes, body: bytes) -> None:
        """Write a message. The one before has to be handed over."""
        if len(body) <= _PIECE:
            self._transport.write(head + body)
            return
        self._transport.write(head)
        self._unwritten = memoryview(body)
        self._write_more()

    def _write_more(self) -> None:
        while self._unwritten is not None and not self._paused and not self._transport.is_closing():
            piece, rest = self._unwritten[:_PIECE], self._unwritten[_PIECE:]
            self._unwritten = rest if rest else None
            self._transport.write(piece)

    def pause(self) -> None:
        """Called by the event loop when it has no room for more."""
        self._paused = True

    def resume(self) -> None:
        """Called by the event loop when it has room again."""
        self._paused = False
        self._write_more()
