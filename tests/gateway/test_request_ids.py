"""The id of a request is the same in its answer, in the access log, and in the logs of all services that work for it."""

import io
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from config.logs import formatter
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, Context, Contract, Node, Request, Service, handles
from runtime.testing import FakeAuth
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

front, back = Contract("front"), Contract("back")


@front.message
class Ask(Request[str]):
    fail: bool = False


@back.message
class Answer(Request[str]):
    fail: bool = False


class Front(Service):
    contract = front
    calls = (back,)

    @handles(http="POST /ask", allow=ANYONE)
    async def ask(self, message: Ask, ctx: Context) -> str:
        self.log.info("asks")
        return await ctx.request(Answer(message.fail))


class Back(Service):
    contract = back

    @handles(allow=ANYONE)
    async def answer(self, message: Answer, ctx: Context) -> str:
        self.log.info("answers")
        if message.fail:
            raise RuntimeError("no")
        return ctx.request_id


class Logged:
    """What is logged as JSON while a client makes requests."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.stream = io.StringIO()

    def records(self, **fields: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [one for one in found if all(one.get(name) == value for name, value in fields.items())]


@pytest.fixture(params=["one-node", "one-node-serialized", "apart"])
async def logged(request: pytest.FixtureRequest) -> AsyncGenerator[Logged, None]:
    gateway, network = Gateway(GatewaySettings(port=0)), MemoryNetwork()
    groups: list[list[Any]] = [[FakeAuth], [Back], [Front], [lambda: gateway]]
    if request.param != "apart":
        groups = [[one for group in groups for one in group]]
    settings = MemorySettings(zero_copy=request.param == "one-node")
    async with AsyncExitStack() as stack:
        for group in groups:
            node = await stack.enter_async_context(Node(group, MemoryTransport(network, settings)))
        await node.registry.wait_for("front", "back", "auth")
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False)
        logged = Logged(await stack.enter_async_context(client))
        handler = logging.StreamHandler(logged.stream)
        handler.setFormatter(formatter("json", logged.stream))
        root = logging.getLogger("callboard")
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield logged
        finally:
            root.removeHandler(handler)
            root.setLevel(level)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Request-Id": "mine-1"},
        {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"},
        {"X-Request-Id": "mine-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "baggage": "x=1,callboard.request_id=forged"},
    ],
    ids=["none", "id", "trace", "both"],
)
async def test_one_id_finds_a_request_in_all_logs(logged: Logged, headers: dict[str, str]) -> None:
    answer = await logged.client.post("/ask", json={}, headers=headers)
    request_id = answer.headers["x-request-id"]
    assert answer.json() == request_id
    records = logged.records(request_id=request_id)
    assert [(one["logger"], one["message"]) for one in records] == [
        ("callboard.front", "asks"),
        ("callboard.back", "answers"),
        ("callboard.access", "POST /ask 200"),
    ]
    assert len({one["trace_id"] for one in records}) == 1
    assert [one["service"] for one in records] == ["front", "back", "gateway"]
    if "X-Request-Id" in headers:
        assert request_id == "mine-1"
    if "traceparent" in headers:
        assert records[0]["trace_id"] == "a" * 32


async def test_two_requests_of_one_trace_have_different_ids(logged: Logged) -> None:
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    answers = [await logged.client.post("/ask", json={}, headers=headers) for _ in range(2)]
    assert answers[0].json() != answers[1].json()


async def test_an_incident_is_found_by_its_id_and_by_that_of_the_request(logged: Logged) -> None:
    answer = await logged.client.post("/ask", json={"fail": True})
    problem = answer.json()
    assert answer.status_code == 500
    [record] = logged.records(incident=problem["incident"])
    assert (record["service"], record["request_id"]) == ("back", problem["request_id"])
    assert "RuntimeError: no" in record["exception"]


async def test_the_access_log_names_what_was_asked_and_no_query(logged: Logged) -> None:
    await logged.client.get("/nothing?secret=1", headers={"X-Request-Id": "mine-2"})
    [record] = logged.records(request_id="mine-2")
    for name in ("time", "trace_id", "node", "ms", "bytes"):
        record.pop(name, None)
    assert record == {
        "level": "info", "logger": "callboard.access", "message": "GET /nothing 404", "service": "gateway", "method": "GET",
        "path": "/nothing", "status": 404, "client": "127.0.0.1", "request_id": "mine-2",
    }  # fmt: skip


async def test_probes_are_not_in_the_access_log(logged: Logged) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        await logged.client.get(path)
    assert logged.records(logger="callboard.access") == []
