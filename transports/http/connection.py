"""One HTTP/1.1 connection to a peer, and the connections to one location, which are kept open between requests."""

import asyncio
import enum
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

from runtime.network import LinkLost
from transports.http.messages import Answer, AnswerReader, Unreadable
from transports.http.writer import Writer

_KEPT = 15.0
"""Seconds to keep an idle connection open. Servers keep their end open for longer."""

Outcome = Answer | LinkLost
"""What becomes of a request that was sent: its answer, or why there will be none."""


class ConnectionState(enum.Enum):
    """What a connection is doing."""

    IDLE = enum.auto()
    """It is open, and waits for a request."""
    BUSY = enum.auto()
    """A request was sent, whose answer is not complete."""
    CLOSED = enum.auto()
    """It is closed, or about to be."""


class Connection(asyncio.Protocol):
    """One connection, for one request at a time.

    Args:
        name: the location, for error messages.
        on_idle: called when an answer is complete, and another request may be sent.
        on_closed: called once, when no further request may be sent.
    """

    def __init__(
        self, name: str, max_body: int, on_idle: Callable[["Connection"], None], on_closed: Callable[["Connection"], None]
    ) -> None:
        self.idle_since = 0.0
        self._name = name
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._reader = AnswerReader(max_body)
        self._transport: asyncio.Transport
        self._state = ConnectionState.CLOSED
        self._ended: Callable[[Outcome], None] | None = None
        self._writer: Writer

    def __repr__(self) -> str:
        return f"<Connection to {self._name} [{self._state.name}]>"

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return self._state is ConnectionState.IDLE and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes, ended: Callable[[Outcome], None]) -> None:
        """Send a request. The connection has to be usable.

        Args:
            head: the complete head, including the empty line.
            ended: called once with the outcome, never before `send` has returned.
        """
        assert self.usable, f"{self!r} takes no request"
        self._state, self._ended = ConnectionState.BUSY, ended
        self._writer.write(head, body)

    def abort(self, reason: str = "it was closed here") -> None:
        """Close the connection now, from which the server learns that nobody waits. A request under way ends with `LinkLost`."""
        self._transport.abort()
        self._close(LinkLost(f"the connection to {self._name} was lost: {reason}"))

    def _close(self, outcome: Outcome) -> None:
        if self._state is not ConnectionState.CLOSED:
            self._state = ConnectionState.CLOSED
            self._on_closed(self)
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(outcome)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._state = cast(asyncio.Transport, transport), ConnectionState.IDLE
        self._writer = Writer(self._transport)

    def pause_writing(self) -> None:
        self._writer.pause()

    def resume_writing(self) -> None:
        self._writer.resume()

    def data_received(self, data: bytes) -> None:
        if self._ended is None:
            self.abort("the peer has sent something that nobody asked for")
            return
        try:
            answer = self._reader.feed(data)
        except Unreadable as error:
            self.abort(f"the answer cannot be read: {error}")
            return
        if answer is not None:
            self._answered(answer)

    def _answered(self, answer: Answer) -> None:
        if not self._reader.reusable or not self._writer.flushed:
            self._transport.abort()  # the peer closes it, or has answered without reading the request to its end
            self._close(answer)
            return
        ended, self._ended, self._state = self._ended, None, ConnectionState.IDLE
        self._on_idle(self)
        if ended is not None:
            ended(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        reason = "the peer has closed it" if exc is None else str(exc) or type(exc).__name__
        complete = self._reader.end() if exc is None and self._ended is not None else None
        self._close(complete or LinkLost(f"the connection to {self._name} was lost: {reason}"))


class Pool:
    """The connections to one location.

    Args:
        connect: opens a usable connection, which calls this pool's `idle` and `closed`.
        limit: the number of connections at a time; 0 for any number.
    """

    def __init__(self, connect: Callable[["Pool"], Awaitable[Connection]], limit: int) -> None:
        self._connect = connect
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._opening = 0
        self._idle: deque[Connection] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Pool open={len(self._connections)} idle={len(self._idle)} waiting={len(self._waiting)}>"

    @property
    def unused(self) -> bool:
        """Whether there are no connections, and nobody waits for one."""
        return not self._connections and not self._opening and not self._waiting

    def take_now(self) -> Connection | None:
        """Return a connection that is usable now, if there is one: the one that was used last."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def take(self) -> Connection:
        """Return a usable connection. Waits while there are as many as there may be. Raises like `connect`."""
        has_waited = False
        while (connection := self.take_now()) is None:
            if not self._limit or len(self._connections) + self._opening < self._limit:
                return await self._open()
            await self._turn(is_next=has_waited)
            has_waited = True
        return connection

    async def _open(self) -> Connection:
        self._opening += 1
        try:
            connection = await self._connect(self)
            self._connections.add(connection)
        except BaseException:  # a cancellation, too: the place is free again
            self._wake()
            raise
        finally:
            self._opening -= 1
        return connection

    async def _turn(self, *, is_next: bool) -> None:
        """Wait until a connection is idle, or a new one may be opened.

        Args:
            is_next: whether it is the caller's turn before that of others: a request that came later has taken its connection.
        """
        turn: asyncio.Future[None] = self._loop.create_future()
        if is_next:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._wake()  # the turn passes to the next
            raise

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def idle(self, connection: Connection) -> None:
        """Take back a connection that may be used again."""
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(_KEPT, self._close_unused)
        self._wake()

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._wake()

    def _close_unused(self) -> None:
        """Close the connections that were idle for too long."""
        self._timer = None
        now = self._loop.time()
        while self._idle and self._idle[0].idle_since + _KEPT <= now:
            self._idle.popleft().abort()
        if self._idle:
            self._timer = self._loop.call_at(self._idle[0].idle_since + _KEPT, self._close_unused)

    def close(self) -> None:
        """Close every connection."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.abort("this node is leaving")
