"""The gateway as a service: it stops without failing a request."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import httpx
import pytest

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node
from runtime.sockets import any_free_port
from runtime.testing import FakeAuth, eventually
from tests.gateway.environment import GatewayEnvironment
from tests.gateway.probe import Probe
from transports.memory import MemoryNetwork, MemoryTransport

GET = b"GET /look/x HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_a_stopped_gateway_closes_its_port() -> None:
    env = GatewayEnvironment("one-node-serialized")
    async with env:
        slow = asyncio.create_task(env.client.post("/behave/hang"))
        await eventually(lambda: env.probe.hang_log == ["started"], "the handler has started")
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
    with pytest.raises(OSError, match=r".+"):
        await asyncio.open_connection("127.0.0.1", env.gateway.port)


class Load:
    """Clients that make requests without pause: some keep their connections, some make a new one for each request."""

    def __init__(self, port: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port = port
        self._running = True

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        async with asyncio.TaskGroup() as clients:
            for _ in range(4):
                clients.create_task(self._keep_connection())
                clients.create_task(self._connect_each_time())
            yield
            self._running = False

    async def _keep_connection(self) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=20, verify=False) as client:
            while self._running:
                try:
                    self.outcomes[str((await client.get("/look/x")).status_code)] += 1
                except httpx.HTTPError as error:
                    self.outcomes[repr(error)] += 1

    async def _connect_each_time(self) -> None:
        while self._running:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                with closing(writer):
                    writer.write(GET)
                    self.outcomes[(await reader.readuntil(b"\r\n")).split()[1].decode()] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                self.outcomes[repr(error)] += 1


async def test_no_request_fails_while_one_of_two_gateways_on_a_port_stops() -> None:
    network, port = MemoryNetwork(), any_free_port()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Node([FakeAuth, Probe], MemoryTransport(network)))

        async def start_gateway() -> Node:
            gateway = Gateway(GatewaySettings(port=port, share_port=True, expects=("probe",)))
            node = await stack.enter_async_context(Node([lambda: gateway], MemoryTransport(network)))
            await eventually(lambda: not gateway.manifests.missing(), "the gateway knows the routes")
            return node

        first, _, load = await start_gateway(), await start_gateway(), Load(port)
        async with load.running():
            for _ in range(2):
                answered = load.outcomes["200"]
                await eventually(lambda answered=answered: load.outcomes["200"] > answered + 60, "requests are answered")  # type: ignore[misc]
                await first.stop()
                first = await start_gateway()
        assert set(load.outcomes) == {"200"}, load.outcomes


async def test_readiness_fails_before_the_port_closes(env_kind: str) -> None:
    async with GatewayEnvironment(env_kind, drain_delay=0.3) as env:
        assert (await env.client.get("/readyz")).status_code == 200
        hanging = asyncio.create_task(env.client.post("/behave/hang"))
        await eventually(lambda: env.probe.hang_log == ["started"], "the handler has started")
        stopping = asyncio.create_task(env.nodes[-1].stop())
        await eventually(lambda: env.gateway.draining, "the gateway is stopping")
        ready = await env.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"], ready.headers["connection"]) == (503, "stopping", "close")
        answer = await env.client.get("/look/x")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert (await env.client.get("/healthz")).status_code == 200
        hanging.cancel()
        await stopping
        with pytest.raises(httpx.ConnectError):
            await env.client.get("/look/x")


@pytest.fixture(params=["one-node-serialized", "apart"])
def env_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


async def test_a_request_under_way_is_answered_before_the_gateway_stops() -> None:
    async with GatewayEnvironment("apart") as env:
        reader, writer = await asyncio.open_connection("127.0.0.1", env.gateway.port)
        writer.write(b"PUT /put HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n{")
        await eventually(lambda: env.gateway.limits.reading == 1, "its body is being read")
        stopping = asyncio.create_task(env.nodes[-1].stop())
        with pytest.raises(OSError, match=r".+"):
            while True:
                _, probing = await asyncio.open_connection("127.0.0.1", env.gateway.port)
                probing.close()
                await asyncio.sleep(0.01)
        writer.write(b'"inner":{"number":1}}\r\n')
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"200"
        writer.close()
        await stopping
