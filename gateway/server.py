"""The HTTP server of the gateway: it listens, accepts connections, and closes them."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from email.utils import formatdate

from gateway.connection import Connection
from gateway.exchange import Exchange, Progress
from gateway.listener import Listener
from runtime.telemetry import logger

App = Callable[[Exchange], Awaitable[None]]

_HEAD_TIMEOUT = 10
"""Seconds until the head of a request has to be complete, from the answer before or from the start of the connection."""
_BACKLOG = 1024
"""Connections that may wait to be accepted."""
_AT_ONCE = 64
"""Connections that are accepted in one turn of the event loop."""
_LOG_INTERVAL = 10
"""Seconds between two records that the system refuses to open connections."""
_PAUSE = 0.1
"""Seconds without accepting after the system refused to open another connection."""

_log = logger("gateway")


class Server:
    """An HTTP/1.1 server on one port, in this event loop.

    Args:
        app: answers the requests.
        most: how many connections may be open. Further ones wait until another one closes.

    Attributes:
        connections: the open connections.
        progress: what all answers depend on.
        ticks: the seconds since the start.
    """

    def __init__(self, app: App, most: int, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.loop = loop
        self.connections: set[Connection] = set()
        self.ticks = 0
        self.progress = Progress()
        self._most = most
        self._opening = set[asyncio.Task[None]]()
        self._is_accepting = False
        self._log_from = 0

    def __repr__(self) -> str:
        return f"<Server {len(self.connections)} connections{', closing' if self.progress.is_closing else ''}>"

    def start(self, address: str, port: int, *, shared: bool, silence: float) -> None:
        """Start listening.

        Args:
            address: the IP address to listen on.
            shared: whether other processes may listen on the port, too (SO_REUSEPORT).
            silence: the seconds without a sign of life after which the system ends a connection.

        Raises:
            OSError: if the port cannot be had.
        """
        listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((address, port))
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        self.listener = Listener(listening)
        self.listener.detect_cut_connections(silence)
        self._listening = listening
        self._tick()
        self.make_room()

    def _tick(self) -> None:
        """Once a second: renew the date, and close the connections whose clients have not sent the head of a request in time."""
        self._timer = self.loop.call_later(1.0, self._tick)
        self.ticks += 1
        self.progress.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        for connection in list(self.connections):
            if connection.is_idle and self.ticks - connection.since > _HEAD_TIMEOUT:
                connection.close()

    def make_room(self) -> None:
        """Accept connections that have waited until one closed."""
        if not self._is_accepting and self._listening.fileno() >= 0 and self._has_room():
            self._is_accepting = True
            self.loop.add_reader(self._listening, self._accept)

    def _stop_accepting(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            self.loop.remove_reader(self._listening)

    def _has_room(self) -> bool:
        return len(self.connections) + len(self._opening) < self._most

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._has_room():
                self._stop_accepting()  # until one closes
                return
            try:
                accepted, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # too many open files, or no memory
                if self.ticks >= self._log_from:
                    self._log_from = self.ticks + _LOG_INTERVAL
                    _log.log(logging.ERROR, "the gateway cannot accept a connection: %s", error)
                self._stop_accepting()
                self.loop.call_later(_PAUSE, self.make_room)
                return
            opening = self.loop.create_task(self._open(accepted))
            self._opening.add(opening)
            opening.add_done_callback(self._opened)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening.discard(opening)
        self.make_room()

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: Connection(self), accepted)
        except OSError:  # the client has gone already
            accepted.close()

    async def stop(self, seconds: float) -> bool:
        """Stop listening, and close each connection when its request has been answered.

        Args:
            seconds: how long the answers may take. Then the connections end.

        Returns:
            Whether all requests were answered.
        """
        self.progress.is_closing = True
        self._stop_accepting()
        self._listening.close()
        deadline = self.loop.time() + seconds
        while (self.connections or self._opening) and self.loop.time() < deadline:
            await asyncio.sleep(0)  # what has come is read
            for connection in list(self.connections):
                connection.close_if_idle()
            await asyncio.sleep(0.01)
        self._timer.cancel()
        left = len(self.connections)
        while self.connections or self._opening:
            for connection in list(self.connections):
                connection.abort()
            await asyncio.sleep(0)
        return not left
