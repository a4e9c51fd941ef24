"""The client side: requests to one location at a time, over connections that are kept open."""

import io
import socket
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from yarl import URL

from runtime.files import Watched
from runtime.network import LinkLost, PeerUnreachable, Unsendable
from runtime.sockets import detect_cut_connection
from runtime.telemetry import logger
from transports.http.settings import HttpSettings
from transports.sockets import tls_context

_KEPT = 15.0
"""Seconds to keep an idle connection open. Servers keep their end open for longer."""

_AT_ONCE = 1 << 20
"""Bytes. A larger body is written piece by piece."""


class Untrusted(PeerUnreachable):
    """The peer's certificate cannot be trusted. Nothing was sent."""


class Location(NamedTuple):
    """An IP address and port at which a service may be reached, found through one of its URLs.

    Attributes:
        base: The URL with the IP address in place of the host name.
        name: The host name.
        authority: The host name and port.
    """

    base: URL
    name: str
    authority: str

    def __str__(self) -> str:
        return f"{self.authority} ({self.base.host})" if self.base.host != self.name else self.authority


class Answer(NamedTuple):
    """The answer to an HTTP request. `kind` is its media type."""

    status: int
    fields: Mapping[str, str]
    body: bytes
    kind: str


class Client:
    """Makes HTTP/1.1 requests. Cancelling one closes its connection, from which the server learns of it."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._tls = tls_context(settings.ca_file, "transport.http.ca_file")
        self._ca_file = None if settings.ca_file is None else Watched(settings.ca_file)
        self._urls: dict[tuple[Location, str], URL] = {}
        self._session = self._pool(settings.max_connections)
        self._watching = self._pool(0)
        """Separate from the pool of requests, so that questions that wait for news do not use up its connections."""

    def _pool(self, limit: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, limit_per_host=limit, keepalive_timeout=_KEPT, ssl=self._tls, socket_factory=self._socket
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )

    def _socket(self, info: tuple[int, int, int, str, object]) -> socket.socket:
        if self._ca_file is not None and self._ca_file.changed():
            try:
                self._tls.load_verify_locations(self._settings.ca_file)
            except OSError as error:
                logger("http").error("%s has changed, and cannot be used: %s", self._settings.ca_file, error)
        sock = socket.socket(info[0], info[1], info[2])
        detect_cut_connection(sock, self._settings.heartbeat)
        return sock

    async def close(self) -> None:
        await self._session.close()
        await self._watching.close()

    async def post(self, location: Location, path: str, fields: dict[str, str], body: bytes) -> Answer:
        """Make a request. Raises like `_request`."""
        return await self._request(self._session, "POST", location, path, fields, body)

    async def get(self, location: Location, path: str, fields: dict[str, str]) -> Answer:
        """Ask for something that the server may take its time to answer. Raises like `_request`."""
        return await self._request(self._watching, "GET", location, path, fields, None)

    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        location: Location,
        path: str,
        fields: dict[str, str],
        body: bytes | None,
    ) -> Answer:
        """Make a request to a location.

        Raises:
            PeerUnreachable: if there is no connection, so that nothing was sent.
            Untrusted: if the peer's certificate cannot be trusted, so that nothing was sent.
            LinkLost: if the connection is lost before the answer is complete, or the answer is too large.
            Unsendable: if a header contains a character that HTTP does not allow.
        """
        url = self._urls.get((location, path))
        if url is None:
            if len(self._urls) > 4096:  # addresses change over time
                self._urls.clear()
            url = self._urls[location, path] = location.base.join(URL(path, encoded=True))
        fields["host"] = location.authority
        data = body if body is None or len(body) <= _AT_ONCE else io.BytesIO(body)
        try:
            async with session.request(
                method, url, headers=fields, data=data, allow_redirects=False, server_hostname=location.name
            ) as answer:
                return Answer(answer.status, answer.headers, await self._read(answer), answer.content_type)
        except aiohttp.ClientConnectorCertificateError as error:
            raise Untrusted(f"the certificate of {location} is not to be trusted: {error.certificate_error}") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise PeerUnreachable(f"{location} cannot be reached: {_reason(error)}") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # uvloop raises RuntimeError if the connection is closing
            raise LinkLost(f"the connection to {location} was lost: {_reason(error)}") from None
        except ValueError as error:
            raise Unsendable(f"a value cannot be sent in a header: {error}") from None

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        if answer.content_length is not None and answer.content_length <= self._settings.max_body:
            return await answer.read()
        parts = bytearray()
        async for part in answer.content.iter_any():
            parts += part
            if len(parts) > self._settings.max_body:
                raise LinkLost(f"the answer has more than {self._settings.max_body} bytes")
        return bytes(parts)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
