"""Manifests that the gateway cannot serve, and services that it waits for or that have left."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from gateway.manifests import manifest_fault
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, Node
from runtime.contract.rest import HttpBinding
from runtime.network import ErrorInfo, LiveInfo, Manifest, Receiver, RequestInfo
from runtime.testing import FakeAuth, eventually
from tests.gateway.environment import check_problem
from tests.gateway.probe import Probe
from tests.sse import follow
from transports.memory import MemoryNetwork, MemoryTransport

OK = RequestInfo(
    "odd.Find",
    ANYONE,
    HttpBinding("GET", "/odd/{id}", 200, ("id",), ("near",)),
    request={"type": "object", "properties": {"id": {"type": "string"}, "near": {"$ref": "#/components/schemas/odd.Near"}}, "required": ["id"]},
    reply={"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#/components/schemas/odd.Near"}]}},
    errors=(ErrorInfo("odd.gone", 404, "Gone"),),
)  # fmt: skip
NEAR: dict[str, Any] = {"odd.Near": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}}


def manifest(schemas: dict[str, Any] = NEAR, live: LiveInfo | None = None, **changes: Any) -> Manifest:
    return Manifest("odd", "n", "i", requests=(msgspec.structs.replace(OK, **changes),), schemas=schemas, live=live)


def route(method: str = "GET", path: str = "/odd/{id}", status: int = 200, **fields: Any) -> HttpBinding:
    return HttpBinding(method, path, status, **({"path_fields": ("id",)} | fields))


def test_a_manifest_that_holds_together_is_accepted() -> None:
    assert manifest_fault(manifest()) is None
    assert manifest_fault(manifest(live=LiveInfo("Moved", "odd.Find"))) is None
    assert manifest_fault(Manifest("odd", "n", "i")) is None
    renamed = {"type": "object", "properties": {"Odd-Id": {"type": "string"}}}
    assert manifest_fault(manifest(http=route(path="/odd/{Odd-Id}", path_fields=("Odd-Id",)), request=renamed)) is None


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        pytest.param(manifest(http=route("FETCH")), "expected e.g.", id="method"),
        pytest.param(manifest(http=route(path="odd/{id}")), "expected e.g.", id="no slash"),
        pytest.param(manifest(http=route(path="/odd//{id}")), "expected e.g.", id="empty segment"),
        pytest.param(manifest(http=route(path="/docs/{id}")), "reserved", id="reserved"),
        pytest.param(manifest(http=route(path="/a/{id}/b/{id}", path_fields=("id", "id"))), "occurs twice", id="twice"),
        pytest.param(manifest(http=route(path_fields=())), "its parameters are not none", id="parameters missing"),
        pytest.param(manifest(http=route(path_fields=("id", "x"))), "its parameters are not id, x", id="too many parameters"),
        pytest.param(manifest(http=route(query_fields=("far",))), "no property far", id="unknown query field"),
        pytest.param(manifest(http=route("POST", body_fields=("far",))), "no property far", id="unknown body field"),
        pytest.param(manifest(http=route(body_fields=("near",))), "GET has no body", id="body of GET"),
        pytest.param(manifest(http=route(status=99)), "status is 99", id="status"),
        pytest.param(manifest(http=route(status=404)), "status is 404", id="status of an error"),
        pytest.param(manifest(errors=(ErrorInfo("odd.gone", 0, "Gone"),)), "the status 0", id="status of no error"),
        pytest.param(manifest(errors=(ErrorInfo("odd.gone", 404, "Gone", {"properties": 1}),)), "expected an object", id="error"),
        pytest.param(manifest(request={"properties": {"id": 5, "near": {}}}), "got 5", id="schema is a number"),
        pytest.param(manifest(reply={"properties": [1]}), "expected an object", id="properties are a list"),
        pytest.param(manifest(reply={"items": "x"}), "got 'x'", id="items are a text"),
        pytest.param(manifest(reply={"anyOf": {}}), "expected a list", id="anyOf is an object"),
        pytest.param(manifest(reply={"required": 1}), "expected names", id="required is a number"),
        pytest.param(manifest(reply={"$ref": "#/components/schemas/odd.Far"}), "nothing is called", id="dangling reference"),
        pytest.param(manifest(reply={"$ref": ["x"]}), "nothing is called", id="reference is a list"),
        pytest.param(manifest(reply=nested(5000)), "cannot be used", id="deep"),
        pytest.param(manifest(NEAR | {"rides.Ride": {"type": "object"}}), "not one of odd", id="schema of another service"),
        pytest.param(manifest(NEAR | {"odd.Far": None}), "got None", id="schema is null"),
        pytest.param(manifest(live=LiveInfo("Moved", "odd.Nothing")), "no request odd.Nothing", id="live"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(odd: Manifest, reason: str) -> None:
    fault = manifest_fault(odd)
    assert fault is not None
    assert reason in fault


@asynccontextmanager
async def gateway_alone(**settings: Any) -> AsyncGenerator[tuple[MemoryNetwork, Gateway, httpx.AsyncClient], None]:
    network = MemoryNetwork()
    gateway = Gateway(GatewaySettings(port=0, **settings))
    async with (
        Node([lambda: gateway], MemoryTransport(network)),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as client,
    ):
        yield network, gateway, client


async def test_one_odd_manifest_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    odd = manifest(http=route(query_fields=("far",)), live=None)
    async with gateway_alone() as (network, gateway, client), Node([FakeAuth, Probe], MemoryTransport(network)):
        await eventually(lambda: "probe" in gateway.manifests.live, "the gateway knows the probe")
        other = MemoryTransport(network)
        await other.open("n", Receiver())
        await other.announce(msgspec.structs.replace(odd, live=LiveInfo("Moved", "odd.Nothing")))
        await eventually(lambda: bool(gateway.proxy.registry.members("odd")), "the odd service has joined")
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert "/look/{path}" in paths
        assert not any(path.startswith("/odd") for path in paths)
        assert (await client.get("/look/x")).status_code == 200
        check_problem(await client.get("/odd/1"), 404)
        async with follow(str(client.base_url), {"Authorization": f"Bearer {FakeAuth.token('u', 'rider')}"}) as events:
            assert events.response.status_code == 200, "what it marks as live is not asked for"
        lines = [record.getMessage() for record in caplog.records if "manifest of odd on n is refused" in record.getMessage()]
        assert len(lines) == 1, "one line for one manifest"
        await other.announce(manifest())
        await eventually(lambda: "odd" in gateway.manifests.live, "its repaired manifest is accepted")
        assert "/odd/{id}" in (await client.get("/openapi.json")).json()["paths"]
        await other.close()


async def test_what_a_service_marks_as_live_goes_with_it() -> None:
    async with gateway_alone() as (network, gateway, client), Node([FakeAuth, Probe], MemoryTransport(network)):
        other = MemoryTransport(network)
        await other.open("n", Receiver())
        await other.announce(manifest(live=LiveInfo("Moved", "odd.Find")))
        await eventually(lambda: "odd" in gateway.manifests.feeds(), "the gateway knows what is live")
        await other.close()
        await eventually(lambda: not gateway.proxy.registry.members("odd"), "the service has left")
        async with (
            asyncio.timeout(4),
            follow(str(client.base_url), {"Authorization": f"Bearer {FakeAuth.token('u', 'rider')}"}) as events,
        ):
            assert events.response.status_code == 200, "no new stream waits for it"


async def test_a_gateway_is_not_ready_before_it_knows_the_routes_of_all_expected_services() -> None:
    async with gateway_alone(expects=("auth", "probe")) as (network, gateway, client):
        for auth_runs in (False, True):
            async with Node([FakeAuth] if auth_runs else [], MemoryTransport(network)):
                await eventually(lambda runs=auth_runs: ("auth" in gateway.manifests.live) == runs, "the gateway has seen it")  # type: ignore[misc]
                ready = await client.get("/readyz")
                assert (ready.status_code, ready.json()["waits_for"]) == (503, ["probe"] if auth_runs else ["auth", "probe"])
                for method, path in (
                    ("GET", "/look/x"),
                    ("PUT", "/put"),
                    ("OPTIONS", "/look/x"),
                    ("HEAD", "/look/x"),
                    ("GET", "/nowhere"),
                ):
                    unknown = await client.request(method, path)
                    assert (unknown.status_code, unknown.headers["retry-after"]) == (503, "1"), (method, path)
                    assert unknown.headers["content-type"] == "application/problem+json"
                problem = check_problem(await client.get("/look/x"), 503, "not-ready")
                assert problem["retryable"]
        async with Node([FakeAuth, Probe], MemoryTransport(network)):
            await eventually(lambda: not gateway.manifests.missing(), "the gateway knows all routes")
            assert (await client.get("/readyz")).status_code == 200
            check_problem(await client.get("/nowhere"), 404)
            assert (await client.get("/look/x")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200, "what it has learnt, it keeps"
