"""The client side: requests to one location at a time, over connections that are kept open."""

import asyncio
import socket
import ssl
from functools import partial
from typing import NamedTuple

from yarl import URL

from runtime.files import Watched
from runtime.network import LinkLost, PeerUnreachable, Unsendable
from runtime.sockets import detect_cut_connection
from runtime.telemetry import logger
from transports.http.connection import Connection, Outcome, Pool
from transports.http.messages import Answer, start, with_length
from transports.http.settings import HttpSettings
from transports.sockets import tls_context

_MOST_POOLS = 256
"""Locations change over time: beyond this number, those without a connection are forgotten."""


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


class Client:
    """Connects to peers, with TLS where their URLs say so, and keeps the connections."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._tls = None if settings.ca_file is None else tls_context(settings.ca_file, "transport.http.ca_file")
        self._ca_file = None if settings.ca_file is None else Watched(settings.ca_file)
        self._pools: dict[Location, Pool] = {}
        self._watching: dict[Location, Pool] = {}
        """Separate from the pools of requests, so that questions that wait for news do not use up their connections."""

    def idle(self, location: Location) -> Connection | None:
        """Return a connection on which a request can be sent now, if there is one."""
        pool = self._pools.get(location)
        return None if pool is None else pool.take_now()

    async def connection(self, location: Location) -> Connection:
        """Return a connection on which a request can be sent now.

        Raises:
            PeerUnreachable: if there is no connection.
            Untrusted: if the peer's certificate cannot be trusted.
        """
        return await self._pool(self._pools, location, self._settings.max_connections).take()

    async def get(self, location: Location, path: str, fields: dict[str, str]) -> Answer:
        """Ask for something that the server may take its time to answer. Cancelling this closes the connection.

        Raises:
            PeerUnreachable: if there is no connection, so that nothing was sent.
            Untrusted: if the peer's certificate cannot be trusted, so that nothing was sent.
            LinkLost: if the connection is lost before the answer is complete, or the answer cannot be read or is too large.
            Unsendable: if a header contains a character that HTTP does not allow.
        """
        try:
            head = with_length(start("GET", path, {"host": location.authority, **fields}), None)
        except ValueError as error:
            raise Unsendable(f"a value cannot be sent in a header: {error}") from None
        return await answer_to(await self._pool(self._watching, location, 0).take(), head, b"")

    def _pool(self, pools: dict[Location, Pool], location: Location, limit: int) -> Pool:
        pool = pools.get(location)
        if pool is None:
            if len(pools) >= _MOST_POOLS:
                for unused in [known for known, pool in pools.items() if pool.unused]:
                    del pools[unused]
            pool = pools[location] = Pool(partial(self._connect, location), limit)
        return pool

    async def _connect(self, location: Location, pool: Pool) -> Connection:
        loop, address = asyncio.get_running_loop(), location.base
        tls = self._tls_context() if address.scheme == "https" else None
        make = partial(Connection, str(location), self._settings.max_body, pool.idle, pool.closed)
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in (address.host or "") else socket.AF_INET)
            try:
                sock.setblocking(False)
                detect_cut_connection(sock, self._settings.heartbeat)
                async with asyncio.timeout(self._settings.connect_timeout):
                    await loop.sock_connect(sock, (address.host, address.port))
                    _, connection = await loop.create_connection(
                        make, sock=sock, ssl=tls, server_hostname=None if tls is None else location.name
                    )
            except BaseException:  # a cancellation, too: the socket must not stay open
                sock.close()
                raise
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(f"the certificate of {location} is not to be trusted: {error}") from None
        except TimeoutError:
            raise PeerUnreachable(
                f"{location} cannot be reached: no answer within {self._settings.connect_timeout:g} s"
            ) from None
        except (OSError, ValueError) as error:  # a name that cannot be a host's, too
            raise PeerUnreachable(f"{location} cannot be reached: {str(error) or type(error).__name__}") from None
        if not connection.usable:
            raise PeerUnreachable(f"{location} cannot be reached: it closed the connection at once")
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls_context(None, "transport.http.ca_file")  # reading the system's certificates takes its time
        if self._ca_file is not None and self._ca_file.changed():
            try:
                self._tls.load_verify_locations(self._settings.ca_file)
            except OSError as error:
                logger("http").error("%s has changed, and cannot be used: %s", self._settings.ca_file, error)
        return self._tls

    async def close(self) -> None:
        """Close every connection. Requests under way end with `LinkLost`."""
        for pool in (*self._pools.values(), *self._watching.values()):
            pool.close()
        await asyncio.sleep(0)  # the event loop closes the sockets in its next turn


async def answer_to(connection: Connection, head: bytes, body: bytes) -> Answer:
    """Send a request, and return its answer. Cancelling this closes the connection, from which the server learns of it.

    Raises:
        LinkLost: if the connection is lost before the answer is complete.
    """
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def ended(found: Outcome) -> None:
        if not outcome.done():
            outcome.set_result(found)

    connection.send(head, body, ended)
    try:
        found = await outcome
    except asyncio.CancelledError:
        if outcome.cancelled():  # otherwise the answer is complete, and the connection may have another request already
            connection.abort()
        raise
    if isinstance(found, LinkLost):
        raise found
    return found
