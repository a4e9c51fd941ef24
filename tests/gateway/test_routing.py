"""Routing: path and query parameters, and services that start or stop."""

import httpx
import pytest

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node
from runtime.testing import FakeAuth, eventually
from tests.gateway.environment import TOPOLOGIES, GatewayEnvironment, check_problem
from tests.gateway.probe import Probe
from transports.memory import MemoryNetwork, MemoryTransport


async def test_path_and_query_parameters_arrive_decoded_and_typed(env: GatewayEnvironment) -> None:
    uuid = "0192f0c1-2345-7abc-8def-0123456789ab"
    answer = await env.client.get(
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
async def test_an_invalid_query_parameter_is_refused_and_named(env: GatewayEnvironment, query: str, pointer: str) -> None:
    body = check_problem(await env.client.get(f"/look/x?{query}"), 422, "invalid")
    assert [error["pointer"] for error in body["errors"]] == [pointer]


@pytest.mark.parametrize("kind", TOPOLOGIES)
async def test_a_service_without_an_instance_answers_503(kind: str) -> None:
    """The status is not 404, because the service was known before and may come back. A safe request waits for that."""
    async with GatewayEnvironment(kind, request_timeout=0.2) as env:
        supervised = next(one for node in env.nodes for one in node.supervised if one.name == "probe")
        supervised.stop()
        registry = env.nodes[-1].registry
        await eventually(lambda: not registry.members("probe"), "the probe has left")
        check_problem(await env.client.get("/look/x"), 503, "no-instance")
        check_problem(await env.client.post("/behave/teapot"), 503, "no-instance")


async def test_a_new_service_is_served_without_a_restart() -> None:
    network = MemoryNetwork()
    gateway = Gateway(GatewaySettings(port=0, request_timeout=1))
    async with (
        Node([lambda: gateway], MemoryTransport(network)),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", verify=False) as client,
    ):
        check_problem(await client.get("/look/x"), 503, "not-ready")
        assert (await client.get("/readyz")).status_code == 503
        async with Node([FakeAuth, Probe], MemoryTransport(network)) as node:
            await eventually(lambda: gateway.proxy.registry.members("probe"), "the gateway sees the probe")
            assert (await client.get("/look/x")).status_code == 200
            assert (await client.get("/readyz")).status_code == 200
            assert "/look/{path}" in (await client.get("/openapi.json")).json()["paths"]
            del node
        await eventually(lambda: not gateway.proxy.registry.members("probe"), "the probe has left")
        check_problem(await client.get("/look/x"), 503, "no-instance")
