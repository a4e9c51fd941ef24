"""Limits of concurrent requests, of requests per address, and of header sizes."""

import asyncio
from pathlib import Path

import pytest

from gateway.limits import Limits
from gateway.problems import Problem
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime.testing import eventually
from services.auth.service import Auth
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


async def refused_logins(limits: Limits, times: int) -> list[bool]:
    """Begin so many logins of an address, and return which of them were refused."""
    answers = await asyncio.gather(*(limits.begin_login("a") for _ in range(times)), return_exceptions=True)
    return [isinstance(answer, Problem) and answer.status == 429 for answer in answers]


async def test_logins_are_limited_by_default() -> None:
    now = [0.0]
    limits = Limits(GatewaySettings(logins_per_address=1000), lambda: now[0])
    assert await refused_logins(limits, 503) == [False] * 500 + [True] * 3
    now[0] = 1.0
    assert await refused_logins(limits, 6) == [False] * 5 + [True]
    await limits.begin_login("b")


async def test_a_login_that_finds_no_room_costs_nothing() -> None:
    limits = Limits(GatewaySettings(max_requests=2, logins_per_address=1, login_burst=3, login_rate=0.001), lambda: 0.0)
    await limits.begin_login("a")
    waiting = asyncio.create_task(limits.begin_login("a"))
    await asyncio.sleep(0)
    assert await refused_logins(limits, 10) == [True] * 10
    limits.end_login("a")
    await waiting
    limits.end_login("a")
    await limits.begin_login("a")


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


async def test_all_addresses_of_an_ipv6_network_share_a_rate() -> None:
    async with GatewayEnvironment("one-node-zero-copy", trusted_proxies=("127.0.0.1",), rate=0.001, burst=2) as env:

        async def status(address: str) -> int:
            return (await env.client.get("/look/x", headers={"X-Forwarded-For": address})).status_code

        assert [await status(f"2001:db8:1:2:{number:x}::1") for number in range(4)] == [200, 200, 429, 429]
        assert [await status(address) for address in ("2001:db8:1:3::1", "::ffff:192.0.2.1", "192.0.2.1")] == [200, 200, 200]
        assert await status("192.0.2.1") == 429, "an IPv4 address in IPv6 is the same one"
        assert await status("192.0.2.2") == 200, "each IPv4 address has its own rate"


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
        waiting = asyncio.create_task(env.client.put("/put", json=body, headers={"Forwarded": 'for="[2001:db8::77]"'}))
        assert (await env.client.put("/put", json=body, headers={"X-Forwarded-For": "2001:db8:0:1::1"})).status_code == 200
        assert (await env.client.get("/look/x", headers={"X-Forwarded-For": "2001:db8::1"})).status_code == 200
        assert not waiting.done()
        stalled[0][1].close()
        assert (await waiting).status_code == 200, "it has waited for its turn"
        for _, writer in stalled:
            writer.close()
        await eventually(lambda: env.gateway.limits.reading == 0, "no body is being read")


async def test_many_logins_of_one_address_wait_and_leave_others_served(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path, trusted_proxies=("127.0.0.1",), logins_per_address=1)) as system:
        users = [f"rider{number}@example.com" for number in range(20)]

        async def register(email: str, address: str) -> int:
            body = {"email": email, "password": PASSWORD, "name": "R"}
            return (await system.client.post("/users", json=body, headers={"X-Forwarded-For": address})).status_code

        auth, released = system.service(Auth), asyncio.Event()
        hash_password = auth.passwords.hash

        async def hash_when_released(password: str) -> str:
            await released.wait()
            return await hash_password(password)

        auth.passwords.hash = hash_when_released  # type: ignore[method-assign]
        many = [asyncio.create_task(register(email, "198.51.100.1")) for email in users]
        limits = system.service(Gateway).limits
        await eventually(lambda: len(limits._logins_of._queues.get("198.51.100.1", ())) == 19, "all but one wait at the gateway")
        assert limits.running == 1
        auth.passwords.hash = hash_password  # type: ignore[method-assign]
        assert await register("other@example.com", "203.0.113.1") == 201, "nobody else waits"
        many[-1].cancel()
        await eventually(lambda: len(limits._logins_of._queues["198.51.100.1"]) == 18, "a client that has gone does not wait")
        released.set()
        assert [await one for one in many[:-1]] == [201] * 19
        assert not limits._logins_of._queues
        assert not limits._logins_of._under_way
