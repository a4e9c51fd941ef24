"""Requests and replies whose parts are header fields, cookies, other bodies, files, and the rest of a path."""

import types
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from msgspec import Meta
from openapi_spec_validator import validate

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
    Transaction,
    Upload,
    handles,
    roles,
)
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import FakeAuth, eventually
from tests.gateway.environment import TOPOLOGIES, check_problem
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


@pytest.fixture(params=TOPOLOGIES)
async def client(request: pytest.FixtureRequest) -> AsyncGenerator[httpx.AsyncClient, None]:
    gateway = Gateway(GatewaySettings(port=0, cors_origins=("https://app.test",), max_body=100_000))
    network, memory = MemoryNetwork(), MemorySettings(zero_copy=request.param.endswith("zero-copy"))
    groups: list[list[Any]] = [[FakeAuth, Library], [lambda: gateway]]
    groups = groups if request.param == "apart" else [groups[0] + groups[1]]
    nodes = [Node(group, MemoryTransport(network, memory), settings=NodeSettings(drain_timeout=1)) for group in groups]
    async with nodes[0], nodes[-1] if len(nodes) > 1 else httpx.AsyncClient(verify=False):
        await nodes[-1].registry.wait_for("library", "auth")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as made:
            yield made


async def test_fields_of_a_reply_become_header_fields(client: httpx.AsyncClient) -> None:
    answer = await client.get("/articles/a")
    assert answer.json() == {"slug": "a"}
    headers = answer.headers
    assert (headers["etag"], headers["last-modified"], headers["x-view-count"]) == ('"v1"', "Wed, 18 Feb 2026 03:22:56 GMT", "7")
    assert headers["x-tags"] == "en, x"
    assert headers["cache-control"] == "private, no-cache"
    assert headers["x-content-type-options"] == "nosniff"
    head = await client.head("/articles/a")
    assert (head.headers["etag"], head.content) == ('"v1"', b"")


async def test_a_request_reads_header_fields(client: httpx.AsyncClient) -> None:
    assert (await client.get("/articles/a", headers={"Accept-Language": "de, en;q=0.5"})).headers["x-tags"] == "de, en;q=0.5, x"
    given = {"If-Match": '"v1"', "X-Depth": "3", "X-Flag": "a,  b", "If-Unmodified-Since": "Wed, 18 Feb 2026 03:22:56 GMT"}
    answer = await client.put("/articles/a", json={"title": "t"}, headers=given)
    assert answer.headers["x-tags"] == "a, b, 3, t, 2026-02-18T03:22:56+00:00"
    assert (await client.put("/articles/a", json={"title": "t"}, headers={"If-Match": '"v0"'})).status_code == 412


@pytest.mark.parametrize(
    ("headers", "pointer", "detail"),
    [
        ({}, "/If-Match", "missing"),
        ({"If-Match": "x", "X-Depth": "10"}, "/X-Depth", "<= 9"),
        ({"If-Match": "x", "X-Depth": "ten"}, "/X-Depth", "integer"),
        ({"If-Match": "x", "If-Unmodified-Since": "soon"}, "/If-Unmodified-Since", "RFC3339"),
    ],
)
async def test_a_header_field_that_does_not_fit_is_named(
    client: httpx.AsyncClient, headers: dict[str, str], pointer: str, detail: str
) -> None:
    problem = check_problem(await client.put("/articles/a", json={"title": "t"}, headers=headers), 422, "invalid")
    assert problem["errors"][0]["pointer"] == pointer
    assert detail in problem["errors"][0]["detail"]


async def test_neither_query_nor_body_can_take_the_place_of_a_header_field(client: httpx.AsyncClient) -> None:
    for answer in (
        await client.put("/articles/a", params={"ifMatch": '"v1"'}, json={"title": "t"}),
        await client.put("/articles/a", params={"If-Match": '"v1"'}, json={"title": "t"}),
        await client.put("/articles/a", json={"title": "t", "ifMatch": '"v1"'}),
        await client.get("/articles/a", params={"acceptLanguage": "de"}),
        await client.get("/whoami", params={"session": "stolen"}),
    ):
        check_problem(answer, 422, "invalid")
    raw = await client.put("/articles/a", json={"title": "t"}, headers=[(b"If-Match", b"\xff")])
    check_problem(raw, 400, "malformed")


async def test_a_client_that_has_the_representation_gets_304(client: httpx.AsyncClient) -> None:
    for value, status in (('"v1"', 304), ('W/"v1"', 304), ('"x,y", "v1"', 304), ("*", 304), ('"v2"', 200), ("v1", 200)):
        answer = await client.get("/articles/a", headers={"If-None-Match": value})
        assert (answer.status_code, answer.headers["etag"]) == (status, '"v1"')
        assert (answer.content == b"") is (status == 304)
    assert (await client.get("/whoami", headers={"If-None-Match": "*"})).status_code == 200


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Sun Nov  6 08:49:37 1994", 200),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 200),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 200),
        ("Wed, 18 Feb 2026 03:22:56 +99999999999999999", 422),
        ("Wed, 18 Feb 99999999999999999999999 03:22:56 GMT", 422),
        ("", 422),
    ],
)
async def test_dates_of_http_have_three_forms(client: httpx.AsyncClient, text: str, status: int) -> None:
    headers = {"If-Match": '"v1"', "If-Unmodified-Since": text}
    answer = await client.put("/articles/a", json={"title": "t"}, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert "1994-11-06T08:49:37+00:00" in answer.headers["x-tags"]


async def test_empty_elements_of_a_list_are_left_out(client: httpx.AsyncClient) -> None:
    headers = {"If-Match": '"v1"', "X-Flag": ", a,, b ,"}
    assert (await client.put("/articles/a", json={"title": "t"}, headers=headers)).headers["x-tags"].startswith("a, b, 1, t")


async def test_no_header_field_is_sent_twice(client: httpx.AsyncClient) -> None:
    for answer in (await client.delete("/articles/a"), await client.get("/articles/a")):
        names = [name for name, _ in answer.headers.multi_items()]
        assert sorted(set(names)) == sorted(names)
    answer = await client.delete("/articles/a")
    assert (answer.status_code, answer.headers["cache-control"]) == (204, "max-age=60")


async def test_a_location_may_be_all_that_a_reply_has(client: httpx.AsyncClient) -> None:
    answer = await client.post("/articles", json={"title": "/articles/x"})
    assert (answer.status_code, answer.headers["location"], answer.json()) == (201, "/articles/x", {})
    split = await client.post("/articles", json={"title": "/x\r\nSet-Cookie: a=b"})
    check_problem(split, 500)
    assert "set-cookie" not in split.headers
    assert (await client.post("/articles", json={"title": "/a\u00e9"})).headers["location"] == "/aé"


async def test_cookies_are_set_read_and_deleted(client: httpx.AsyncClient) -> None:
    answer = await client.post("/login", json={"name": "ada"})
    assert answer.json() == {"name": "ada"}
    assert answer.headers.get_list("set-cookie") == [
        "session=s-ada; Max-Age=3600; Path=/; HttpOnly; Secure; SameSite=Lax",
        "theme=dark; Path=/x; SameSite=Strict",
    ]
    client.cookies.clear()
    for cookie in ("session=s-ada", 'a=b;session="s-ada"; c', "x=session=1; session=s-ada"):
        assert (await client.get("/whoami", headers={"Cookie": cookie})).json()["name"] == "s-ada"
    assert (await client.get("/whoami", headers={"Cookie": "other-session=1"})).json()["name"] == ""
    deleted = await client.post("/login", json={"name": ""})
    assert deleted.headers.get_list("set-cookie")[0] == "session=; Max-Age=0; Path=/; HttpOnly; Secure; SameSite=Lax"
    check_problem(await client.post("/login", json={"name": "a; Domain=evil.test"}), 500)


async def test_a_body_of_another_media_type_is_a_field(client: httpx.AsyncClient) -> None:
    content = bytes(range(256)) * 10
    for media in ("image/png", "video/mp4", "IMAGE/SVG+XML; charset=utf-8"):
        assert (await client.put("/photos/1", content=content, headers={"Content-Type": media})).json() == len(content)
        answer = await client.get("/photos/1")
        assert (answer.content, answer.headers["content-type"]) == (content, media)
    assert "content-disposition" not in answer.headers
    assert (await client.get("/photos/a.png")).headers["content-disposition"] == 'attachment; filename="a.png"'
    for media in ("application/json", "image/gif", "videos/mp4", ""):
        check_problem(await client.put("/photos/1", content=content, headers={"Content-Type": media}), 415)
    check_problem(await client.put("/photos/1", content=bytes(100_001), headers={"Content-Type": "image/png"}), 413)
    assert (await client.put("/photos/1", content=bytes(100_000), headers={"Content-Type": "image/png"})).json() == 100_000
    assert (await client.put("/photos/1", content=b"", headers={"Content-Type": "image/png"})).json() == 0


async def test_a_text_may_be_the_body(client: httpx.AsyncClient) -> None:
    answer = await client.post("/convert", content="é,b\n".encode(), headers={"Content-Type": "text/csv"})
    assert (answer.text, answer.headers["content-type"]) == ("É,B\n", "text/csv")
    check_problem(await client.post("/convert", content=b"\xff", headers={"Content-Type": "text/csv"}), 400, "malformed")


async def test_a_form_brings_texts_and_files(client: httpx.AsyncClient) -> None:
    files: list[Any] = [
        ("cover", ("c.png", b"\x00\xff", "image/png")),
        ("pages", ("p é.txt", b"one")),
        ("pages", ("../p2", b"", None)),
    ]
    data = {"title": "T", "copyCount": "3", "tags": ["a", "b"]}
    answer = await client.post("/store", data=data, files=files)
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"title": "T", "size": 5, "names": ["c.png", "p é.txt", "../p2"], "count": 3}


async def test_a_file_input_that_was_left_empty_brings_no_file(client: httpx.AsyncClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    parts = (b"title", b"", b"T"), (b"cover", b'; filename="c.png"', b"x"), (b"pages", b'; filename=""', b"")
    body = b"".join(part % given for given in parts) + b"--x--\r\n"
    answer = await client.post("/store", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.json()["names"] == ["c.png"]


@pytest.mark.parametrize(
    ("data", "files", "pointer"),
    [
        ({"title": "T"}, [("pages", ("a", b""))], "/cover"),
        ({"title": "T", "copyCount": "0"}, [("cover", ("a", b""))], "/copyCount"),
        ({"title": "T", "copyCount": "x"}, [("cover", ("a", b""))], "/copyCount"),
        ({}, [("cover", ("a", b""))], "/title"),
        ({"title": "T"}, [("cover", ("a", b"")), ("cover", ("b", b""))], "/cover"),
        ({"title": "T"}, [("cover", ("a", b"")), ("title", ("b", b""))], "/title"),
        ({"title": "T"}, [("cover", ("a", b"")), ("other", ("b", b""))], "/other"),
        ({"title": "T", "cover": "text"}, [("pages", ("b", b""))], "/cover"),
        ({"title": "T", "other": "text"}, [("cover", ("b", b""))], "/other"),
    ],
)
async def test_a_form_that_does_not_fit_is_refused(
    client: httpx.AsyncClient, data: dict[str, str], files: list[Any], pointer: str
) -> None:
    problem = check_problem(await client.post("/store", data=data, files=files), 422, "invalid")
    assert [fault["pointer"] for fault in problem["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nT\r\n"),
        ("multipart/form-data; boundary=x", b"no form"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\n\xff\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nT\r\n--x--\r\n"),
    ],
)  # fmt: skip
async def test_a_form_that_cannot_be_read_is_malformed(client: httpx.AsyncClient, content_type: str, body: bytes) -> None:
    check_problem(await client.post("/store", content=body, headers={"Content-Type": content_type}), 400, "malformed")
    check_problem(await client.post("/store", json={"title": "T"}), 415)


async def test_a_parameter_takes_the_rest_of_the_path(client: httpx.AsyncClient) -> None:
    for path, expected in (
        ("/files/a/b", "a|b"), ("/files/a/b/c.txt", "a|b/c.txt"), ("/files/a/b/", "a|b/"), ("/files/a//b", "a|/b"),
        ("/files/%61/b%2Fc/d%20e", "a|b/c/d e"),
    ):  # fmt: skip
        assert (await client.get(path)).json() == expected
    for path in ("/files/a", "/files/a/", "/files//b"):
        check_problem(await client.get(path), 404)
    check_problem(await client.post("/files/a/b"), 405)


async def test_pages_of_other_origins_may_send_and_read_the_header_fields(client: httpx.AsyncClient) -> None:
    preflight = {
        "Origin": "https://app.test",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "if-match",
    }
    allowed = (await client.options("/articles/a", headers=preflight)).headers["access-control-allow-headers"].lower().split(", ")
    assert {"if-match", "x-depth", "authorization"} <= set(allowed)
    exposed = (await client.get("/articles/a", headers={"Origin": "https://app.test"})).headers["access-control-expose-headers"]
    assert {"ETag", "Location", "X-Tags", "X-Request-Id"} <= set(exposed.split(", "))


async def test_the_document_describes_the_parts(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    validate(document)
    paths = document["paths"]
    put = paths["/articles/{slug}"]["put"]
    parameters = {(one["in"], one["name"]): one["required"] for one in put["parameters"]}
    assert parameters == {
        ("path", "slug"): True, ("header", "If-Match"): True, ("header", "X-Depth"): False, ("header", "X-Flag"): False,
        ("header", "If-Unmodified-Since"): False,
    }  # fmt: skip
    assert set(put["requestBody"]["content"]["application/json"]["schema"]["properties"]) == {"title"}
    success = paths["/articles/{slug}"]["get"]["responses"]
    assert set(success["200"]["headers"]) == {"ETag", "Last-Modified", "X-View-Count", "X-Tags"}
    assert set(success["200"]["content"]["application/json"]["schema"]["properties"]) == {"slug"}
    assert "304" in success
    assert set(paths["/photos/{id}"]["put"]["requestBody"]["content"]) == {"image/png", "image/svg+xml", "video/*"}
    assert paths["/convert"]["post"]["responses"]["200"]["content"] == {"text/csv": {"schema": {"type": "string"}}}
    form = paths["/store"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["cover"] == {"type": "string", "format": "binary"}
    assert form["properties"]["pages"] == {"type": "array", "items": {"type": "string", "format": "binary"}}
    assert (form["properties"]["copyCount"]["type"], form["required"]) == ("integer", ["title", "cover"])
    assert paths["/login"]["post"]["responses"]["200"]["headers"] == {"Set-Cookie": {"schema": {"type": "string"}}}
    assert "/files/{folder}/{name}" in paths


new = Contract("library")


@new.message
class UploadPhoto(Request[int]):
    data: Annotated[bytes, Body("image/png", "image/gif")]
    id: str


class NewLibrary(Service):
    contract = new
    version = "1"

    @handles(http="PUT /photos/{id}", allow=ANYONE)
    async def put(self, message: UploadPhoto, ctx: Context) -> int:
        return -len(message.data)


@pytest.mark.parametrize("zero_copy", [True, False])
async def test_two_versions_may_bind_a_body_differently(zero_copy: bool) -> None:
    gateway, network, memory = Gateway(GatewaySettings(port=0)), MemoryNetwork(), MemorySettings(zero_copy=zero_copy)
    options = NodeSettings(drain_timeout=1)
    async with (
        Node([Library], MemoryTransport(network, memory), settings=options),
        Node([NewLibrary], MemoryTransport(network, memory), settings=options),
        Node([FakeAuth, lambda: gateway], MemoryTransport(network, memory), settings=options) as node,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as client,
    ):
        await eventually(lambda: len(node.registry.members("library")) == 2, "both versions are live")
        photos = [await client.put("/photos/1", content=b"xyz", headers={"Content-Type": "image/png"}) for _ in range(20)]
        assert {photo.json() for photo in photos} == {3, -3}


class Placed(Struct):
    location: Annotated[str, Header("Location")]


@pytest.mark.parametrize("reply", [None, Placed])
async def test_a_stored_reply_without_fields_is_replayed_as_it_was(tmp_path: Path, reply: Any) -> None:
    """The first version has no reply. The second one has a header field, and the first one's stored replies."""

    def version(kind: Any) -> type[Service]:
        contract = Contract("orders")
        message = contract.message(
            types.new_class("Place", (Request[kind],), exec_body=lambda body: body.update(__module__=__name__))
        )

        async def place(self: Any, message: Any, ctx: Context, tx: Transaction) -> Any:
            return None if kind is None else Placed("/x")

        place.__annotations__ = {"message": message, "ctx": Context, "tx": Transaction, "return": kind}
        handler = handles(http="POST /orders", allow=roles("rider"), once=True)(place)
        return type("Orders", (Service,), {"contract": contract, "place": handler})

    headers = {"Authorization": f"Bearer {FakeAuth.token('u1', 'rider')}", "Idempotency-Key": "k1"}
    answers = list[httpx.Response]()
    for kind in (reply, Placed):
        gateway = Gateway(GatewaySettings(port=0))
        services: list[Any] = [FakeAuth, version(kind), lambda: gateway]  # noqa: B023  # it is made at once
        async with (
            Node(services, MemoryTransport(), databases=SqliteFolder(tmp_path), settings=NodeSettings(drain_timeout=1)) as node,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as client,
        ):
            await node.registry.wait_for("orders", "auth")
            answers += [await client.post("/orders", headers=headers)]
    assert [answer.status_code for answer in answers] == ([204, 204] if reply is None else [200, 200])
    assert [answer.headers.get("location") for answer in answers] == [None if reply is None else "/x"] * 2


async def test_between_services_such_a_field_is_like_any_other(client: httpx.AsyncClient) -> None:
    async with Node([Library], MemoryTransport(), settings=NodeSettings(drain_timeout=1)) as node:
        ctx = node.client("test", (library,))
        article = await ctx.request(PutArticle("a", "t", '"v1"', 2))
        assert (article.etag, article.tag_list) == ('"v2"', ("2", "t", ""))
        assert (await ctx.request(Store("T", Upload("a", "text/plain", b"abc")))).size == 3
