"""The client's connections, against servers that behave in every way that the protocol allows, and in some that it does not."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from config.provision import provision
from runtime.network import LinkLost, PeerUnreachable, Unsendable
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.project import RENTAL
from transports.http import connection, writer
from transports.http.client import Client, Location, Untrusted, answer_to
from transports.http.connection import Connection
from transports.http.messages import Answer, start, with_length
from transports.http.settings import HttpSettings

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n%02d"


class Server:
    """A server on a socket, which does with each connection what the test says."""

    def __init__(self, serve: Callable[["Server", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.accepted = 0
        self.asked = 0
        self.open = 0
        self.port = any_free_port()
        self._serve = serve

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        try:
            await self._serve(self, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
        self.asked += 1
        return head + body


async def answering(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with the number of the connection."""
    number = server.accepted
    while True:
        await server.read_request(reader)
        writer.write(OK % number)


async def silent(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read requests, and never answer."""
    while True:
        await server.read_request(reader)


def saying(answer: bytes) -> Callable[[Server, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Answer the first request with this, and close the connection."""

    async def serve(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read_request(reader)
        writer.write(answer)

    return serve


@asynccontextmanager
async def running(
    serve: Callable[[Server, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    tls: ssl.SSLContext | None = None,
    **settings: Any,
) -> AsyncGenerator[tuple[Server, Client, Location], None]:
    """Yield a server, a client, and the server's location."""
    server, client = Server(serve), Client(HttpSettings(**settings))
    listening = await asyncio.start_server(server.connected, "127.0.0.1", server.port, ssl=tls)
    try:
        scheme = "http" if tls is None else "https"
        yield server, client, Location(URL(f"{scheme}://127.0.0.1:{server.port}"), "localhost", f"localhost:{server.port}")
    finally:
        await client.close()
        listening.close()
        await eventually(lambda: server.open == 0, "every connection has ended")
        await listening.wait_closed()


async def post(client: Client, location: Location, body: bytes = b"{}") -> Answer:
    head = with_length(start("POST", "/echo/Say", {"host": location.authority}), body)
    return await answer_to(client.idle(location) or await client.connection(location), head, body)


async def test_a_connection_is_used_again() -> None:
    async with running(answering) as (server, client, location):
        assert [(await post(client, location)).body for _ in range(3)] == [b"01"] * 3
        assert (await client.get(location, "/echo/presence", {})).body == b"02", (
            "questions do not share the connections of requests"
        )
        assert server.accepted == 2


async def test_the_request_arrives_as_it_was_written() -> None:
    arrived = asyncio.Queue[bytes]()

    async def serve(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.put_nowait(await server.read_request(reader))
        writer.write(OK % 1)

    async with running(serve) as (server, client, location):
        await client.get(location, "/echo/presence?wait=1", {"callboard-node": "n"})
        host = f"host: localhost:{server.port}\r\n".encode()
        assert arrived.get_nowait() == b"GET /echo/presence?wait=1 HTTP/1.1\r\n" + host + b"callboard-node: n\r\n\r\n"
        for illegal in ("a\r\nb: c", "a\0", "ü"):
            with pytest.raises(Unsendable, match="header"):
                await client.get(location, "/echo/presence", {"callboard-node": illegal})


async def test_requests_wait_for_one_of_a_limited_number_of_connections() -> None:
    gate = asyncio.Event()

    async def serve(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await server.read_request(reader)
            await gate.wait()
            writer.write(OK % server.asked)

    async with running(serve, max_connections=2) as (server, client, location):
        tasks = [asyncio.create_task(post(client, location)) for _ in range(9)]
        await eventually(lambda: server.asked == 2, "two requests have arrived")
        tasks[3].cancel()  # it waits for its turn
        tasks[0].cancel()  # it has a connection, which is closed, so that another may be opened
        gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, Answer) for outcome in outcomes] == [number not in (0, 3) for number in range(9)]
        assert server.accepted == 3


async def test_a_request_that_loses_its_turn_is_the_next() -> None:
    async with running(answering, max_connections=1) as (_, client, location):
        taken = await client.connection(location)
        order: list[int] = []

        async def wait(number: int) -> Connection:
            connection = await client.connection(location)
            order.append(number)
            return connection

        waiting = [asyncio.create_task(wait(number)) for number in range(2)]
        await asyncio.sleep(0)
        (pool,) = client._pools.values()
        pool.idle(taken)
        assert client.idle(location) is taken  # before the first one has woken up
        await asyncio.sleep(0)
        pool.idle(taken)
        async with asyncio.timeout(5):
            pool.idle(await waiting[0])
            await waiting[1]
        assert order == [0, 1]


async def test_a_failure_to_connect_passes_the_turn_on() -> None:
    port = any_free_port()
    location = Location(URL(f"http://127.0.0.1:{port}"), "localhost", f"localhost:{port}")
    client = Client(HttpSettings(max_connections=1))
    outcomes = await asyncio.gather(*(post(client, location) for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PeerUnreachable] * 5
    await client.close()


async def test_cancelling_a_request_closes_its_connection_and_no_other() -> None:
    async with running(silent) as (server, client, location):
        tasks = [asyncio.create_task(post(client, location)) for _ in range(2)]
        await eventually(lambda: server.asked == 2, "both requests have arrived")
        tasks[0].cancel()
        await eventually(lambda: server.open == 1, "the server learns of it")
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert not tasks[1].done()
        await client.close()
        with pytest.raises(LinkLost, match="leaving"):
            await tasks[1]


async def test_cancelling_after_the_answer_leaves_the_connection_to_the_next_request() -> None:
    async with running(answering) as (server, client, location):
        await post(client, location)
        first = asyncio.create_task(post(client, location))
        await asyncio.sleep(0)
        kept = next(iter(client._pools[location]._connections))  # pyright: ignore[reportPrivateUsage]
        while not kept.usable:
            await asyncio.sleep(0)
        if not first.done():
            first.cancel()  # its answer has arrived in this turn of the event loop
        assert (await post(client, location)).body == b"01"
        assert server.accepted == 1
        await asyncio.gather(first, return_exceptions=True)


async def test_a_connection_that_the_peer_has_closed_is_not_used() -> None:
    async with running(saying(OK % 1)) as (server, client, location):
        for number in range(3):
            assert (await post(client, location)).status == 200
            await eventually(lambda: client.idle(location) is None, "the client has noticed")
            assert server.accepted == number + 1


async def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_KEPT", 0.05)
    async with running(answering) as (server, client, location):
        await asyncio.gather(*(post(client, location) for _ in range(3)))
        await eventually(lambda: server.open == 0, "they are closed")
        assert client.idle(location) is None
        assert client._pools[location].unused  # pyright: ignore[reportPrivateUsage]
        assert (await post(client, location)).status == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: close\r\n\r\n{}", b"HTTP/1.0 200 OK\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
    ],
)  # fmt: skip
async def test_an_answer_after_which_the_connection_ends_is_complete(answer: bytes) -> None:
    async with running(saying(answer)) as (server, client, location):
        for number in (1, 2):
            assert (await post(client, location)).body == b"{}"
            assert server.accepted == number
            await eventually(lambda: client.idle(location) is None, "the connection is closed")


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}", b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + bytes(2000),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ],
)  # fmt: skip
async def test_a_request_without_a_readable_answer_may_have_been_delivered(answer: bytes) -> None:
    async with running(saying(answer), max_body=1024) as (_, client, location):
        with pytest.raises(LinkLost):
            await post(client, location)


async def test_a_connection_that_the_peer_will_close_is_not_used_again() -> None:
    async def serve(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:  # although it says that it closes the connection
            await server.read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")

    async with running(serve) as (server, client, location):
        for number in (1, 2, 3):
            assert (await post(client, location)).status == 200
            assert server.accepted == number


async def test_what_nobody_asked_for_ends_the_connection() -> None:
    async def serve(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read_request(reader)
        writer.write(OK % server.accepted)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(OK % 99)
        await reader.read()

    async with running(serve) as (server, client, location):
        assert (await post(client, location)).body == b"01"
        await eventually(lambda: server.open == 0, "the client has closed the connection")
        assert (await post(client, location)).body == b"02"


async def test_a_large_request_is_written_while_the_peer_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_PIECE", 1024)
    body = bytes(range(256)) * 20_000
    gate, arrived = asyncio.Event(), asyncio.Queue[bytes]()

    async def serve(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        arrived.put_nowait(await reader.readexactly(len(body)))
        writer.write(OK % 1)
        await reader.read()

    async with running(serve) as (server, client, location):
        task = asyncio.create_task(post(client, location, body))
        await eventually(lambda: server.open == 1, "the connection is open")
        await asyncio.sleep(0.05)
        sending = next(iter(client._pools[location]._connections))  # pyright: ignore[reportPrivateUsage]
        assert sending._transport.get_write_buffer_size() < 500_000, "most of it waits outside of the event loop's buffer"  # pyright: ignore[reportPrivateUsage]
        gate.set()
        assert (await task).status == 200
        assert arrived.get_nowait() == body
        assert client.idle(location) is sending, "it can be used again"


async def test_an_answer_before_the_request_was_read_is_an_answer() -> None:
    async def serve(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await reader.read(100_000)
        await reader.read()

    async with running(serve) as (server, client, location):
        assert (await post(client, location, bytes(15_000_000))).status == 413
        await eventually(lambda: server.open == 0, "the rest is not sent")
        assert client.idle(location) is None


async def test_a_peer_that_does_not_accept_a_connection_in_time_is_unreachable() -> None:
    async def never(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with running(never, connect_timeout=0.05) as (_, client, location):
        tls = Location(location.base.with_scheme("https"), location.name, location.authority)
        with pytest.raises(PeerUnreachable, match=r"within 0\.05 s"):  # nobody takes part in the handshake
            await client.connection(tls)


async def test_certificates_are_verified_by_name_and_read_again(tmp_path: Path) -> None:
    provision(tmp_path / "one", RENTAL)
    provision(tmp_path / "two", RENTAL)
    tls, files = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), tmp_path / "one"
    tls.load_cert_chain(files / "wallet" / "certificate.pem", files / "wallet" / "private-key.pem")
    names = list[str | None]()
    tls.set_servername_callback(lambda _socket, name, _context: names.append(name))
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes((tmp_path / "two" / "shared" / "ca.pem").read_bytes())
    async with running(answering, tls=tls, ca_file=str(ca_file)) as (_, client, location):
        with pytest.raises(Untrusted, match="not to be trusted"):
            await client.connection(location)
        ca_file.write_bytes((tmp_path / "one" / "shared" / "ca.pem").read_bytes())
        assert (await post(client, location)).status == 200
        assert names == ["localhost", "localhost"], "the name is sent although the address is numeric"
        for name in ("elsewhere.test", "127.0.0.2"):
            with pytest.raises(Untrusted):
                await client.connection(Location(location.base, name, location.authority))


async def test_locations_without_connections_are_forgotten() -> None:
    client = Client(HttpSettings())
    for number in range(600):
        client._pool(client._pools, Location(URL("http://127.0.0.1:9"), f"n{number}", f"n{number}:9"), 1)  # pyright: ignore[reportPrivateUsage]
    assert len(client._pools) <= 256  # pyright: ignore[reportPrivateUsage]
    await client.close()
