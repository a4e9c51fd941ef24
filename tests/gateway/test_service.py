"""The gateway as a service."""

import asyncio

import pytest

from runtime.testing import eventually
from tests.gateway.environment import GatewayEnvironment


async def test_a_stopped_gateway_closes_its_port() -> None:
    env = GatewayEnvironment("one-node-serialized")
    async with env:
        slow = asyncio.create_task(env.client.post("/behave/hang"))
        await eventually(lambda: env.probe.hang_log == ["started"], "the handler has started")
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
    with pytest.raises(OSError, match=r".+"):
        await asyncio.open_connection("127.0.0.1", env.gateway.port)
