"""A request of a client, and the answer to it."""

import asyncio
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from gateway.http1 import BadRequest, Body, EndlessBody, Pairs, RequestLine, response_head
from gateway.problems import Problem

MOST_BUFFERED = 64 * 1024
"""Bytes of a client that wait to be used. Beyond that, its connection is not read."""


GivenFields = tuple[Pairs, dict[bytes, bytes], int]
"""The header fields of a request as they came, by their names, and the bytes that they take."""


class Progress:
    """What all answers depend on.

    Attributes:
        date: the field `Date`, with its line end.
        is_closing: whether every answer closes its connection.
    """

    __slots__ = ("date", "is_closing")

    def __init__(self) -> None:
        self.date = b""
        self.is_closing = False


class Wire(Protocol):
    """The connection of a client, as a request on it sees it.

    Attributes:
        peer: the address at the other end.
        source: the address or network that its limits are counted for, unless it is a proxy's.
    """

    loop: asyncio.AbstractEventLoop
    progress: Progress
    peer: str
    source: str

    def write(self, data: bytes) -> None: ...
    def write_end(self) -> None: ...
    async def until_writable(self) -> None: ...
    def stop_reading(self) -> None: ...
    def read_on(self) -> None: ...


class Exchange:
    """A request of a client, and the answer to it.

    Attributes:
        method: the method.
        raw_path: the path, not decoded.
        query: the query, not decoded.
        fields: the header fields by their lower-case names. The values of a list field are joined.
        pairs: the same, as they came.
        fields_size: the bytes that they took.
        is_http_1_0: whether the client speaks HTTP/1.0.
        peer: the address at the other end of the connection.
        source: the address or network that the client's limits are counted for.
        problem: why the request cannot be read, or None.
        task: the task that makes the answer.
        is_started: whether the head of the answer has been sent.
        is_gone: whether the client has disconnected.
        cancels: whether `task` is to be cancelled if the client disconnects.
        was_cancelled: whether it was.
        challenge: what `WWW-Authenticate` asks for, if that is not `Bearer`.
        has_cookie: whether the access token came in a cookie.
        request_id: the id of the request.
        route: the route that it matches, such as `GET /rides/{}`, without the method; empty if none.
        trace: the W3C `traceparent` of the client, or of the trace that begins here.
        status: the status of the answer; 0 until it has begun.
        sent: the bytes of its body so far.
    """

    __slots__ = (
        "_body",
        "_continue",
        "_is_broken",
        "_is_chunked",
        "_is_malformed",
        "_is_read",
        "_pieces",
        "_size",
        "_waiter",
        "_wire",
        "cancels",
        "challenge",
        "fields",
        "fields_size",
        "has_cookie",
        "is_ended",
        "is_gone",
        "is_http_1_0",
        "is_started",
        "keeps_alive",
        "method",
        "pairs",
        "peer",
        "problem",
        "query",
        "raw_path",
        "request_id",
        "route",
        "sent",
        "source",
        "status",
        "task",
        "trace",
        "was_cancelled",
    )

    task: "asyncio.Task[None]"
    service = "gateway"
    node = ""
    """Log records name the node of their process."""

    def __init__(
        self, wire: Wire, line: RequestLine, given: GivenFields, body: Body | None, problem: Problem | None = None
    ) -> None:
        self.method, self.raw_path, self.query, self.is_http_1_0 = line
        self.pairs, self.fields, self.fields_size = given
        self.peer = wire.peer
        self.source = wire.source
        self.problem = problem
        self.request_id = self.trace = self.route = ""
        self.status = self.sent = 0
        self.challenge: bytes | None = None
        self.has_cookie = False
        self.is_started = self.is_ended = self.is_gone = self.cancels = self.was_cancelled = False
        self.keeps_alive = problem is None and _keeps_alive(self.fields.get(b"connection"), is_http_1_0=self.is_http_1_0)
        self._wire = wire
        self._body = body
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_broken = self._is_malformed = self._is_read = self._is_chunked = False
        self._waiter: asyncio.Future[None] | None = None
        self._continue = body is not None and not self.is_http_1_0 and self.fields.get(b"expect", b"").lower() == b"100-continue"

    def __repr__(self) -> str:
        state = "answered" if self.is_ended else "being answered" if self.is_started else "waiting"
        return f"<Exchange {self.method} {self.path[:80]} [{state}{', client gone' if self.is_gone else ''}]>"

    @property
    def path(self) -> str:
        """The decoded path, for people."""
        return unquote_to_bytes(self.raw_path).decode(errors="replace")

    @property
    def is_unwanted(self) -> bool:
        """Whether the client waits to be asked for its body, and was not."""
        return self._continue

    @property
    def body_has_come(self) -> bool:
        """Whether the whole body has come, or there is none."""
        return self._body is None or self._body.is_complete

    def whole_body(self) -> bytes | None:
        """Return the body if all of it has come and none of it was received, else None."""
        if not self.body_has_come or self._is_read:
            return None
        self._is_read = True
        return self._take()

    def _take(self) -> bytes:
        pieces, self._pieces, self._size = self._pieces, [], 0
        self._wire.read_on()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def receive(self) -> dict[str, Any]:
        """Return the next part of the body, and after the last one wait until the client disconnects (ASGI)."""
        if self._continue and not self._pieces and not self.body_has_come and not self.is_started:
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._continue = False
        while True:
            if self._pieces or (self.body_has_come and not self._is_read):
                self._is_read = self.body_has_come
                return {"type": "http.request", "body": self._take(), "more_body": not self._is_read}
            if self.is_gone or self._is_broken or self._is_malformed:
                return {"type": "http.disconnect"}
            self._waiter = self._wire.loop.create_future()
            await self._waiter

    def respond(self, status: int, pairs: Pairs, body: bytes, more: bytes = b"") -> None:
        """Send the answer in one piece.

        Args:
            status: the status.
            pairs: header fields without `content-length`, `date`, and line ends in the values.
            body: the body. It is not sent if the method is HEAD.
            more: further header fields as bytes, each with its line end.
        """
        if status >= 200 and status not in (204, 304):
            more += b"content-length: %d\r\n" % len(body)
        self._begin(status, pairs, more, b"" if self.method == "HEAD" else body)
        self.is_ended = True
        if isinstance(self._body, EndlessBody):
            self._is_malformed = False  # what follows is received and dropped, so that the client sees the answer
            self._wire.write_end()

    def start(self, status: int, pairs: Pairs, more: bytes = b"") -> None:
        """Send the head of an answer that follows in pieces."""
        if self.is_http_1_0:
            self.keeps_alive = False
        elif not any(name == b"content-length" for name, _ in pairs):
            self._is_chunked = True
            more += b"transfer-encoding: chunked\r\n"
        self._begin(status, pairs, more, b"")

    def _begin(self, status: int, pairs: Pairs, more: bytes, body: bytes) -> None:
        wire = self._wire
        if self.keeps_alive and (wire.progress.is_closing or self._continue or (b"connection", b"close") in pairs):
            self.keeps_alive = False
        if not self.keeps_alive:
            if (b"connection", b"close") not in pairs:
                more += b"connection: close\r\n"
        elif self.is_http_1_0:
            more += b"connection: keep-alive\r\n"
        self.is_started = True
        self.status = status
        self.sent += len(body)
        if status == 401 and self.challenge is not None:
            pairs = [(name, self.challenge if name == b"www-authenticate" else value) for name, value in pairs]
        wire.write(response_head(status, pairs, wire.progress.date + more) + body)

    async def write(self, part: bytes) -> None:
        """Send a piece of the answer. Wait while the client reads too slowly. Nothing happens if it has disconnected."""
        if part and self.method != "HEAD":
            self.sent += len(part)
            self._wire.write(b"%x\r\n%b\r\n" % (len(part), part) if self._is_chunked else part)
        await self._wire.until_writable()

    def end(self) -> None:
        """Send the end of an answer that was sent in pieces."""
        if self._is_chunked and self.method != "HEAD":
            self._wire.write(b"0\r\n\r\n")
        self.is_ended = True

    def feed(self, data: bytes) -> bytes:
        """Take the part of the body that `data` begins with, and return what comes after the body."""
        assert self._body is not None
        self._continue = False
        if self._is_malformed:
            return b""
        try:
            part, rest = self._body.feed(data)
        except BadRequest:
            self._body, self._is_malformed = EndlessBody(), True
            self.keeps_alive = False
            self._wake()
            return b""
        if part:
            self._pieces.append(part)
            self._size += len(part)
            if self._size > MOST_BUFFERED:
                self._wire.stop_reading()
        self._wake()
        return rest

    def break_body(self) -> None:
        """Note that the body will never be complete."""
        self._is_broken = True
        self.keeps_alive = False
        self._wake()

    def lose_client(self) -> None:
        """Note that the client has disconnected."""
        self.is_gone = True
        self.keeps_alive = False
        self._wake()
        if self.cancels and not self.was_cancelled:
            self.was_cancelled = True
            self.task.cancel()

    def cancel_if_gone(self) -> None:
        """Cancel `task` if the client disconnects, or has disconnected."""
        self.cancels = True
        if self.is_gone:
            self.lose_client()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _keeps_alive(connection: bytes | None, *, is_http_1_0: bool) -> bool:
    """Return whether the connection stays open after the answer, by the request's field `Connection` (RFC 9112, section 9.3)."""
    if connection is None:
        return not is_http_1_0
    options = [option.strip() for option in connection.lower().split(b",")]
    return b"close" not in options and (not is_http_1_0 or b"keep-alive" in options)
