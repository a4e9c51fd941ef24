"""The gateway, over real HTTP: what goes through, what is refused and how, and its manners as a proxy."""

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node, NodeSettings
from runtime.testing import FakeAuth, eventually
from tests.gateway.probe import Probe
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

TOPOLOGIES = ("one-node-zero-copy", "one-node-serialized", "apart")


class Site:
    """A gateway and the probe: in one node, or each on its own."""

    def __init__(self, kind: str, **settings: Any) -> None:
        self.probe = Probe()
        self.gateway = Gateway(GatewaySettings(port=0, **settings))
        network = MemoryNetwork()
        transport = MemorySettings(zero_copy=kind.endswith("zero-copy"))
        groups: list[list[Any]] = [[FakeAuth, lambda: self.probe], [lambda: self.gateway]]
        if kind != "apart":
            groups = [groups[0] + groups[1]]
        options = NodeSettings(drain_timeout=1)
        self.nodes = [Node(group, MemoryTransport(network, transport), settings=options) for group in groups]

    async def __aenter__(self) -> "Site":
        for node in self.nodes:
            await node.__aenter__()
        await self.nodes[-1].registry.wait_for("probe", "auth")
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.gateway.port}", timeout=10)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        for node in reversed(self.nodes):
            await node.stop()

    async def raw(self, text: bytes, *, half_close: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Sends bytes as they are and reads one answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            writer.write(text)
            await writer.drain()
            if half_close:
                writer.write_eof()
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
            return int(lines[0].split()[1]), headers, body
        finally:
            writer.close()


@pytest.fixture(params=TOPOLOGIES)
async def site(request: pytest.FixtureRequest) -> AsyncGenerator[Site, None]:
    async with Site(request.param) as made:
        yield made


def check_problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "code", "request_id"} <= set(body)
    assert body["status"] == status
    if code is not None:
        assert body["code"] == code
    assert "Traceback" not in answer.text
    return body


# What goes through


async def test_path_and_query_arrive_as_they_came(site: Site) -> None:
    uuid = "0192f0c1-2345-7abc-8def-0123456789ab"
    answer = await site.client.get(
        f"/look/a%2Fb%20%C3%BC?text=x+y%2B&number=-12&ratio=1.5e2&flag=true&kind=b&uuid={uuid}&tags=one&tags=two"
    )
    assert answer.status_code == 200
    body = answer.json()
    assert {name: body[name] for name in ("path", "text", "number", "ratio", "flag", "kind", "uuid", "tags")} == {
        "path": "a/b ü", "text": "x y+", "number": -12, "ratio": 150.0, "flag": True, "kind": "b", "uuid": uuid, "tags": ["one", "two"],
    }  # fmt: skip
    assert 0 < body["budget"] <= 30


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("number=1.0", "/number"), ("number=0x10", "/number"), ("number=", "/number"), ("number=%20" + "1", "/number"), ("number=1&number=2", "/number"),
        ("number=99999999999999999999", "/number"), ("number=9223372036854775808", "/number"), ("number=١", "/number"), ("number=1_000", "/number"),
        ("ratio=nan", "/ratio"), ("ratio=inf", "/ratio"), ("ratio=-Infinity", "/ratio"), ("ratio=1e999", "/ratio"), ("ratio=x", "/ratio"),
        ("flag=1", "/flag"), ("flag=True", "/flag"), ("kind=c", "/kind"), ("uuid=5", "/uuid"), ("nope=1", "/nope"), ("a%2Fb~=1", "/a~1b~0"),
    ],
)  # fmt: skip
async def test_no_surprises_in_parameters(site: Site, query: str, pointer: str) -> None:
    body = check_problem(await site.client.get(f"/look/x?{query}"), 422, "invalid")
    assert [error["pointer"] for error in body["errors"]] == [pointer]


async def test_the_request_id_and_the_trace_travel(site: Site) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await site.client.get("/look/x", headers={"X-Request-Id": "mine-1", "traceparent": trace})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["trace"] == trace
    odd = await site.client.get("/look/x", headers={"X-Request-Id": "a b\tc", "traceparent": "00-zz"})
    assert odd.headers["x-request-id"] != "a b\tc"
    assert len(odd.json()["trace"]) == 55


async def test_head_and_options(site: Site) -> None:
    get, head = await site.client.get("/look/x"), await site.client.head("/look/x")
    assert (head.status_code, head.content) == (200, b"")
    assert abs(int(head.headers["content-length"]) - len(get.content)) < 10
    options = await site.client.options("/look/x")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


async def test_large_answers_are_compressed_where_wanted(site: Site) -> None:
    plain = await site.client.get("/big?size=5000", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = await site.client.get("/big?size=5000", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json() == "x" * 5000
    unwanted = await site.client.get("/big?size=5000", headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in unwanted.headers
    status, headers, body = await site.raw(b"GET /big?size=2000000 HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert len(gzip.decompress(body)) == 2_000_002


async def test_security_headers(site: Site) -> None:
    for path in ("/look/x", "/nowhere", "/healthz", "/docs"):
        headers = (await site.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


# The status table


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status", "code"),
    [
        ("PUT", "/put", b'{"inner":', "application/json", 400, "malformed"),
        ("PUT", "/put", b"", "application/json", 400, "malformed"),
        ("PUT", "/put", b'{"inner":{"number":1},"note":"\xff"}', "application/json", 400, "malformed"),
        ("PUT", "/put", b'{"inner":"\xff"}', "application/json", 400, "malformed"),
        ("PUT", "/put", b"[" * 100_000, "application/json", 400, "malformed"),
        ("PUT", "/put", b'{"inner":' * 50_000, "application/json", 400, "malformed"),
        ("PUT", "/put", b'{"inner":{"number":1},"note":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "application/json", 400, "malformed"),
        ("GET", "/look/%ff", b"", "", 400, "malformed"),
        ("GET", "/look/x?text=%ff", b"", "", 400, "malformed"),
        ("PUT", "/put", b"null", "application/json", 422, "invalid"),
        ("PUT", "/put", b"{}", "text/plain", 415, "unsupported-media-type"),
        ("PUT", "/put", b"{}", "", 415, "unsupported-media-type"),
        ("PUT", "/put", b'"' + b"x" * 1_100_000 + b'"', "application/json", 413, "too-large"),
        ("GET", "/nowhere", b"", "", 404, "not-found"),
        ("GET", "/look", b"", "", 404, "not-found"),
        ("GET", "/look/", b"", "", 404, "not-found"),
        ("GET", "/look/x/y", b"", "", 404, "not-found"),
        ("GET", "//look/x", b"", "", 404, "not-found"),
        ("DELETE", "/put", b"", "", 405, "method-not-allowed"),
        ("TRACE", "/put", b"", "", 405, "method-not-allowed"),
        ("GET", "/guarded", b"", "", 401, "unauthenticated"),
        ("POST", "/behave/teapot", b"", "", 418, "teapot"),
        ("POST", "/behave/crash", b"", "", 500, "internal"),
        ("POST", "/behave/overloaded", b"", "", 503, "overloaded"),
        ("GET", "/look/" + "x" * 9000, b"", "", 414, "uri-too-long"),
        ("GET", "/docs/nowhere", b"", "", 404, "not-found"),
        ("GET", "/docs/assets/%00", b"", "", 404, "not-found"),
        ("GET", "/docs/assets/" + "a" * 300, b"", "", 404, "not-found"),
        ("GET", "/docs/assets/..%2f..%2fsettings.py", b"", "", 404, "not-found"),
        ("GET", "/console", b"", "", 404, "not-found"),
        ("POST", "/healthz", b"", "", 405, "method-not-allowed"),
    ],
)  # fmt: skip
async def test_status_table(site: Site, method: str, path: str, body: bytes, kind: str, status: int, code: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    check_problem(await site.client.request(method, path, content=body or None, headers=headers), status, code)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"{}", "/inner"), (b'{"inner":{}}', "/inner/number"), (b'{"inner":{"number":"x"}}', "/inner/number"),
        (b'{"inner":{"number":1,"more":2}}', "/inner/more"), (b'{"inner":{"number":1},"more":2}', "/more"),
        (b'{"inner":{"number":1},"ratio":2}', "/ratio"), (b'{"inner":{"number":1},"ratio":NaN}', "/ratio"),
        (b'{"inner":{"number":1},"ratio":-Infinity}', "/ratio"), (b'{"inner":{"number":1},"ratio":1e999}', "/ratio"),
        (b'{"inner":{"number":Infinity}}', "/inner/number"), (b"[]", ""),
    ],
)  # fmt: skip
async def test_a_wrong_body_is_named(site: Site, body: bytes, pointer: str) -> None:
    answer = await site.client.put("/put", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert [error["pointer"] for error in check_problem(answer, 422, "invalid")["errors"]] == [pointer]


async def test_a_field_name_that_looks_like_our_own_text_does_no_harm(site: Site) -> None:
    body = json.dumps({" - at `$" + "[" * 200_000: 1}).encode()
    async with asyncio.timeout(5):
        check_problem(await site.client.put("/put", content=body, headers={"Content-Type": "application/json"}), 422, "invalid")


async def test_an_error_has_its_fields_and_no_detail_of_ours(site: Site) -> None:
    teapot = check_problem(await site.client.post("/behave/teapot"), 418)
    assert (teapot["volume"], teapot["title"], teapot["type"]) == (3, "I am a teapot", "urn:callboard:probe:teapot")
    crash = check_problem(await site.client.post("/behave/crash"), 500)
    assert len(crash["incident"]) == 16
    assert "secret" not in json.dumps(crash)
    busy = await site.client.post("/behave/overloaded")
    assert busy.headers["retry-after"] == "1"
    assert "probe" not in busy.text, "how the system is cut is not told"


async def test_tokens_and_roles(site: Site) -> None:
    def bearer(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    assert (await site.client.get("/guarded", headers=bearer(FakeAuth.token("u1", "rider")))).json() == "u1"
    check_problem(await site.client.get("/guarded", headers=bearer(FakeAuth.token("u1", "operator"))), 403, "forbidden")
    wrong = await site.client.get("/guarded", headers=bearer("nonsense"))
    check_problem(wrong, 401, "unauthenticated")
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert (await site.client.get("/look/x", headers=bearer("nonsense"))).status_code == 200, "nobody looks at it there"


async def test_no_instance_is_503(site: Site) -> None:
    """Not 404: the service was there, and may come back."""
    supervised = next(one for node in site.nodes for one in node.supervised if one.name == "probe")
    supervised.stop()
    registry = site.nodes[-1].registry
    await eventually(lambda: not registry.members("probe"), "the probe has left")
    check_problem(await site.client.get("/look/x"), 503, "no-instance")


# Manners


@pytest.mark.parametrize("kind", TOPOLOGIES)
async def test_the_deadline_is_504_and_cancels_the_work(kind: str) -> None:
    async with Site(kind, request_timeout=0.2) as site:
        check_problem(await site.client.post("/behave/hang"), 504, "deadline-exceeded")
        await eventually(lambda: site.probe.log_of == ["begun", "cancelled"], "the work was cancelled")


async def test_a_client_that_goes_away_cancels_the_work(site: Site) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", site.gateway.port)
    writer.write(b"POST /behave/hang HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    await eventually(lambda: site.probe.log_of == ["begun"], "the work began")
    writer.close()
    await eventually(lambda: site.probe.log_of == ["begun", "cancelled"], "the work was cancelled")
    assert (await site.client.get("/look/x")).status_code == 200
    await eventually(lambda: site.gateway.limits.running == 0, "and nothing is left")


async def test_an_incomplete_or_slow_body() -> None:
    async with Site("one-node-serialized", body_timeout=0.3) as site:
        head = b"PUT /put HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        status, _, body = await site.raw(head + b'{"inner"')
        assert (status, json.loads(body)["code"]) == (408, "body-too-slow")
        chunked = b"PUT /put HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        status, _, body = await site.raw(chunked + b"zz\r\n")
        assert status == 400
        status, _, _ = await site.raw(chunked + b"13\r\n" + b'{"inner":{"number":' + b"\r\n3\r\n7}}\r\n0\r\n\r\n")
        assert status == 200
        big = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        status, _, body = await site.raw(chunked + big * 20)
        assert (status, json.loads(body)["code"]) == (413, "too-large")


async def test_too_many_at_once() -> None:
    async with Site("one-node-serialized", max_requests=3) as site:
        held = [asyncio.create_task(site.client.post("/behave/hang")) for _ in range(3)]
        await eventually(lambda: len(site.probe.log_of) == 3, "three are under way")
        busy = await site.client.get("/look/x")
        check_problem(busy, 503, "overloaded")
        assert busy.headers["retry-after"] == "1"
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_stalled_bodies_keep_nobody_from_asking_without_one() -> None:
    async with Site("one-node-serialized", max_requests=3, body_timeout=5) as site:
        head = b"PUT /put HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        stalled = [await asyncio.open_connection("127.0.0.1", site.gateway.port) for _ in range(3)]
        for _, writer in stalled:
            writer.write(head)
        await eventually(lambda: site.gateway.limits.reading == 3, "three bodies are being read")
        check_problem(await site.client.put("/put", json={"inner": {"number": 1}}), 503, "overloaded")
        assert (await site.client.get("/look/x")).status_code == 200
        for _, writer in stalled:
            writer.close()
        await eventually(lambda: site.gateway.limits.reading == 0, "they have gone")
        assert (await site.client.put("/put", json={"inner": {"number": 1}})).status_code == 200


async def test_too_many_from_one_address() -> None:
    async with Site("one-node-serialized", rate=0.001, burst=5) as site:
        statuses = [(await site.client.get("/look/x")).status_code for _ in range(6)]
        assert statuses == [200] * 5 + [429]
        refused = await site.client.get("/look/x")
        check_problem(refused, 429, "too-many-requests")
        assert int(refused.headers["retry-after"]) > 1


async def test_headers_have_limits() -> None:
    async with Site("one-node-serialized") as site:
        check_problem(await site.client.get("/look/x", headers={"X-Big": "x" * 20_000}), 431, "headers-too-large")


async def test_cors_is_off_unless_set() -> None:
    async with Site("one-node-serialized") as site:
        answer = await site.client.get("/look/x", headers={"Origin": "https://app.example"})
        assert "access-control-allow-origin" not in answer.headers
    async with Site("one-node-serialized", cors_origins=("https://app.example",)) as site:
        headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
        for path in ("/put", "/healthz"):
            preflight = await site.client.options(path, headers=headers)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == "https://app.example"
            assert "PUT" in preflight.headers["access-control-allow-methods"]
        other = await site.client.get("/look/x", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_stopping_finishes_what_runs_and_closes() -> None:
    site = Site("one-node-serialized")
    async with site:
        slow = asyncio.create_task(site.client.post("/behave/hang"))
        await eventually(lambda: site.probe.log_of == ["begun"], "the work began")
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
    with pytest.raises(OSError, match=r".+"):
        await asyncio.open_connection("127.0.0.1", site.gateway.port)


async def test_a_new_service_appears_without_a_restart() -> None:
    network = MemoryNetwork()
    gateway = Gateway(GatewaySettings(port=0))
    async with (
        Node([lambda: gateway], MemoryTransport(network)),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}") as client,
    ):
        check_problem(await client.get("/look/x"), 404)
        assert (await client.get("/readyz")).status_code == 503
        async with Node([FakeAuth, Probe], MemoryTransport(network)) as node:
            await eventually(lambda: gateway.proxy.registry.members("probe"), "the probe is seen")
            assert (await client.get("/look/x")).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
            assert "/look/{path}" in (await client.get("/openapi.json")).json()["paths"]
            del node
        await eventually(lambda: not gateway.proxy.registry.members("probe"), "the probe has gone")
        check_problem(await client.get("/look/x"), 503, "no-instance")


# Pages


async def test_pages(site: Site) -> None:
    assert (await site.client.get("/healthz")).json() == {"status": "ok"}
    assert (await site.client.head("/healthz")).content == b""
    docs = await site.client.get("/docs")
    assert "text/html" in docs.headers["content-type"]
    assert "http" not in docs.text.replace("http-equiv", ""), "nothing is fetched from elsewhere"
    for path in ("/docs/start.js", "/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css"):
        assert (await site.client.get(path)).status_code == 200
    metrics = await site.client.get("/metrics")
    assert "# TYPE callboard_requests_running gauge" in metrics.text
    jwks = await site.client.get("/.well-known/jwks.json")
    assert jwks.json()["keys"][0]["kid"] == "fake"
    assert jwks.headers.get_list("cache-control") == ["public, max-age=30"]
