"""Header fields, sent as bytes over a socket: what HTTP/1.1 forbids is refused, and what it allows is served."""

import json
from collections.abc import AsyncGenerator

import pytest

from tests.gateway.environment import GatewayEnvironment


@pytest.fixture
async def env() -> AsyncGenerator[GatewayEnvironment, None]:
    """A gateway and the probe on one node. Fields are read before anything that depends on the topology."""
    async with GatewayEnvironment("one-node-serialized") as opened:
        yield opened


async def test_an_ambiguous_request_is_refused(env: GatewayEnvironment) -> None:
    get, host, put = b"GET /look/x HTTP/1.1\r\n", b"Host: a\r\n", b"PUT /put HTTP/1.1\r\nHost: a\r\n"
    typed, body = b"Content-Type: application/json\r\n", b"2\r\n{}\r\n0\r\n\r\n"
    refused = {
        "no Host": get,
        "an empty Host": get + b"Host:\r\n",
        "two Hosts": get + host + b"Host: b\r\n",
        "the same Host twice": get + host + host,
        "a Host with a space": get + b"Host: a b\r\n",
        "a Host with a path": get + b"Host: a/b\r\n",
        "a Host with user information": get + b"Host: u@a\r\n",
        "two Hosts in HTTP/1.0": b"GET /look/x HTTP/1.0\r\n" + host + host,
        "two tokens": get + host + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
        "two spellings": get + host + b"Authorization: Bearer a\r\nauthorization: Bearer a\r\n",
        "two keys": put + typed + b"Idempotency-Key: a\r\nIdempotency-Key: b\r\nContent-Length: 0\r\n",
        "two types": put + typed + typed + b"Content-Length: 0\r\n",
        "two codings": put + typed + b"Content-Encoding: identity\r\nContent-Encoding: identity\r\nContent-Length: 0\r\n",
        "two positions": get + host + b"Last-Event-ID: 1\r\nLast-Event-ID: 2\r\n",
        "TE names chunked twice": get + host + b"TE: chunked, chunked\r\n",
        "two on a page": b"GET /healthz HTTP/1.1\r\n" + host + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
        "no Host on a page": b"GET /healthz HTTP/1.1\r\n",
    }
    requests = {name: head + b"\r\n" for name, head in refused.items()}
    for coding in (b"chunked, chunked", b"chunked\r\nTransfer-Encoding: chunked", b"gzip, chunked", b"identity, chunked"):
        requests[coding.decode()] = put + typed + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + body
    for name, text in requests.items():
        status, headers, content = await env.raw(text)
        assert (status, json.loads(content)["code"]) == (400, "bad-request"), name
        assert headers["x-request-id"] == json.loads(content)["request_id"], name
    for name, text in {
        "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "+2": b"Content-Length: +2\r\n\r\n{}",
    }.items():
        status, _, _ = await env.raw(put + typed + text)
        assert status == 400, name


async def test_what_http_allows_is_served(env: GatewayEnvironment) -> None:
    get = b"GET /look/x HTTP/1.1\r\n"
    allowed = {
        "HTTP/1.0 without Host": b"GET /look/x HTTP/1.0\r\n",
        "HTTP/1.0 with Host": b"GET /look/x HTTP/1.0\r\nHost: a\r\n",
        "a port": get + b"Host: example.com:8000\r\n",
        "an IPv6 address": get + b"Host: [::1]:80\r\n",
        "the absolute form": b"GET http://a/look/x HTTP/1.1\r\nHost: a\r\n",
        "TE with trailers": get + b"Host: a\r\nTE: trailers, chunked\r\n",
        "list fields twice": get + b"Host: a\r\nAccept: text/html\r\nAccept: */*\r\nVia: 1.1 a\r\nVia: 1.1 b\r\n",
        "two cookies": get + b"Host: a\r\nCookie: a=1\r\nCookie: b=2\r\n",
    }
    for name, head in allowed.items():
        status, _, _ = await env.raw(head + b"\r\n")
        assert status == 200, name
    chunked = b"PUT /put HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: Chunked\r\n\r\n"
    status, _, _ = await env.raw(chunked + b'16\r\n{"inner":{"number":1}}\r\n0\r\n\r\n')
    assert status == 200


async def test_lists_in_several_fields_count_as_one_list(env: GatewayEnvironment) -> None:
    head = b"GET /big?size=5000 HTTP/1.1\r\nHost: a\r\n"
    for codings in ((b"gzip", b"br"), (b"br", b"gzip")):
        fields = b"".join(b"Accept-Encoding: " + coding + b"\r\n" for coding in codings)
        _, headers, _ = await env.raw(head + fields + b"\r\n")
        assert headers["content-encoding"] == "gzip"


async def test_two_traces_make_a_new_one(env: GatewayEnvironment) -> None:
    first = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    second = first.replace(b"0af7", b"1bf8")
    ids = b"X-Request-Id: a\r\nX-Request-Id: b\r\n"
    text = b"GET /look/x HTTP/1.1\r\nHost: a\r\nTraceparent: " + first + b"\r\nTraceparent: " + second + b"\r\n" + ids + b"\r\n"
    status, headers, body = await env.raw(text)
    assert status == 200
    assert json.loads(body)["trace"].split("-")[1] not in (first.decode().split("-")[1], second.decode().split("-")[1])
    assert headers["x-request-id"] not in ("a", "b")
