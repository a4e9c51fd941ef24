"""Errors reach the client as problem documents."""

import asyncio
import json
from pathlib import Path

import httpx
import msgspec
import pytest

from gateway.problems import Problems
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, Context, Contract, Node, Request, Service, Transaction, handles
from runtime.contract.errors import ErrorData, InstanceLost, RemoteError
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import FakeAuth
from tests.gateway.environment import GatewayEnvironment, check_problem
from transports.memory import MemoryTransport

loser = Contract("loser")


@loser.message
class Look(Request[None]):
    """Safe."""


@loser.message
class Replace(Request[None]):
    """Idempotent."""


@loser.message
class Pay(Request[None]):
    """Done once for a key."""


@loser.message
class Again(Request[None]):
    """Done again each time."""


class Loser(Service):
    """A service whose every answer is lost."""

    contract = loser

    @handles(http="GET /lose", allow=ANYONE)
    async def look(self, message: Look, ctx: Context) -> None:
        raise InstanceLost("loser")

    @handles(http="PUT /lose", allow=ANYONE, idempotent=True)
    async def replace(self, message: Replace, ctx: Context) -> None:
        raise InstanceLost("loser")

    @handles(http="POST /lose", allow=ANYONE, once=True)
    async def pay(self, message: Pay, ctx: Context, tx: Transaction) -> None:
        raise InstanceLost("loser")

    @handles(http="POST /lose/again", allow=ANYONE)
    async def again(self, message: Again, ctx: Context) -> None:
        raise InstanceLost("loser")


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
async def test_each_kind_of_error_has_its_status_and_code(
    env: GatewayEnvironment, method: str, path: str, body: bytes, kind: str, status: int, code: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    check_problem(await env.client.request(method, path, content=body or None, headers=headers), status, code)


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
async def test_an_invalid_body_is_refused_and_its_field_named(env: GatewayEnvironment, body: bytes, pointer: str) -> None:
    answer = await env.client.put("/put", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert [error["pointer"] for error in check_problem(answer, 422, "invalid")["errors"]] == [pointer]


async def test_a_field_name_that_looks_like_a_decoding_error_is_harmless(env: GatewayEnvironment) -> None:
    body = json.dumps({" - at `$" + "[" * 200_000: 1}).encode()
    async with asyncio.timeout(5):
        check_problem(await env.client.put("/put", content=body, headers={"Content-Type": "application/json"}), 422, "invalid")


async def test_an_error_has_its_fields_and_reveals_no_internal_detail(env: GatewayEnvironment) -> None:
    teapot = check_problem(await env.client.post("/behave/teapot"), 418)
    assert (teapot["volume"], teapot["title"], teapot["type"]) == (3, "I am a teapot", "urn:callboard:probe:teapot")
    crash = check_problem(await env.client.post("/behave/crash"), 500)
    assert len(crash["incident"]) == 16
    assert "secret" not in json.dumps(crash)
    busy = await env.client.post("/behave/overloaded")
    assert busy.headers["retry-after"] == "1"
    assert "probe" not in busy.text, "the answer does not reveal which service is busy"


async def test_an_error_is_marked_as_retryable_or_maybe_delivered(env: GatewayEnvironment) -> None:
    for path, retryable in (("/behave/teapot", False), ("/behave/crash", False), ("/behave/overloaded", True)):
        body = (await env.client.post(path)).json()
        assert (body["retryable"], "maybe_delivered" in body) == (retryable, False), path
    assert (await env.client.get("/nowhere")).json()["retryable"] is False
    lost = (await env.client.post("/behave/lost")).json()
    assert (lost["code"], lost["retryable"], lost["maybe_delivered"]) == ("instance-lost", False, True)


async def test_after_a_request_that_may_have_run_only_one_without_a_second_effect_is_retryable(tmp_path: Path) -> None:
    gateway = Gateway(GatewaySettings(port=0))
    async with (
        Node([FakeAuth, Loser, lambda: gateway], MemoryTransport(), databases=SqliteFolder(tmp_path)),
        httpx.AsyncClient(headers={"Authorization": f"Bearer {FakeAuth.token('ann', 'rider')}"}, verify=False) as client,
    ):
        for method, path, key, retryable in [
            ("GET", "/lose", None, True), ("PUT", "/lose", None, True), ("POST", "/lose", None, False), ("POST", "/lose", "k", True),
            ("POST", "/lose/again", None, False), ("POST", "/lose/again", "k", False),
        ]:  # fmt: skip
            headers = {} if key is None else {"Idempotency-Key": key}
            lost = check_problem(
                await client.request(method, f"http://127.0.0.1:{gateway.port}{path}", headers=headers), 502, "instance-lost"
            )
            assert (lost["retryable"], lost["maybe_delivered"]) == (retryable, True), (method, path, key)


@pytest.mark.parametrize(
    ("field", "status", "expected"),
    [
        (7, 429, "7"), (0, 503, "0"), (10**6, 429, "1000000"), (10**6 + 1, 429, None), (-1, 429, None), (True, 429, None), (1.5, 429, None),
        ("1\n2", 429, None), ("7", 503, "1"), (None, 503, "1"), ([7], 503, "1"),
    ],
)  # fmt: skip
def test_only_a_number_of_seconds_becomes_retry_after(field: object, status: int, expected: str | None) -> None:
    error = RemoteError(
        ErrorData("probe", "later", status, "Later", fields=msgspec.Raw(msgspec.json.encode({"retry_after": field})))
    )
    _, headers, _ = Problems().of_error(error, "1")
    assert dict(headers).get(b"retry-after") == (None if expected is None else expected.encode())


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "gzip, gzip"])
async def test_a_body_with_a_content_coding_is_refused(env: GatewayEnvironment, coding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = await env.client.put("/put", content=b'{"inner":{"number":1}}', headers=headers)
    check_problem(answer, 415, "unsupported-media-type")
    assert answer.headers["accept-encoding"] == "identity"
    headers["Content-Encoding"] = "identity"
    assert (await env.client.put("/put", content=b'{"inner":{"number":1}}', headers=headers)).status_code == 200
