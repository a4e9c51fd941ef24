"""Limits of concurrent requests, of requests per address, and of header sizes."""

import asyncio

from runtime.testing import eventually
from tests.gateway.environment import GatewayEnvironment, check_problem


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
