"""The asking side: requests to one address at a time, over connections that are kept."""

import io
import socket
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from yarl import URL

from runtime.network import LinkLost, PeerUnreachable, Unsendable
from transports.http.settings import HttpSettings
from transports.resolver import detect_cut_connection, trusted

_KEPT = 15.0
"""Seconds for which an unused connection is kept: shorter than a server keeps its end."""

_AT_ONCE = 1 << 20
"""Bytes of a body that are written in one go; a longer one is written piece by piece."""


class Untrusted(PeerUnreachable):
    """Somebody is there, with a certificate that proves nothing here. Nothing was sent."""


class Place(NamedTuple):
    """One address of a peer: where it is, and the name that its URL gives it."""

    base: URL
    name: str
    authority: str

    def __str__(self) -> str:
        return f"{self.authority} ({self.base.host})" if self.base.host != self.name else self.authority


class Answer(NamedTuple):
    """What came back."""

    status: int
    fields: Mapping[str, str]
    body: bytes
    kind: str
    """Its media type."""


class Client:
    """Makes HTTP/1.1 requests. Cancelling one closes its connection: so the other side learns of it."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._tls = trusted(settings.ca_file, "transport.http.ca_file")
        self._urls: dict[tuple[Place, str], URL] = {}
        self._session = self._pool(settings.max_connections)
        self._watching = self._pool(0)
        """What waits for news must not take the connections of what is asked."""

    def _pool(self, most: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, limit_per_host=most, keepalive_timeout=_KEPT, ssl=self._tls, socket_factory=self._socket
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )

    def _socket(self, info: tuple[int, int, int, str, object]) -> socket.socket:
        made = socket.socket(info[0], info[1], info[2])
        detect_cut_connection(made, self._settings.heartbeat)
        return made

    async def close(self) -> None:
        await self._session.close()
        await self._watching.close()

    async def post(self, place: Place, path: str, fields: dict[str, str], body: bytes) -> Answer:
        """Makes a request. Raises like `_ask`."""
        return await self._ask(self._session, "POST", place, path, fields, body)

    async def get(self, place: Place, path: str, fields: dict[str, str]) -> Answer:
        """Asks for something that may be waited for. Raises like `_ask`."""
        return await self._ask(self._watching, "GET", place, path, fields, None)

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, place: Place, path: str, fields: dict[str, str], body: bytes | None
    ) -> Answer:
        """Asks an address.

        Raises:
            PeerUnreachable: there was no connection: nothing was sent. `Untrusted`, if for the certificate's sake.
            LinkLost: the connection went before the answer was there, or the answer is larger than we take.
            Unsendable: it cannot stand in a header.
        """
        url = self._urls.get((place, path))
        if url is None:
            if len(self._urls) > 4096:  # addresses come and go
                self._urls.clear()
            url = self._urls[place, path] = place.base.join(URL(path, encoded=True))
        fields["host"] = place.authority
        data = body if body is None or len(body) <= _AT_ONCE else io.BytesIO(body)
        try:
            async with session.request(
                method, url, headers=fields, data=data, allow_redirects=False, server_hostname=place.name
            ) as answer:
                return Answer(answer.status, answer.headers, await self._read(answer), answer.content_type)
        except aiohttp.ClientConnectorCertificateError as error:
            raise Untrusted(f"the certificate of {place} is not to be trusted: {error.certificate_error}") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise PeerUnreachable(f"{place} cannot be reached: {_reason(error)}") from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # RuntimeError: uvloop's, of a connection that is closing
            raise LinkLost(f"the connection to {place} was lost: {_reason(error)}") from None
        except ValueError as error:
            raise Unsendable(f"it cannot stand in a header: {error}") from None

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
