"""The answering side: what other services ask of this node, over granian (RSGI)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from runtime import StartError
from runtime.sockets import free_port, until_listening

_IDLE = 60_000
"""Milliseconds that a connection may take to bring a request's head: longer than clients keep an unused one."""
_UNWATCHED = 0.05
"""Seconds for which it is not looked whether the one who asks is still there: that costs more than most requests."""
_LAST_WORD = 2.0

T = TypeVar("T")

Pairs = list[tuple[str, str]]


class Scope(Protocol):
    """A request's head, as granian gives it (RSGI)."""

    client: str
    method: str
    path: str
    query_string: str

    @property
    def headers(self) -> Any: ...


class Exchange(Protocol):
    """A request's body and its answer, as granian gives them (RSGI)."""

    async def __call__(self) -> bytes: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def client_disconnect(self) -> None: ...
    def response_bytes(self, status: int, headers: Pairs, body: bytes) -> None: ...


App = Callable[[Scope, Exchange], Awaitable[None]]


class HttpServer:
    """One listening socket in this event loop.

    Args:
        setting: the environment variable that chooses another port.
        certificate: its file and its key's, for TLS.
    """

    def __init__(self, app: App, host: str, port: int, setting: str, *, certificate: tuple[str, str] | None = None) -> None:
        self.host = host
        self.port = free_port(host, port, setting)
        self._app = app
        self._certificate = certificate
        self._log = logging.getLogger("callboard.http")
        self._serving: asyncio.Task[None] | None = None

    async def __rsgi__(self, scope: Scope, exchange: Exchange) -> None:
        try:
            await self._app(scope, exchange)
        except Exception as error:
            self._log.error("answering %s %s failed: %r", scope.method, scope.path, error, exc_info=error)
            raise

    async def start(self) -> None:
        """Listens.

        Raises:
            StartError: that is not possible.
        """
        files = None if self._certificate is None else tuple(map(Path, self._certificate))
        try:
            self._server = Server(
                self, address=self.host, port=self.port, interface=Interfaces.RSGI, http=HTTPModes.http1, websockets=False, log_enabled=False,
                backlog=1024, backpressure=16_384, http1_settings=HTTP1Settings(header_read_timeout=_IDLE),
                ssl_cert=None if files is None else files[0], ssl_key=None if files is None else files[1],
            )  # fmt: skip
        except Exception as error:  # granian has no class for a certificate that it cannot read
            raise StartError(f"a server on {self.host}:{self.port} cannot be started: {error}") from error
        self._serving = asyncio.create_task(self._server.serve())
        await until_listening(self.host, self.port, self._serving)

    async def stop(self) -> None:
        """Listens no more, once what is under way has been answered."""
        serving, self._serving = self._serving, None
        if serving is None:
            return
        self._server.stop()  # type: ignore[no-untyped-call]  # granian leaves it untyped
        done, _ = await asyncio.wait((serving,), timeout=_LAST_WORD)
        if not done:
            self._log.warning("the server on port %d did not stop in time", self.port)


async def until_gone(answered: "asyncio.Future[T]", exchange: Exchange, gone: Callable[[], None]) -> T:
    """Waits for an answer. If the one who asks goes away meanwhile, `gone` is called, which is to end the waiting."""
    loop = answered.get_loop()
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        await exchange.client_disconnect()
        gone()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(_UNWATCHED, begin)
    try:
        return await answered
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
