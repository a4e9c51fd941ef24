"""A service whose messages have parts of HTTP other than JSON, and clients of a gateway in front of it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
from msgspec import Meta

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import (
    ANYONE,
    Body,
    Context,
    Contract,
    Cookie,
    Header,
    Node,
    NodeSettings,
    Request,
    Service,
    ServiceError,
    Struct,
    Upload,
    handles,
)
from runtime.testing import FakeAuth
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

library = Contract("library")
WHEN = datetime(2026, 2, 18, 3, 22, 56, tzinfo=UTC)


class Article(Struct, rename="camel"):
    slug: str
    etag: Annotated[str, Header("ETag")]
    last_modified: Annotated[datetime | None, Header("Last-Modified")] = None
    view_count: Annotated[int | None, Header("X-View-Count")] = None
    tag_list: Annotated[tuple[str, ...], Header("X-Tags")] = ()


@library.message
class Changed(ServiceError):
    """Somebody else has changed it."""

    code, status = "changed", 412


@library.message
class GetArticle(Request[Article], rename="camel"):
    slug: str
    accept_language: Annotated[str, Header("Accept-Language")] = "en"


@library.message
class PutArticle(Request[Article], rename="camel"):
    slug: str
    title: str
    if_match: Annotated[str, Header("If-Match")]
    depth: Annotated[int, Meta(ge=1, le=9), Header("X-Depth")] = 1
    flags: Annotated[tuple[str, ...], Header("X-Flag")] = ()
    since: Annotated[datetime | None, Header("If-Unmodified-Since")] = None


class Created(Struct):
    location: Annotated[str, Header("Location")]


@library.message
class PostArticle(Request[Created]):
    title: str


class LoggedIn(Struct):
    name: str
    session: Annotated[str | None, Cookie("session", max_age=3600)] = None
    theme: Annotated[str | None, Cookie("theme", http_only=False, secure=False, same_site="Strict", path="/x")] = None


@library.message
class LogIn(Request[LoggedIn]):
    name: str


@library.message
class Whoami(Request[LoggedIn]):
    session: Annotated[str, Cookie("session")] = ""


class Photo(Struct):
    content: Annotated[bytes, Body("application/octet-stream")]
    content_type: Annotated[str, Header("Content-Type")]
    name: Annotated[str | None, Header("Content-Disposition")] = None


@library.message
class PutPhoto(Request[int]):
    id: str
    content: Annotated[bytes, Body("image/png", "image/svg+xml", "video/*")]
    content_type: Annotated[str, Header("Content-Type")]


@library.message
class GetPhoto(Request[Photo]):
    id: str


class Table(Struct):
    rows: Annotated[str, Body("text/csv")]


@library.message
class Convert(Request[Table]):
    rows: Annotated[str, Body("text/csv")]


class Stored(Struct):
    title: str
    size: int
    names: tuple[str, ...]
    count: int


@library.message
class Store(Request[Stored], rename="camel"):
    title: str
    cover: Upload
    pages: tuple[Upload, ...] = ()
    copy_count: Annotated[int, Meta(ge=1)] = 1
    tags: tuple[str, ...] = ()


@library.message
class GetFile(Request[str]):
    folder: str
    name: str


class Deleted(Struct):
    cache_control: Annotated[str, Header("Cache-Control")]


@library.message
class DeleteArticle(Request[Deleted]):
    slug: str


class Library(Service):
    contract = library

    def __init__(self) -> None:
        super().__init__()
        self.photo = (b"", "")

    @handles(http="GET /articles/{slug}", allow=ANYONE)
    async def get(self, message: GetArticle, ctx: Context) -> Article:
        return Article(message.slug, '"v1"', WHEN, 7, (message.accept_language, "x"))

    @handles(http="PUT /articles/{slug}", allow=ANYONE, raises=(Changed,))
    async def put(self, message: PutArticle, ctx: Context) -> Article:
        if message.if_match != '"v1"':
            raise Changed
        tags = (*message.flags, str(message.depth), message.title, "" if message.since is None else message.since.isoformat())
        return Article(message.slug, '"v2"', tag_list=tags)

    @handles(http="DELETE /articles/{slug}", status=204, allow=ANYONE)
    async def delete(self, message: DeleteArticle, ctx: Context) -> Deleted:
        return Deleted("max-age=60")

    @handles(http="POST /articles", status=201, allow=ANYONE)
    async def post(self, message: PostArticle, ctx: Context) -> Created:
        return Created(message.title)

    @handles(http="POST /login", allow=ANYONE)
    async def log_in(self, message: LogIn, ctx: Context) -> LoggedIn:
        return LoggedIn(message.name, message.name and f"s-{message.name}", "dark")

    @handles(http="GET /whoami", allow=ANYONE)
    async def whoami(self, message: Whoami, ctx: Context) -> LoggedIn:
        return LoggedIn(message.session)

    @handles(http="PUT /photos/{id}", allow=ANYONE)
    async def put_photo(self, message: PutPhoto, ctx: Context) -> int:
        self.photo = (message.content, message.content_type)
        return len(message.content)

    @handles(http="GET /photos/{id}", allow=ANYONE)
    async def get_photo(self, message: GetPhoto, ctx: Context) -> Photo:
        return Photo(*self.photo, None if message.id == "1" else f'attachment; filename="{message.id}"')

    @handles(http="POST /convert", allow=ANYONE)
    async def convert(self, message: Convert, ctx: Context) -> Table:
        return Table(message.rows.upper())

    @handles(http="POST /store", status=201, allow=ANYONE)
    async def store(self, message: Store, ctx: Context) -> Stored:
        files = (message.cover, *message.pages)
        return Stored(message.title, sum(len(one.content) for one in files), tuple(one.name for one in files), message.copy_count)

    @handles(http="GET /files/{folder}/{name:path}", allow=ANYONE)
    async def file(self, message: GetFile, ctx: Context) -> str:
        return f"{message.folder}|{message.name}"


@asynccontextmanager
async def library_client(kind: str) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client of a gateway in front of the library, on one of the topologies."""
    gateway = Gateway(GatewaySettings(port=0, cors_origins=("https://app.test",), max_body=100_000))
    network, memory = MemoryNetwork(), MemorySettings(zero_copy=kind.endswith("zero-copy"))
    groups: list[list[Any]] = [[FakeAuth, Library], [lambda: gateway]]
    groups = groups if kind == "apart" else [groups[0] + groups[1]]
    nodes = [Node(group, MemoryTransport(network, memory), settings=NodeSettings(drain_timeout=1)) for group in groups]
    async with nodes[0], nodes[-1] if len(nodes) > 1 else httpx.AsyncClient(verify=False):
        await nodes[-1].registry.wait_for("library", "auth")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as made:
            yield made
