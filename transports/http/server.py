"""The HTTP server on which other services reach this node: granian with its RSGI interface."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from runtime import StartError
from runtime.repeats import Repeats, fault
from runtime.sockets import free_port, listen_address, until_listening
from runtime.tasks import watching
from runtime.telemetry import logger

_IDLE = 60_000
"""Milliseconds that a connection may take to send the head of a request: longer than clients keep an idle connection."""
_UNWATCHED = 0.05
"""Seconds before the server watches for a client that disconnects: watching costs more than most requests."""
_STOP_TIMEOUT = 2.0
"""Seconds that the server may take to stop."""

T = TypeVar("T")

Pairs = list[tuple[str, str]]


class Scope(Protocol):
    """The head of a request, as granian passes it (RSGI)."""

    client: str
    method: str
    path: str
    query_string: str

    @property
    def headers(self) -> Any: ...


class Exchange(Protocol):
    """The body of a request and its answer, as granian passes them (RSGI)."""

    async def __call__(self) -> bytes: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def client_disconnect(self) -> None: ...
    def response_bytes(self, status: int, headers: Pairs, body: bytes) -> None: ...


App = Callable[[Scope, Exchange], Awaitable[None]]


class HttpServer:
    """An HTTP/1.1 server on one port, in this event loop.

    Args:
        setting: The environment variable that chooses another port.
        repeats: Logs the failures of `app`.
        certificate: The files of the certificate and its private key, for TLS.
    """

    def __init__(
        self, app: App, host: str, port: int, setting: str, repeats: Repeats, *, certificate: tuple[str, str] | None = None
    ) -> None:
        self.host = listen_address(host, setting.replace("__PORT", "__HOST"))
        self.port = free_port(self.host, port, setting)
        self._app = app
        self._certificate = certificate
        self._log = logger("http")
        self._repeats = repeats
        self._serving: asyncio.Task[None] | None = None

    async def __rsgi__(self, scope: Scope, exchange: Exchange) -> None:
        try:
            await self._app(scope, exchange)
        except Exception as error:
            self._repeats.log(
                self._log,
                logging.ERROR,
                fault(error),
                "answering %s %s failed: %r",
                scope.method,
                scope.path,
                error,
                exc_info=error,
            )
            raise

    async def start(self) -> None:
        """Start listening.

        Raises:
            StartError: if the server cannot be started.
        """
        files = None if self._certificate is None else tuple(map(Path, self._certificate))
        try:
            self._server = Server(
                self, address=self.host, port=self.port, interface=Interfaces.RSGI, http=HTTPModes.http1, websockets=False, log_enabled=False,
                backlog=1024, backpressure=16_384, http1_settings=HTTP1Settings(header_read_timeout=_IDLE),
                ssl_cert=None if files is None else files[0], ssl_key=None if files is None else files[1],
            )  # fmt: skip
        except Exception as error:  # granian raises a plain Exception for a certificate that it cannot read
            raise StartError(f"a server on {self.host}:{self.port} cannot be started: {error}") from error
        self._serving = asyncio.create_task(self._server.serve())
        await until_listening(self.host, self.port, self._serving)

    async def stop(self) -> None:
        """Stop listening, after the requests under way have been answered."""
        serving, self._serving = self._serving, None
        if serving is None:
            return
        self._server.stop()  # type: ignore[no-untyped-call]  # granian leaves it untyped
        done, _ = await asyncio.wait((serving,), timeout=_STOP_TIMEOUT)
        if not done:
            self._log.warning("the server on port %d did not stop in time", self.port)
        self._repeats.close()


async def until_gone(answered: "asyncio.Future[T]", exchange: Exchange, gone: Callable[[], None]) -> T:
    """Wait for an answer. If the client disconnects first, `gone` is called; it has to complete `answered`."""

    async def watch() -> None:
        await exchange.client_disconnect()
        gone()

    with watching(watch, _UNWATCHED):
        return await answered
