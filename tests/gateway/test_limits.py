"""Limits of concurrent requests, of requests per address, and of header sizes."""

import asyncio
from pathlib import Path

import pytest

from gateway.limits import Limits
from gateway.problems import Problem
from gateway.settings import GatewaySettings
from runtime.testing import eventually
from tests.gateway.environment import GatewayEnvironment, check_problem
from tests.system_under_test import PASSWORD, open_system, settings


async def test_too_many_concurrent_requests_answer_503() -> None:
    async with GatewayEnvironment("one-node-serialized", max_requests=3) as env:
        held = [asyncio.create_task(env.client.post("/behave/hang")) for _ in range(3)]
        await eventually(lambda: len(env.probe.hang_log) == 3, "three requests are running")
        busy = await env.client.get("/look/x")
        check_problem(busy, 503, "overloaded")
        assert busy.headers["retry-after"] == "1"
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_stalled_bodies_do_not_block_requests_without_a_body() -> None:
    async with GatewayEnvironment("one-node-serialized", max_requests=3, body_timeout=5) as env:
        head = b"PUT /put HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        stalled = [await asyncio.open_connection("127.0.0.1", env.gateway.port) for _ in range(3)]
        for _, writer in stalled:
            writer.write(head)
        await eventually(lambda: env.gateway.limits.reading == 3, "three bodies are being read")
        check_problem(await env.client.put("/put", json={"inner": {"number": 1}}), 503, "overloaded")
        assert (await env.client.get("/look/x")).status_code == 200
        for _, writer in stalled:
            writer.close()
        await eventually(lambda: env.gateway.limits.reading == 0, "no body is being read")
        assert (await env.client.put("/put", json={"inner": {"number": 1}})).status_code == 200


async def test_too_many_requests_from_one_address_answer_429() -> None:
    async with GatewayEnvironment("one-node-serialized", rate=0.001, burst=5) as env:
        statuses = [(await env.client.get("/look/x")).status_code for _ in range(6)]
        assert statuses == [200] * 5 + [429]
        refused = await env.client.get("/look/x")
        check_problem(refused, 429, "too-many-requests")
        assert int(refused.headers["retry-after"]) > 1


async def test_too_large_headers_answer_431() -> None:
    async with GatewayEnvironment("one-node-serialized") as env:
        check_problem(await env.client.get("/look/x", headers={"X-Big": "x" * 20_000}), 431, "headers-too-large")


def refused_by(limits: Limits, address: str, times: int, *, login: bool = False) -> list[bool]:
    """Begin so many bodies or logins of an address, and return which of them were refused."""
    refused: list[bool] = []
    for _ in range(times):
        try:
            (limits.begin_login if login else limits.begin_body)(address)
            refused.append(False)
        except Problem as problem:
            refused.append(problem.status == 429)
    return refused


@pytest.mark.parametrize(("login", "share"), [(False, 128), (True, 16)])
def test_each_address_has_its_share_of_what_is_under_way(login: bool, share: int) -> None:
    limits = Limits(GatewaySettings(), lambda: 0.0)
    assert refused_by(limits, "a", share + 3, login=login) == [False] * share + [True] * 3
    assert refused_by(limits, "b", 1, login=login) == [False]
    (limits.end_login if login else limits.end_body)("a")
    assert refused_by(limits, "a", 2, login=login) == [False, True]


def test_logins_are_limited_by_default_and_a_refused_one_costs_nothing() -> None:
    now = [0.0]
    limits = Limits(GatewaySettings(logins_per_address=1000), lambda: now[0])
    assert refused_by(limits, "a", 103, login=True) == [False] * 100 + [True] * 3
    now[0] = 1.0
    assert refused_by(limits, "a", 3, login=True) == [False, False, True]
    assert refused_by(limits, "b", 1, login=True) == [False]
    limits = Limits(GatewaySettings(login_burst=17, login_rate=0.001), lambda: now[0])
    assert refused_by(limits, "a", 50, login=True) == [False] * 16 + [True] * 34
    limits.end_login("a")
    assert refused_by(limits, "a", 1, login=True) == [False], "what was refused for its share took nothing from the rate"


def test_other_addresses_do_not_flush_the_rate_of_one() -> None:
    now = [0.0]
    limits = Limits(GatewaySettings(rate=1, burst=2), lambda: now[0])
    for _ in range(2):
        limits.admit("a")
    for number in range(20_000):
        limits.admit(f"other {number}")
    with pytest.raises(Problem):
        limits.admit("a")
    now[0] = 100.0
    for number in range(20_000):
        limits.admit(f"other {number}")
    limits.admit("a")


async def test_stalled_bodies_of_one_address_leave_others_served() -> None:
    async with GatewayEnvironment(
        "one-node-serialized", trusted_proxies=("127.0.0.1",), bodies_per_address=3, body_timeout=5
    ) as env:
        head = b"PUT /put HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %s\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        stalled = [await asyncio.open_connection("127.0.0.1", env.gateway.port) for _ in range(3)]
        for number, (_, writer) in enumerate(stalled):
            writer.write(head % b"2001:db8::%d" % number)
        await eventually(lambda: env.gateway.limits.reading == 3, "three bodies are being read")
        body = {"inner": {"number": 1}}
        refused = await env.client.put("/put", json=body, headers={"Forwarded": 'for="[2001:db8::77]"'})
        check_problem(refused, 429, "too-many-requests")
        assert refused.headers["retry-after"] == "1"
        assert (await env.client.put("/put", json=body, headers={"X-Forwarded-For": "2001:db8:0:1::1"})).status_code == 200
        assert (await env.client.get("/look/x", headers={"X-Forwarded-For": "2001:db8::1"})).status_code == 200
        for _, writer in stalled:
            writer.close()
        await eventually(lambda: env.gateway.limits.reading == 0, "no body is being read")


async def test_many_logins_of_one_address_leave_others_served(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, trusted_proxies=("127.0.0.1",))) as system:

        async def log_in(address: str) -> int:
            body = {"email": "rider@example.com", "password": PASSWORD}
            return (await system.client.post("/sessions", json=body, headers={"X-Forwarded-For": address})).status_code

        many = [asyncio.create_task(log_in("198.51.100.1")) for _ in range(60)]
        assert await log_in("203.0.113.1") == 201
        statuses = [await one for one in many]
        assert set(statuses) == {201, 429}
        registrations = [system.client.post("/users", json={}, headers={"X-Forwarded-For": "198.51.100.2"}) for _ in range(110)]
        assert 429 in {answer.status_code for answer in await asyncio.gather(*registrations)}
