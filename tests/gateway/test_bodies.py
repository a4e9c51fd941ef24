"""Bodies that are not JSON: other media types, texts, and forms with files."""

import types
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import (
    ANYONE,
    Body,
    Context,
    Contract,
    Header,
    Node,
    NodeSettings,
    Request,
    Service,
    Struct,
    Transaction,
    handles,
    roles,
)
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import FakeAuth, eventually
from tests.gateway.environment import TOPOLOGIES, check_problem
from tests.gateway.parts_service import Library, library_client
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport


@pytest.fixture(params=TOPOLOGIES)
async def client(request: pytest.FixtureRequest) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with library_client(request.param) as made:
        yield made


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
