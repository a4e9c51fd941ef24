"""Requests and replies whose parts are header fields, cookies, and the rest of a path."""

from collections.abc import AsyncGenerator

import httpx
import pytest
from openapi_spec_validator import validate

from runtime import (
    Node,
    NodeSettings,
    Upload,
)
from tests.gateway.environment import TOPOLOGIES, check_problem
from tests.gateway.parts_service import Library, PutArticle, Store, library, library_client
from transports.memory import MemoryTransport


@pytest.fixture(params=TOPOLOGIES)
async def client(request: pytest.FixtureRequest) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with library_client(request.param) as made:
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


async def test_between_services_such_a_field_is_like_any_other(client: httpx.AsyncClient) -> None:
    async with Node([Library], MemoryTransport(), settings=NodeSettings(drain_timeout=1)) as node:
        ctx = node.client("test", (library,))
        article = await ctx.request(PutArticle("a", "t", '"v1"', 2))
        assert (article.etag, article.tag_list) == ('"v2"', ("2", "t", ""))
        assert (await ctx.request(Store("T", Upload("a", "text/plain", b"abc")))).size == 3
