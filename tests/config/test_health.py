"""The health endpoint of a node."""

import httpx

from config.health import serve_health
from config.settings import HealthSettings
from runtime import Node
from runtime.sockets import any_free_port
from transports.memory import MemoryTransport


async def test_no_answer_names_the_server() -> None:
    port = any_free_port()
    async with (
        Node([], MemoryTransport()) as node,
        serve_health(HealthSettings(port=port), node),
        httpx.AsyncClient(verify=False) as client,
    ):
        for path in ("/healthz", "/nothing"):
            assert not (await client.get(f"http://127.0.0.1:{port}{path}")).headers.get("server")
