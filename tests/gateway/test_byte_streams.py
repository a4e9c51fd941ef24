"""Bodies that pass through the gateway and between services in pieces, in both directions, on every transport."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from openapi_spec_validator import validate

from runtime import (
    ANYONE,
    Body,
    ByteStream,
    Context,
    Contract,
    Header,
    Node,
    Request,
    Service,
    ServiceError,
    StreamBroken,
    Struct,
    UsageError,
    handles,
    roles,
)
from runtime.testing import eventually
from tests.broker import Broker
from tests.gateway.behind_gateway import KINDS, Deployed, behind_gateway
from tests.gateway.environment import check_problem
from tests.transports.proxy import Proxy
from transports.memory import MemoryTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

films = Contract("films")
cinema = Contract("cinema")
MB = 1024 * 1024
FILM = {"Content-Type": "video/mp4"}


class Stored(Struct):
    name: str
    size: int
    digest: str
    announced: int | None = None


class Film(Struct):
    content: Annotated[ByteStream, Body("video/mp4")]
    etag: Annotated[str, Header("ETag")] = '"1"'


@films.message
class Rejected(ServiceError):
    """The film is not wanted."""

    code, status = "rejected", 409


@films.message
class PutFilm(Request[Stored]):
    name: str
    content: Annotated[ByteStream, Body("video/*")]


@films.message
class OwnFilm(Request[None]):
    content: Annotated[ByteStream, Body("video/*")]


@films.message
class GetFilm(Request[Film]):
    name: str


@films.message
class Double(Request[Film]):
    """The reply's stream is made from the request's, while it comes."""

    content: Annotated[ByteStream, Body("video/*")]


@films.message
class Mix(Request[int]):
    """Reads the stream of another reply, after a while, and not its own."""

    seconds: float
    content: Annotated[ByteStream, Body("video/*")]


@films.message
class Echo(Request[Film]):
    content: Annotated[ByteStream, Body("video/*")]


@films.message
class PutMaybe(Request[str]):
    content: Annotated[ByteStream | None, Body("video/*")] = None


@films.message
class GetSmall(Request[Film]):
    pass


@cinema.message
class Copy(Request[Stored]):
    name: str
    size: int = 0


@cinema.message
class Show(Request[int]):
    name: str


class Films(Service):
    contract = films

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.reading = self.closed = self.ended_early = 0
        self.may_read = asyncio.Event()
        self.may_read.set()

    @handles(http="PUT /films/{name}", allow=ANYONE, raises=(Rejected,))
    async def put(self, message: PutFilm, ctx: Context) -> Stored:
        if message.name == "unwanted":
            raise Rejected
        size, digest = 0, hashlib.sha256()
        self.reading += 1
        try:
            async for chunk in ctx.read(message.content):
                await self.may_read.wait()
                size += len(chunk)
                self.seen = size
                digest.update(chunk)
                if message.name == "part":
                    break
        except (asyncio.CancelledError, StreamBroken):
            self.ended_early += 1
            raise
        finally:
            self.reading -= 1
        return Stored(message.name, size, digest.hexdigest(), message.content.size)

    @handles(http="PUT /own", allow=roles("editor"))
    async def own(self, message: OwnFilm, ctx: Context) -> None:
        raise AssertionError("nobody may")

    @handles(http="GET /films/{name}", allow=ANYONE)
    async def get(self, message: GetFilm, ctx: Context) -> Film:
        return Film(ctx.offer(self.made(message.name), None if message.name.startswith("unknown") else 10 * MB))

    async def made(self, name: str) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(80):
                await self.may_read.wait()
                if number == 40 and name == "broken":
                    raise OSError("the disk is gone")
                if number == 79 and name in ("short", "unknown"):
                    return
                self.seen = number
                yield bytes([number]) * (128 * 1024)
        finally:
            self.closed += 1

    @handles(http="POST /mix/{seconds}", allow=ANYONE)
    async def mix(self, message: Mix, ctx: Context) -> int:
        chunks = [chunk async for chunk in ctx.read(ByteStream("of something else"))]
        return len(chunks)

    @handles(http="POST /echo", allow=ANYONE)
    async def echo(self, message: Echo, ctx: Context) -> Film:
        return Film(ctx.offer(ctx.read(message.content)))

    @handles(http="PUT /maybe", allow=ANYONE)
    async def maybe(self, message: PutMaybe, ctx: Context) -> str:
        if message.content is None:
            return "nothing"
        return (b"".join([chunk async for chunk in ctx.read(message.content)])).decode()

    @handles(http="GET /small", allow=ANYONE)
    async def small(self, message: GetSmall, ctx: Context) -> Film:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(50_000):
                yield b"%06d\n" % number

        return Film(ctx.offer(lines()))

    @handles(http="POST /doubles", allow=ANYONE)
    async def double(self, message: Double, ctx: Context) -> Film:
        chunks = [chunk async for chunk in ctx.read(message.content)]

        async def twice() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk + chunk

        return Film(ctx.offer(twice()))


class Cinema(Service):
    contract = cinema
    calls = (films,)

    @handles(http="POST /copies", allow=ANYONE)
    async def copy(self, message: Copy, ctx: Context) -> Stored:
        if message.size:

            async def made() -> AsyncIterator[bytes]:
                for _ in range(message.size):
                    yield b"x" * 1000

            return await ctx.request(PutFilm(message.name, ctx.offer(made())))
        film = await ctx.request(GetFilm(message.name))
        return await ctx.request(PutFilm(message.name, ctx.offer(ctx.read(film.content), film.content.size)))

    @handles(http="POST /shows", allow=ANYONE)
    async def show(self, message: Show, ctx: Context) -> int:
        film = await ctx.request(GetFilm(message.name))
        size = 0
        async for chunk in ctx.read(film.content):
            size += len(chunk)
            if message.name == "part":
                break
        if message.name == "twice":
            async for _ in ctx.read(film.content):
                raise AssertionError("it was read before")
        return size


@pytest.fixture
def service() -> Films:
    return Films()


@pytest.fixture(params=KINDS)
async def deployed(request: pytest.FixtureRequest, tmp_path: Path, service: Films) -> AsyncGenerator[Deployed, None]:
    settings = {"max_body": 1000, "max_stream": 20 * MB, "body_timeout": 1.0}
    async with behind_gateway(request.param, tmp_path, lambda: service, Cinema, settings=settings, request_timeout=3.0) as made:
        yield made


async def pieces(count: int, size: int = 100_000) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number % 256]) * size


def expected(count: int, size: int = 100_000) -> tuple[int, str]:
    return count * size, hashlib.sha256(b"".join(bytes([number % 256]) * size for number in range(count))).hexdigest()


async def test_a_body_larger_than_any_message_comes_in_pieces(deployed: Deployed) -> None:
    for count, size in ((0, 1), (1, 1), (1, 70_000), (180, 100_000)):
        answer = await deployed.client.put("/films/f", content=pieces(count, size), headers=FILM)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["size"], found["digest"]) == expected(count, size)
        assert found["announced"] is None, "it was sent in chunks"
    whole = await deployed.client.put("/films/f", content=b"x" * 2_000_000, headers=FILM)
    assert (whole.json()["size"], whole.json()["announced"]) == (2_000_000, 2_000_000)


async def test_a_reply_comes_in_pieces(deployed: Deployed) -> None:
    answer = await deployed.client.get("/films/f")
    assert answer.headers["content-type"] == "video/mp4"
    assert (answer.headers["content-length"], answer.headers["etag"]) == (str(10 * MB), '"1"')
    assert answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == b"".join(bytes([number]) * (128 * 1024) for number in range(80))
    unknown = await deployed.client.get("/films/unknown")
    assert unknown.headers["transfer-encoding"] == "chunked"
    assert len(unknown.content) == 79 * 128 * 1024
    head = await deployed.client.head("/films/f")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(10 * MB), b"")


async def test_a_service_reads_and_writes_at_once(deployed: Deployed) -> None:
    answer = await deployed.client.post("/doubles", content=pieces(20), headers=FILM)
    assert len(answer.content) == 2 * 20 * 100_000


async def test_services_send_streams_to_each_other(deployed: Deployed) -> None:
    found = (await deployed.client.post("/copies", json={"name": "f", "size": 3000})).json()
    assert (found["size"], found["announced"]) == (3_000_000, None)
    copied = (await deployed.client.post("/copies", json={"name": "f"})).json()
    assert (copied["size"], copied["announced"]) == (10 * MB, 10 * MB)
    assert (await deployed.client.post("/shows", json={"name": "f"})).json() == 10 * MB
    assert (await deployed.client.post("/shows", json={"name": "part"})).json() > 0


async def test_a_reader_that_is_slow_slows_the_writer_down(deployed: Deployed, service: Films) -> None:
    service.may_read.clear()
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(150):
            yield b"x" * 100_000
            sent += 100_000

    putting = asyncio.create_task(deployed.client.put("/films/f", content=counted(), headers=FILM))
    await eventually(lambda: service.reading == 1, "the handler reads")
    seen = -1
    while sent != seen:
        seen = sent
        await asyncio.sleep(0.2)
    assert sent < 14_000_000, "most of it is still with the client"
    service.may_read.set()
    assert (await putting).json()["size"] == 15_000_000


async def test_a_client_that_reads_slowly_slows_the_service_down(deployed: Deployed, service: Films) -> None:
    async with deployed.client.stream("GET", "/films/f") as answer:
        chunks = answer.aiter_bytes(100_000)
        await anext(chunks)
        seen = -1
        while service.seen != seen:
            seen = service.seen
            await asyncio.sleep(0.2)
        assert service.seen < 79
        size = 100_000
        async for chunk in chunks:
            size += len(chunk)
    assert size == 10 * MB


async def test_an_answer_before_the_end_of_the_body_is_the_answer(deployed: Deployed) -> None:
    check_problem(await deployed.client.put("/films/unwanted", content=pieces(50), headers=FILM), 409, "rejected")
    part = await deployed.client.put("/films/part", content=pieces(50), headers=FILM)
    assert 0 < part.json()["size"] < 5_000_000
    assert (await deployed.client.put("/films/f", content=pieces(1), headers=FILM)).json()["size"] == 100_000
    await eventually(lambda: open_streams(deployed) == 0, "nothing is left")


async def test_what_is_refused_before_the_body(deployed: Deployed, service: Films) -> None:
    client = deployed.client
    check_problem(await client.put("/own", content=pieces(1), headers=FILM), 401, "unauthenticated")
    token = {"Authorization": "Bearer nonsense", **FILM}
    check_problem(await client.put("/own", content=pieces(1), headers=token), 401, "unauthenticated")
    check_problem(await client.put("/films/f", content=pieces(1), headers={"Content-Type": "image/png"}), 415)
    check_problem(await client.put("/films/f", content=b"x", headers=FILM | {"Content-Encoding": "gzip"}), 415)
    check_problem(await client.put("/films/f", content=b"x" * (20 * MB + 1), headers=FILM), 413, "too-large")
    check_problem(await client.put("/films/f", params={"content": "x"}, content=pieces(1), headers=FILM), 422, "invalid")
    assert service.seen == 0


async def test_a_body_that_grows_too_large_or_ends_too_early(deployed: Deployed, service: Films) -> None:
    check_problem(await deployed.client.put("/films/f", content=pieces(300), headers=FILM), 413, "too-large")
    await eventually(lambda: service.reading == 0, "the handler has ended")
    assert service.seen <= 20 * MB

    async def stalls() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        await asyncio.sleep(3)

    check_problem(await deployed.client.put("/films/f", content=stalls(), headers=FILM), 408, "body-too-slow")
    await eventually(lambda: service.reading == 0 and open_streams(deployed) == 0, "the handler has ended")


async def test_a_client_that_disconnects_ends_the_handler(deployed: Deployed, service: Films) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", deployed.gateway.port)
    writer.write(
        b"PUT /films/f HTTP/1.1\r\nHost: x\r\nContent-Type: video/mp4\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 200_000
    )
    await eventually(lambda: service.reading == 1 and service.seen == 200_000, "the handler reads")
    writer.close()
    await eventually(lambda: service.ended_early == 1, "the handler has ended")
    await eventually(lambda: open_streams(deployed) == 0, "nothing is left")
    del reader


async def test_a_reader_that_disconnects_closes_the_source(deployed: Deployed, service: Films) -> None:
    async with deployed.client.stream("GET", "/films/f") as answer:
        await anext(answer.aiter_bytes(1000))
    await eventually(lambda: service.closed == 1 and open_streams(deployed) == 0, "the source is closed", 2.0)


@pytest.mark.parametrize("name", ["broken", "short"])
async def test_a_reply_that_breaks_off_is_seen_to(deployed: Deployed, name: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await deployed.client.get(f"/films/{name}")
    problem = check_problem(await deployed.client.post("/shows", json={"name": name}), 502, "stream-broken")
    assert problem["detail"]
    assert (await deployed.client.get("/films/f")).status_code == 200


async def test_only_the_own_stream_of_a_request_can_be_read(deployed: Deployed) -> None:
    problem = check_problem(await deployed.client.post("/mix/0", content=pieces(3), headers=FILM), 502, "stream-broken")
    assert "nobody offers it" in problem["detail"]


async def test_nothing_is_left_of_streams_between_services(deployed: Deployed) -> None:
    for _ in range(3):
        await deployed.client.post("/copies", json={"name": "f", "size": 300})
        await deployed.client.post("/copies", json={"name": "part", "size": 3000})
    await eventually(lambda: open_streams(deployed) == 0, "nothing is left", 2.0)


async def test_a_stream_cannot_be_read_after_its_request(deployed: Deployed) -> None:
    with pytest.raises(httpx.TransportError):
        await deployed.client.post("/echo", content=pieces(10), headers=FILM, timeout=2.0)
    await eventually(lambda: open_streams(deployed) == 0, "nothing is left", 2.0)


async def test_head_and_a_known_etag_close_the_source(deployed: Deployed) -> None:
    await deployed.client.head("/films/f")
    answer = await deployed.client.get("/films/f", headers={"If-None-Match": '"1"'})
    assert (answer.status_code, answer.content) == (304, b"")
    await eventually(lambda: open_streams(deployed) == 0, "nothing is left", 2.0)


async def test_a_stream_may_be_left_out(deployed: Deployed) -> None:
    assert (await deployed.client.put("/maybe")).json() == "nothing"
    assert (await deployed.client.put("/maybe", content=b"", headers=FILM)).json() == ""
    assert (await deployed.client.put("/maybe", content=b"abc", headers=FILM)).json() == "abc"
    check_problem(await deployed.client.put("/maybe", content=b"abc"), 415)
    check_problem(await deployed.client.put("/films/f"), 415)


async def test_small_pieces_are_joined(deployed: Deployed) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", deployed.gateway.port)
    writer.write(b"GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    received = await reader.read(-1)
    writer.close()
    assert 350_000 < len(received) < 400_000, "a chunk is longer than a piece"
    answer = await deployed.client.get("/small")
    assert answer.content == b"".join(b"%06d\n" % number for number in range(50_000))


@pytest.mark.parametrize("kind", ["one-node-zero-copy", "apart", "mqtt"])
async def test_a_stream_waits_for_its_turn(kind: str, tmp_path: Path) -> None:
    class Serial(Films):
        concurrency = 1

    service = Serial()
    async with behind_gateway(kind, tmp_path, lambda: service, request_timeout=0.5) as deployed:
        service.may_read.clear()
        putting = [asyncio.create_task(deployed.client.put(f"/films/{at}", content=pieces(2), headers=FILM)) for at in range(2)]
        await eventually(lambda: service.reading == 1, "one handler reads")
        await asyncio.sleep(1)
        service.may_read.set()
        assert [(await one).json()["size"] for one in putting] == [200_000, 200_000]


async def test_a_stream_is_read_once(deployed: Deployed) -> None:
    check_problem(await deployed.client.post("/shows", json={"name": "twice"}), 502, "stream-broken")


async def test_a_service_that_stops_finishes_its_streams(deployed: Deployed, service: Films) -> None:
    for node in deployed.nodes:
        node.environment.settings = type(node.environment.settings)(drain_timeout=10, request_timeout=3.0)
    async with deployed.client.stream("GET", "/films/f") as answer:
        chunks = answer.aiter_bytes()
        size = len(await anext(chunks))
        stopping = asyncio.create_task(deployed.nodes[0 if len(deployed.nodes) == 1 else 1].stop())
        await asyncio.sleep(0.2)
        assert not stopping.done()
        async for chunk in chunks:
            size += len(chunk)
        assert size == 10 * MB
    await stopping


def open_streams(deployed: Deployed) -> int:
    return sum(int(node.metrics.value("streams_open")) for node in deployed.nodes)


@pytest.mark.parametrize("kind", ["apart", "mqtt", "http"])
async def test_an_instance_that_is_lost_breaks_its_streams(kind: str, tmp_path: Path, service: Films) -> None:
    async with behind_gateway(kind, tmp_path, lambda: service) as deployed:
        service.may_read.clear()
        putting = asyncio.create_task(deployed.client.put("/films/f", content=pieces(100), headers=FILM))
        await eventually(lambda: service.reading == 1, "the handler reads")
        service.may_read.set()
        async with deployed.client.stream("GET", "/films/f") as answer:
            chunks = answer.aiter_bytes()
            await anext(chunks)
            service.may_read.clear()
            transport = deployed.nodes[1].environment.transport
            if isinstance(transport, MemoryTransport):
                transport.crash()
            await deployed.nodes[1].crash()
            if not isinstance(transport, MemoryTransport):
                await transport.close()
            with pytest.raises(httpx.RemoteProtocolError):
                async for _ in chunks:
                    pass
        answer = await putting
        assert answer.status_code in (200, 502), answer.text


async def test_a_reader_whose_link_was_cut_goes_on_reading(tmp_path: Path) -> None:
    async with Broker(tmp_path) as broker, Proxy(broker.port) as proxy:
        here, there = (
            MqttTransport(MqttSettings(url=broker.url)),
            MqttTransport(MqttSettings(url=f"mqtt://127.0.0.1:{proxy.port}")),
        )
        async with Node([Films], here), Node([], there) as node:
            ctx = node.client("viewer", (films,))
            film = await ctx.request(GetFilm("f"))
            found, cuts = b"", 0
            async for chunk in ctx.read(film.content):
                found += chunk
                if len(found) // (2 * MB) > cuts:
                    cuts += 1
                    proxy.cut()
            assert found == b"".join(bytes([number]) * (128 * 1024) for number in range(80))
            assert cuts > 3


async def test_the_document_shows_binary_bodies(deployed: Deployed) -> None:
    document = (await deployed.client.get("/openapi.json")).json()
    validate(document)
    paths = document["paths"]
    binary = {"schema": {"type": "string", "format": "binary"}}
    assert paths["/films/{name}"]["put"]["requestBody"]["content"] == {"video/*": binary}
    assert paths["/films/{name}"]["get"]["responses"]["200"]["content"] == {"video/mp4": binary}


async def test_what_a_handler_cannot_do_with_a_stream(tmp_path: Path) -> None:
    async with behind_gateway("apart", tmp_path, Films, Cinema) as deployed:
        ctx = deployed.nodes[2].client("cinema", (films,))
        with pytest.raises(UsageError, match=r"make one with ctx\.offer"):
            await ctx.request(PutFilm("f", ByteStream("nonsense")))
        with pytest.raises(StreamBroken, match="nobody offers it"):
            ctx.read(ByteStream("nonsense"))
        with pytest.raises(UsageError, match="a ByteStream cannot be stored"):
            ctx.undo(PutFilm("f", ByteStream("x")))

        async def text() -> AsyncIterator[bytes]:
            yield "not bytes"  # type: ignore[misc]  # pyright: ignore[reportReturnType]  # what a handler may get wrong

        with pytest.raises(StreamBroken, match="expected bytes, got str"):
            await ctx.request(PutFilm("f", ctx.offer(text())))
