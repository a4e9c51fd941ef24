"""A gateway and the probe service, and a check of problem documents."""

import asyncio
from typing import Any

import httpx

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node, NodeSettings
from runtime.testing import FakeAuth
from tests.gateway.probe import Probe
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

TOPOLOGIES = ("one-node-zero-copy", "one-node-serialized", "apart")


class GatewayEnvironment:
    """A gateway and the probe, on one node or on two."""

    def __init__(self, kind: str, **settings: Any) -> None:
        self.probe = Probe()
        self.gateway = Gateway(GatewaySettings(port=0, **settings))
        network = MemoryNetwork()
        transport = MemorySettings(zero_copy=kind.endswith("zero-copy"))
        groups: list[list[Any]] = [[FakeAuth, lambda: self.probe], [lambda: self.gateway]]
        if kind != "apart":
            groups = [groups[0] + groups[1]]
        options = NodeSettings(drain_timeout=1)
        self.nodes = [Node(group, MemoryTransport(network, transport), settings=options) for group in groups]

    async def __aenter__(self) -> "GatewayEnvironment":
        for node in self.nodes:
            await node.__aenter__()
        await self.nodes[-1].registry.wait_for("probe", "auth")
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.gateway.port}", timeout=10, verify=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        for node in reversed(self.nodes):
            await node.stop()

    async def raw(self, text: bytes, *, half_close: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Send bytes unchanged, and return the status, headers, and body of one answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            writer.write(text)
            await writer.drain()
            if half_close:
                writer.write_eof()
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
            return int(lines[0].split()[1]), headers, body
        finally:
            writer.close()


def check_problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check that an answer is a problem document with this status and code, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "code", "request_id", "retryable"} <= set(body)
    assert body["status"] == status
    if code is not None:
        assert body["code"] == code
    assert "Traceback" not in answer.text
    return body
