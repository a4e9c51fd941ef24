"""HTTP clients of a gateway in the same process: each request goes through the gateway's own HTTP code, and through no socket."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from typing import Any

import h11
import httpx

from gateway.connection import Connection
from gateway.exchange import Progress
from gateway.http_app import HttpApp
from gateway.service import Gateway
from runtime import Context

SignToken = Callable[[str, Sequence[str], Sequence[str]], str]
"""Returns an access token of a user, given the user's id, roles, and scopes."""


class SocketlessGateway(Gateway):
    """A gateway that does not listen."""

    async def on_start(self, ctx: Context) -> None:
        await self.open(ctx)

    async def on_stop(self, ctx: Context) -> None:
        self.draining = True
        self.subscribers.end()


class Client(httpx.AsyncClient):
    """An HTTP client of the running project. `client.as_user("u1", roles="rider")` acts as a user."""

    def __init__(self, gateway: Gateway, sign: SignToken, scheme: str, auth: httpx.Auth | None = None) -> None:
        super().__init__(base_url="https://project.test", transport=_InProcess(gateway.app), auth=auth)
        self._gateway = gateway
        self._sign = sign
        self._scheme = scheme

    def as_user(self, user: str, *, roles: str | Sequence[str] = (), scopes: str | Sequence[str] = ()) -> "Client":
        """Return a client whose requests carry a valid access token of a user.

        Args:
            user: the user's id.
            roles: the user's role, or several.
            scopes: what the token may be used for.
        """
        auth = _As(lambda: f"{self._scheme} {self._sign(user, listed(roles), listed(scopes))}")
        return Client(self._gateway, self._sign, self._scheme, auth)


def listed(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return several texts, or the only one, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


class _As(httpx.Auth):
    """Adds a new access token to each request, so that none expires however the clock is moved."""

    def __init__(self, credentials: Callable[[], str]) -> None:
        self._credentials = credentials

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self._credentials()
        yield request


class _InProcess(httpx.AsyncBaseTransport):
    """Gives each request its own connection to the gateway."""

    def __init__(self, app: HttpApp) -> None:
        self.app = app
        self.connections: set[Connection] = set()
        self.progress = Progress()
        self.ticks = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running event loop."""
        return asyncio.get_running_loop()

    def make_room(self) -> None:
        """Do nothing: there is no limit."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response, whose body may follow in pieces."""
        connection = Connection(self)
        pipe = _Pipe(connection)
        connection.connection_made(pipe)
        http = h11.Connection(h11.CLIENT)
        sent = http.send(h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)) or b""
        content = await request.aread()
        if content:
            sent += http.send(h11.Data(content)) or b""
        sent += http.send(h11.EndOfMessage()) or b""
        connection.data_received(sent)
        try:
            event = await _next(http, pipe)
            while isinstance(event, h11.InformationalResponse):
                event = await _next(http, pipe)
        except BaseException as error:
            pipe.abort()
            if isinstance(error, h11.RemoteProtocolError):
                raise httpx.RemoteProtocolError(str(error), request=request) from error
            raise
        assert isinstance(event, h11.Response)
        return httpx.Response(event.status_code, headers=list(event.headers), stream=_Body(http, pipe))


class _Body(httpx.AsyncByteStream):
    def __init__(self, http: h11.Connection, pipe: "_Pipe") -> None:
        self._http = http
        self._pipe = pipe

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while isinstance(event := await _next(self._http, self._pipe), h11.Data):
            yield bytes(event.data)

    async def aclose(self) -> None:
        self._pipe.abort()


async def _next(http: h11.Connection, pipe: "_Pipe") -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await pipe.read())
    return event


class _Pipe(asyncio.Transport):
    """The client's end of a connection. It reads the bytes that the gateway writes."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 0)})
        self._protocol = protocol
        self._written: asyncio.Queue[bytes] = asyncio.Queue()
        self._is_closing = False

    async def read(self) -> bytes:
        """Return what the gateway has written next; nothing once it has closed the connection."""
        if self._is_closing and self._written.empty():
            return b""
        return await self._written.get()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._written.put_nowait(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def write_eof(self) -> None:
        self._written.put_nowait(b"")

    def pause_reading(self) -> None:
        """Do nothing: all of a request has been sent at once."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._written.put_nowait(b"")
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()
