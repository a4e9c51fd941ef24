"""Compression, security headers, and CORS."""

import gzip

from tests.gateway.environment import GatewayEnvironment


async def test_large_answers_are_compressed_if_the_client_accepts_gzip(env: GatewayEnvironment) -> None:
    plain = await env.client.get("/big?size=5000", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = await env.client.get("/big?size=5000", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json() == "x" * 5000
    unwanted = await env.client.get("/big?size=5000", headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in unwanted.headers
    for path in ("/big?size=5000", "/openapi.json", "/nowhere"):
        for coding in ("identity", "gzip"):
            get, head = [
                await env.client.request(method, path, headers={"Accept-Encoding": coding}) for method in ("GET", "HEAD")
            ]
            assert head.content == b""
            varying = (
                ("date", "x-request-id")
                if path != "/nowhere" or coding == "identity"
                else ("date", "x-request-id", "content-length")
            )
            assert {**dict(head.headers), **dict.fromkeys(varying)} == {**dict(get.headers), **dict.fromkeys(varying)}, (
                path,
                coding,
            )
    status, headers, body = await env.raw(b"GET /big?size=2000000 HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert len(gzip.decompress(body)) == 2_000_002


async def test_every_answer_has_security_headers(env: GatewayEnvironment) -> None:
    for path in ("/look/x", "/nowhere", "/healthz", "/docs"):
        headers = (await env.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


async def test_cors_is_off_unless_configured() -> None:
    async with GatewayEnvironment("one-node-serialized") as env:
        answer = await env.client.get("/look/x", headers={"Origin": "https://app.example"})
        assert "access-control-allow-origin" not in answer.headers
    async with GatewayEnvironment("one-node-serialized", cors_origins=("https://app.example",)) as env:
        headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
        for path in ("/put", "/healthz"):
            preflight = await env.client.options(path, headers=headers)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == "https://app.example"
            assert "PUT" in preflight.headers["access-control-allow-methods"]
        other = await env.client.get("/look/x", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_no_answer_names_the_server() -> None:
    async with GatewayEnvironment("one-node-serialized", cors_origins=("*",)) as env:
        for method, path in (("GET", "/look/x"), ("GET", "/nothing"), ("GET", "/healthz"), ("OPTIONS", "/put")):
            headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
            assert not (await env.client.request(method, path, headers=headers)).headers.get("server")
