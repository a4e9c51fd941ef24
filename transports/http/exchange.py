"""The connections of an HTTP/1.1 server: requests in, answers out, one exchange at a time on each connection."""

import asyncio
import enum
import logging
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from runtime import Clock
from runtime.repeats import Repeats, fault
from runtime.telemetry import logger
from transports.http.messages import HeaderReader, Headers, with_length
from transports.http.writer import Writer

_MOST_HEAD = 400 * 1024
"""Bytes of the head of a request."""
_MOST_DROPPED = 4
"""How many times the size of the largest body are read of a request that was refused before its body had come."""
_BODY_TIMEOUT = 10.0
"""Seconds that the body of a request may take to arrive."""
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


App = Callable[["Exchange"], Callable[[], None] | None]
"""Looks at a request whose body may not have come yet. Returns what takes the request when it is complete, or its body has not
come in time; None if the request was answered or refused."""


class Serving:
    """What the connections of one server share.

    Args:
        repeats: Logs the failures of `app`.

    Attributes:
        max_body: The size of the largest body, in bytes.
        connections: The open connections.
        stopping: Whether each connection ends after the next answer.
        empty: Set when the last connection has ended.
    """

    def __init__(self, app: App, max_body: int, clock: Clock, repeats: Repeats) -> None:
        self.app = app
        self.max_body = max_body
        self.connections: set[ServerConnection] = set()
        self.stopping = False
        self.empty = asyncio.Event()
        self._clock = clock
        self._repeats = repeats
        self._dated = 0, b""

    def date(self) -> bytes:
        """Return the field that every answer has (RFC 9110, section 6.6.1)."""
        now = int(self._clock.timestamp())
        if self._dated[0] != now:
            self._dated = now, f"date: {formatdate(now, usegmt=True)}\r\n".encode()
        return self._dated[1]

    def failed(self, exchange: "Exchange", error: Exception) -> None:
        """Answer a request with 500, because `app` has failed."""
        log, message = logger("http"), "answering %s %s failed: %r"
        self._repeats.log(log, logging.ERROR, fault(error), message, exchange.method, exchange.path, error, exc_info=error)
        exchange.answer(500, b"", b"")


class ConnectionState(enum.Enum):
    """What a connection is doing."""

    HEAD = enum.auto()
    """It waits for the head of a request, or for the rest of it."""
    BODY = enum.auto()
    """It waits for the rest of a request's body."""
    DROPPING = enum.auto()
    """It drops the rest of the body of a request that was answered or refused."""
    ANSWERING = enum.auto()
    """A request is complete, and has no answer yet."""
    WRITING = enum.auto()
    """An answer is written as fast as the client reads it."""
    CLOSED = enum.auto()
    """It is closed, or about to be."""


class Exchange:
    """A request, and where its answer goes.

    Attributes:
        path: The path, decoded.
        query: The query string, as it came.
        body: The body; None if it has not come, or not in time.
        gone: Called if the client disconnects before the answer.
    """

    __slots__ = ("_connection", "body", "fields", "gone", "method", "path", "query")

    def __init__(self, connection: "ServerConnection", method: str, url: str, fields: Headers) -> None:
        path, _, self.query = url.partition("?")
        self._connection = connection
        self.method = method
        self.path = unquote(path) if "%" in path else path
        self.fields = fields
        self.body: bytes | None = None
        self.gone: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.method} {self.path}>"

    @property
    def client(self) -> str:
        """The address of the client."""
        return self._connection.client

    def answer(self, status: int, fields: bytes, body: bytes) -> None:
        """Answer the request now, unless the client is gone or it was answered before.

        What is left of its body is read and dropped: the connection would break before the client has read the answer.

        Args:
            fields: the header fields, each with its line end.
        """
        self._connection.answer(self, status, fields, body)

    def refuse(self, status: int, fields: bytes, body: bytes) -> None:
        """Answer the request when all of its body has come. Clients that write before they read get this answer, too."""
        self._connection.refuse(self, status, fields, body)


class ServerConnection(asyncio.Protocol):
    """A connection that was accepted.

    A request that comes before the answer to the last one is not read: the connection ends after that answer (RFC 9112,
    section 9.3.2). The methods named `on_…` are called by the parser.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._loop = asyncio.get_running_loop()
        self._headers = HeaderReader()
        self.on_header = self._headers.add
        self._parser = HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._writer: Writer
        self._keep = True
        self._timer: asyncio.TimerHandle | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"<ServerConnection from {self.client} [{self._state.name}]>"

    def _begin(self) -> None:
        """Wait for a request."""
        self._state = ConnectionState.HEAD
        self._exchange: Exchange | None = None
        self._url = b""
        self._parts: list[bytes] = []
        self._received = self._size = 0
        self._complete = self._answered = False
        self._refusal: tuple[int, bytes, bytes] | None = None
        self._take: Callable[[], None] | None = None
        self._waits_since = self._loop.time()

    @property
    def client(self) -> str:
        """The address of the client."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else "?"

    # Requests

    def on_message_begin(self) -> None:
        if self._exchange is not None:
            raise ValueError("the last request has no answer yet")

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_headers_complete(self) -> None:
        fields = self._headers.take()
        self._exchange = Exchange(self, self._parser.get_method().decode(), self._url.decode("latin-1"), fields)
        self._keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._state is not ConnectionState.DROPPING:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self._headers.take()  # trailers (RFC 9112, section 7.1.2)
        self._complete = True

    def data_received(self, data: bytes) -> None:
        if self._state in (ConnectionState.ANSWERING, ConnectionState.WRITING):
            if data.strip(b"\r\n"):  # empty lines may follow a request (RFC 9112, section 2.2)
                self._keep = False
            return
        if self._state is ConnectionState.CLOSED:
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            if not self._ignores_upgrade:
                self._unreadable(400)
                return
            self._keep = False
        except HttpParserError:
            if not self._complete:
                self._unreadable(400)
                return
            self._keep = False
        exchange = self._exchange
        if exchange is None:
            if self._received > _MOST_HEAD:
                self._unreadable(431)
            return
        if self._state is ConnectionState.HEAD:
            self._accept(exchange)
        if self._exchange is not exchange:
            return  # it was answered
        if self._complete:
            self._completed(exchange)
        elif self._too_much:
            self._end()

    @property
    def _ignores_upgrade(self) -> bool:
        """Whether a request that offers an upgrade can be answered without it (RFC 9110, section 7.8): the parser reads no body of it."""
        exchange = self._exchange
        if exchange is None or exchange.method == "CONNECT":
            return False
        return "transfer-encoding" not in exchange.fields and exchange.fields.get("content-length", "0") == "0"

    @property
    def _too_much(self) -> bool:
        """Whether more has come than anybody needs to send. A peer may finish a request that is refused, if it is in time."""
        if self._received > 2 * self._size + _MOST_HEAD:
            return True
        most = self._serving.max_body * (_MOST_DROPPED if self._answered else 1)
        return self._size > most and self._refusal is None

    def _accept(self, exchange: Exchange) -> None:
        """Take the head of a request."""
        self._state = ConnectionState.BODY
        try:
            self._take = self._serving.app(exchange)
        except Exception as error:
            self._serving.failed(exchange, error)
        if self._complete:
            return
        self._timer = self._loop.call_later(_BODY_TIMEOUT, self._late, exchange)
        if exchange.fields.get("expect", "").lower() == "100-continue":  # RFC 9110, section 10.1.1
            if self._take is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self._late(exchange)  # the body does not come

    def _completed(self, exchange: Exchange) -> None:
        """Take the end of a request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._state is ConnectionState.DROPPING:
            self._dropped(exchange)
            return
        self._state = ConnectionState.ANSWERING
        exchange.body = b"".join(self._parts)
        self._serve(exchange)

    def _late(self, exchange: Exchange) -> None:
        """Stop waiting for the rest of a request."""
        if self._state is ConnectionState.CLOSED:
            return
        self._timer, self._keep, self._complete = None, False, True
        if self._state is ConnectionState.DROPPING:
            self._dropped(exchange)
        else:
            self._state = ConnectionState.ANSWERING
            self._serve(exchange)

    def _serve(self, exchange: Exchange) -> None:
        take, self._take, self._parts = self._take, None, []
        if take is not None:
            try:
                take()
            except Exception as error:
                self._serving.failed(exchange, error)

    def _dropped(self, exchange: Exchange) -> None:
        """Go on after the body of a request was dropped."""
        refusal, self._refusal = self._refusal, None
        if refusal is None:
            self._next()
        else:
            self.answer(exchange, *refusal)

    def _unreadable(self, status: int) -> None:
        """Refuse what is not a request."""
        self._keep = False
        if not self._answered:
            self._write(status, b"", b"", with_body=True)
        self._next()

    # Answers

    def answer(self, exchange: Exchange, status: int, fields: bytes, body: bytes) -> None:
        """Answer a request now, unless the client is gone or it was answered before."""
        if exchange is not self._exchange or self._answered or self._state is ConnectionState.CLOSED:
            return
        exchange.gone, self._answered = None, True
        self._write(status, fields, body, with_body=exchange.method != "HEAD")
        if self._complete:
            self._next()
        else:
            self._state, self._parts = ConnectionState.DROPPING, []

    def refuse(self, exchange: Exchange, status: int, fields: bytes, body: bytes) -> None:
        """Answer a request when all of its body has come."""
        if self._complete:
            self.answer(exchange, status, fields, body)
        else:
            self._state, self._parts, self._refusal = ConnectionState.DROPPING, [], (status, fields, body)

    def _write(self, status: int, fields: bytes, body: bytes, *, with_body: bool) -> None:
        self._keep = self._keep and not self._serving.stopping
        close = b"" if self._keep else b"connection: close\r\n"
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        head = with_length(b"%b%b%b%b" % (line, fields, self._serving.date(), close), body)
        self._writer.write(head, body if with_body else b"")

    def _next(self) -> None:
        """Go on after an answer."""
        if not self._writer.handed_over:
            self._state = ConnectionState.WRITING
        elif self._keep:
            self._begin()
        else:
            self._end()

    def _end(self) -> None:
        """Close the connection when everything is written."""
        self._state = ConnectionState.CLOSED
        self._transport.close()

    # The server

    def close_if_idle(self) -> None:
        """Close the connection if it waits for a request, of which nothing has come."""
        if self._state is ConnectionState.HEAD and not self._received and self._writer.flushed:
            self._end()

    def close_if_late(self, seconds: float) -> None:
        """Close the connection if it has waited for the head of a request for that long."""
        if self._state is ConnectionState.HEAD and self._writer.flushed and self._loop.time() - self._waits_since >= seconds:
            self._end()

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._writer = Writer(self._transport)
        self._serving.connections.add(self)
        self._serving.empty.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = ConnectionState.CLOSED
        self._serving.connections.discard(self)
        if not self._serving.connections:
            self._serving.empty.set()
        exchange, self._exchange = self._exchange, None
        if self._timer is not None:
            self._timer.cancel()
        if exchange is not None and exchange.gone is not None:
            exchange.gone()
            exchange.gone = None

    def pause_writing(self) -> None:
        self._writer.pause()

    def resume_writing(self) -> None:
        self._writer.resume()
        if self._state is ConnectionState.WRITING and self._writer.handed_over:
            self._next()
