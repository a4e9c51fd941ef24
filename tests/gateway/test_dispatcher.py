"""The dispatcher, over real HTTP: access, deadlines, cancellation, bodies, and methods."""

import asyncio
import json
import logging

import pytest

from runtime.testing import FakeAuth, eventually
from tests.gateway.environment import TOPOLOGIES, GatewayEnvironment, check_problem


async def test_the_request_id_and_the_trace_are_passed_on(env: GatewayEnvironment) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await env.client.get("/look/x", headers={"X-Request-Id": "mine-1", "traceparent": trace})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["trace"] == trace
    odd = await env.client.get("/look/x", headers={"X-Request-Id": "a b\tc", "traceparent": "00-zz"})
    assert odd.headers["x-request-id"] != "a b\tc"
    assert len(odd.json()["trace"]) == 55


async def test_head_and_options_are_answered(env: GatewayEnvironment) -> None:
    get, head = await env.client.get("/look/x"), await env.client.head("/look/x")
    assert (head.status_code, head.content) == (200, b"")
    assert abs(int(head.headers["content-length"]) - len(get.content)) < 10
    options = await env.client.options("/look/x")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    status, headers, _ = await env.raw(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT")
    status, _, _ = await env.raw(b"GET * HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 400


async def test_a_route_of_another_method_does_not_hide_a_parameter_route(env: GatewayEnvironment) -> None:
    assert (await env.client.put("/things/new")).json() == "put new"
    assert (await env.client.get("/things/new")).json() == "get"
    wrong = await env.client.post("/things/new")
    check_problem(wrong, 405, "method-not-allowed")
    assert wrong.headers["allow"] == "GET, HEAD, OPTIONS, PUT"
    assert (await env.client.options("/things/new")).headers["allow"] == "GET, HEAD, OPTIONS, PUT"
    assert (await env.client.get("/things/old")).status_code == 405


async def test_a_token_that_cannot_be_one_is_refused_before_it_is_sent(env: GatewayEnvironment) -> None:
    for token in (b"a\tb", b"a b", b"caf\xe9", "١".encode(), b"a+b", b"a=", b"", b"a" * 9000, b"a" * 70_000):
        for target in (b"/guarded", b"/look/x", b"/nowhere", b"/live"):
            status, headers, body = await env.raw(
                b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token + b"\r\n\r\n"
            )
            assert (status, json.loads(body)["code"]) == (401, "unauthenticated"), (token[:20], target)
            assert json.loads(body)["request_id"]
            assert headers["www-authenticate"] == "Bearer"


async def test_all_refused_tokens_get_the_same_answer(env: GatewayEnvironment, caplog: pytest.LogCaptureFixture) -> None:
    bodies: list[dict[str, object]] = []
    for value in (None, "Basic eDp5", "Bearer", "Bearer nonsense", "Bearer a.b.c", "Bearer a b", "Bearer " + "x" * 9000):
        caplog.clear()
        with caplog.at_level("INFO", "callboard.security"):
            answer = await env.client.get("/guarded", headers={} if value is None else {"Authorization": value})
        body = check_problem(answer, 401, "unauthenticated")
        refusals = [line for line in map(logging.LogRecord.getMessage, caplog.records) if 'service="gateway"' in line]
        assert sum(str(body["request_id"]) in line for line in refusals) == 1, "the reason is in the log"
        bodies.append({**body, "request_id": ""})
    assert all(body == bodies[0] for body in bodies)


async def test_a_guarded_request_needs_a_valid_token_and_role(env: GatewayEnvironment) -> None:
    def bearer(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    assert (await env.client.get("/guarded", headers=bearer(FakeAuth.token("u1", "rider")))).json() == "u1"
    check_problem(await env.client.get("/guarded", headers=bearer(FakeAuth.token("u1", "operator"))), 403, "forbidden")
    wrong = await env.client.get("/guarded", headers=bearer("nonsense"))
    check_problem(wrong, 401, "unauthenticated")
    assert wrong.headers["www-authenticate"] == "Bearer"
    check_problem(await env.client.get("/look/x", headers=bearer("nonsense")), 401, "unauthenticated")
    assert (await env.client.get("/look/x", headers=bearer(FakeAuth.token("u1", "nobody")))).status_code == 200


@pytest.mark.parametrize("kind", TOPOLOGIES)
async def test_a_missed_deadline_answers_504_and_cancels_the_handler(kind: str) -> None:
    async with GatewayEnvironment(kind, request_timeout=0.2) as env:
        check_problem(await env.client.post("/behave/hang"), 504, "deadline-exceeded")
        await eventually(lambda: env.probe.hang_log == ["started", "cancelled"], "the handler was cancelled")


async def test_a_client_that_disconnects_cancels_the_handler(env: GatewayEnvironment) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
    writer.write(b"POST /behave/hang HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    await eventually(lambda: env.probe.hang_log == ["started"], "the handler has started")
    writer.close()
    await eventually(lambda: env.probe.hang_log == ["started", "cancelled"], "the handler was cancelled")
    assert (await env.client.get("/look/x")).status_code == 200
    await eventually(lambda: env.gateway.limits.running == 0, "the gateway counts no running request")


async def test_an_incomplete_malformed_or_slow_body_is_refused() -> None:
    async with GatewayEnvironment("one-node-serialized", body_timeout=0.3) as env:
        head = b"PUT /put HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        status, _, body = await env.raw(head + b'{"inner"')
        assert (status, json.loads(body)["code"]) == (408, "body-too-slow")
        chunked = b"PUT /put HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        status, _, body = await env.raw(chunked + b"zz\r\n")
        assert status == 400
        status, _, _ = await env.raw(chunked + b"13\r\n" + b'{"inner":{"number":' + b"\r\n3\r\n7}}\r\n0\r\n\r\n")
        assert status == 200
        big = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        status, _, body = await env.raw(chunked + big * 20)
        assert (status, json.loads(body)["code"]) == (413, "too-large")
