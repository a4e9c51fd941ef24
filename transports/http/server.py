"""The HTTP server on which other services reach this node, and the one for its health."""

import asyncio
import socket
import ssl

from runtime import Clock, StartError
from runtime.repeats import Repeats
from runtime.sockets import detect_cut_connection, free_port, listen_address
from runtime.tasks import wait_for_event
from runtime.telemetry import logger
from transports.http.exchange import App, ServerConnection, Serving

_IDLE = 60.0
"""Seconds that a connection may take to send the head of a request: longer than clients keep an idle connection."""
_LOOK_INTERVAL = 5.0
"""Seconds between two looks for connections that are idle for too long."""
_STOP_TIMEOUT = 2.0
"""Seconds that the server may take to stop."""


class HttpServer:
    """An HTTP/1.1 server on one port, in this event loop.

    Args:
        max_body: The size of the largest body, in bytes.
        setting: The environment variable that chooses another port.
        repeats: Logs the failures of `app`.
        certificate: The files of the certificate and its private key, for TLS.
    """

    def __init__(
        self, app: App, max_body: int, host: str, port: int, setting: str, clock: Clock, repeats: Repeats, *,
        certificate: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.host = listen_address(host, setting.replace("__PORT", "__HOST"))
        self.port = free_port(self.host, port, setting)
        self._certificate = certificate
        self._log = logger("http")
        self._repeats = repeats
        self._serving = Serving(app, max_body, clock, repeats)
        self._server: asyncio.Server | None = None
        self._looking: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start listening.

        Raises:
            StartError: if the server cannot be started.
        """
        loop = asyncio.get_running_loop()
        tls = None if self._certificate is None else _tls(*self._certificate)
        sock = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            detect_cut_connection(sock, _IDLE)
            sock.bind((self.host, self.port))
            self._server = await loop.create_server(lambda: ServerConnection(self._serving), sock=sock, backlog=1024, ssl=tls)
        except OSError as error:
            sock.close()
            raise StartError(f"a server on {self.host}:{self.port} cannot be started: {error}") from error
        self._look()

    def _look(self) -> None:
        """Close the connections that are idle for too long, now and again later."""
        for connection in list(self._serving.connections):
            connection.close_if_late(_IDLE)
        self._looking = asyncio.get_running_loop().call_later(_LOOK_INTERVAL, self._look)

    async def stop(self) -> None:
        """Stop listening, after the requests under way have been answered."""
        server, self._server = self._server, None
        if server is None:
            return
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.sleep(0)  # accepts the connections that are there already
        server.close()
        for _ in range(3):
            await asyncio.sleep(0)  # asyncio takes so many turns to hand over a connection that it has accepted
        self._serving.stopping = True
        for connection in list(self._serving.connections):
            connection.close_if_idle()
        if self._serving.connections and not await wait_for_event(self._serving.empty, _STOP_TIMEOUT):
            self._log.warning("the server on port %d did not stop in time", self.port)
            for connection in list(self._serving.connections):
                connection.abort()
            await wait_for_event(self._serving.empty, _STOP_TIMEOUT)
        self._repeats.close()


def _tls(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise StartError(f"the certificate {certificate} with the key {key} cannot be used: {error}") from error
    return context
