"""A connection of a client, with one request after the other. `http1` knows what its bytes mean."""

import array
import asyncio
import fcntl
import socket
import termios
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

from gateway.addresses import source
from gateway.exchange import MOST_BUFFERED, Exchange, GivenFields, Progress
from gateway.fields import bad_request, read_fields, read_framing
from gateway.http1 import BadRequest, EndlessBody, RequestLine, find_end, parse_fields, parse_line, without_empty_lines
from gateway.problems import Problem

_HALF_CLOSED = 0.05
"""Seconds until a client that sends no more is taken to be gone. One that only has no more requests gets most answers sooner."""
_UNREADABLE: RequestLine = ("GET", b"", b"", False)
"""Stands for a request line that cannot be read."""
_NO_FIELDS: GivenFields = ([], {}, 0)
_REMEMBERED = 4096
"""Bytes of header fields that a connection remembers."""


class Host(Protocol):
    """The server, as its connections see it.

    Attributes:
        connections: the open connections.
        progress: what all answers depend on.
        ticks: the seconds since the server has started.
    """

    connections: "set[Connection]"
    progress: Progress
    ticks: int

    def make_room(self) -> None:
        """Accept connections that have waited until one closed."""

    @property
    def app(self) -> "Callable[[Exchange], Awaitable[None]]": ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...


class Connection(asyncio.Protocol):
    """A connection of a client.

    The next request is read only when the answer to the one before has been sent, and the client takes what it gets.

    Args:
        host: the server.

    Attributes:
        peer: the address at the other end.
        source: the address or network that its limits are counted for, unless it is a proxy's.
        since: when the wait for the head of a request began, in ticks of the server. It begins when the client has taken its answer.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.loop = host.loop
        self.progress = host.progress
        self.peer = self.source = ""
        self.since = host.ticks
        self._exchange: Exchange | None = None
        self._buffer: bytes | bytearray = b""
        self._searched = 0
        self._text: bytes | None = None
        self._given = _NO_FIELDS
        self._has_ended = False
        self._is_reading = True
        self._is_writable = True
        self._waiting: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Connection {self.peer} [{'idle' if self._exchange is None else self._exchange!r}]>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport (asyncio)."""
        self._transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        self.peer = address[0] if address else ""
        self.source = source(self.peer)
        self.host.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent (asyncio)."""
        exchange = self._exchange
        if exchange is not None and not exchange.body_has_come:
            self._buffer = exchange.feed(data)
            return
        if not self._buffer:
            self._buffer = data
        else:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
        if exchange is None and self._is_writable:
            self._begin_next()
        elif len(self._buffer) > MOST_BUFFERED:
            self.stop_reading()

    def eof_received(self) -> bool:
        """Note that the client sends no more (asyncio). Return whether the connection stays open."""
        self._has_ended = True
        if self._exchange is None:
            return bool(self._buffer) and not self._is_writable  # requests that wait until the client reads
        self._note_end(self._exchange)
        return True

    def _note_end(self, exchange: Exchange) -> None:
        """Let a request be the last one if no other has come, because the client sends no more."""
        if not exchange.body_has_come:
            exchange.break_body()
            return
        if not self._buffer:
            exchange.keeps_alive = False
        self.loop.call_later(_HALF_CLOSED, exchange.lose_client)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection has ended (asyncio)."""
        self.host.connections.discard(self)
        self.host.make_room()
        self._buffer = b""
        self.resume_writing()
        if self._exchange is not None:
            self._exchange.lose_client()

    def pause_writing(self) -> None:
        """Note that the client reads too slowly (asyncio)."""
        self._is_writable = False

    def resume_writing(self) -> None:
        """Note that the client has caught up (asyncio)."""
        self._is_writable = True
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
        if self._exchange is None:
            self.since = self.host.ticks
            self._read_next()

    async def until_writable(self) -> None:
        """Wait until the client has taken most of what was sent to it, or has disconnected. Several tasks may wait."""
        while not self._is_writable:
            turn: asyncio.Future[None] = self.loop.create_future()
            self._waiting.append(turn)
            await turn

    def write(self, data: bytes) -> None:
        """Send bytes. Nothing happens if the connection is closing."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def write_end(self) -> None:
        """Show the client that nothing follows, while its bytes are still received."""
        if not self._transport.is_closing():
            self._transport.write_eof()

    def stop_reading(self) -> None:
        """Read nothing until `read_on` is called."""
        if self._is_reading and not self._transport.is_closing():
            self._is_reading = False
            self._transport.pause_reading()

    def read_on(self) -> None:
        """Read again."""
        if not self._is_reading and not self._transport.is_closing():
            self._is_reading = True
            self._transport.resume_reading()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered, and the client has taken what was sent to it."""
        return self._exchange is None and self._is_writable

    def close(self) -> None:
        """Close the connection when what was sent has left."""
        self._transport.close()

    def close_if_idle(self) -> None:
        """Close the connection unless a request on it is being answered, or the system has bytes of one that were not read yet."""
        if self.is_idle and not self._transport.is_closing() and not _bytes_to_read(self._transport.get_extra_info("socket")):
            self.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _read_next(self) -> None:
        """Read the next request."""
        self.read_on()
        if self._buffer:
            self._begin_next()
        if self._has_ended and self._exchange is None:
            self.close()

    def _begin_next(self) -> None:
        """Begin to answer the next request if its head has come."""
        if self._buffer[:2] == b"\r\n":  # RFC 9112, section 2.2
            self._buffer = without_empty_lines(self._buffer)
            self._searched = 0
        data = self._buffer
        line, given, body, problem, end = _UNREADABLE, _NO_FIELDS, None, None, -4
        try:
            end = find_end(data, self._searched)
            if end < 0:
                self._searched = len(data)
                return
            begin = data.find(b"\r\n") + 2
            line = parse_line(bytes(data[:begin]))
            given = self._read_fields(bytes(data[begin : end + 2]), is_http_1_0=line[3])
            body = read_framing(given[1], is_http_1_0=line[3])
        except BadRequest as error:
            problem = bad_request(str(error), error.status)
        except Problem as error:
            problem = error
        if problem is not None:
            body = EndlessBody()
        self._searched = 0
        self._buffer = bytes(data[end + 4 :])
        exchange = self._exchange = Exchange(self, line, given, body, problem)
        if self._buffer and not exchange.body_has_come:
            self._buffer = exchange.feed(self._buffer)
        if self._has_ended:
            self._note_end(exchange)
        exchange.task = self.loop.create_task(self._answer(exchange))

    def _read_fields(self, text: bytes, *, is_http_1_0: bool) -> GivenFields:
        """Return what the header fields of a request say. Most clients send the same ones with their next request, too."""
        if text == self._text and not is_http_1_0:
            return self._given
        pairs = parse_fields(text)
        given = (pairs, read_fields(pairs, is_http_1_0=is_http_1_0), len(text))
        if len(text) <= _REMEMBERED and not is_http_1_0:
            self._text, self._given = text, given
        return given

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self.host.app(exchange)
        finally:
            self._exchange = None
            self.since = self.host.ticks
            if not exchange.is_ended:
                self.abort()
            elif not (exchange.keeps_alive and exchange.body_has_come):
                self.close()
            elif self._is_writable:
                self._read_next()


def _bytes_to_read(sock: socket.socket) -> int:
    """Return how many bytes the system has received that were not read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    return count[0]
