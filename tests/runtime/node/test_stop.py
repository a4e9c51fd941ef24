"""Stopping a node: compensations of cancelled requests, `on_stop`, and the resources that the services hold."""

import asyncio
from collections.abc import Callable
from functools import partial

import httpx
import pytest

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, SERVICES, Context, Contract, Crashed, Node, NodeSettings, Request, Service, StartError, every, handles
from runtime.sockets import any_free_port, free_port
from runtime.testing import eventually
from tests.topology import Topology
from transports.memory import MemoryNetwork, MemoryTransport

vault = Contract("vault")
saga = Contract("saga")


@vault.message
class Release(Request[None]):
    """Releases what a saga has taken."""

    name: str


@saga.message
class Go(Request[None]):
    """Takes two things, and waits for ever."""


class Vault(Service):
    contract = vault

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: list[str] = []
        self.released: list[str] = []

    @handles(allow=SERVICES)
    async def release(self, message: Release, ctx: Context) -> None:
        self.begun.append(message.name)
        await self.gate.wait()
        self.released.append(message.name)


class Saga(Service):
    contract = saga
    calls = (vault,)

    def __init__(self) -> None:
        self.waiting = False

    @handles(allow=ANYONE)
    async def go(self, message: Go, ctx: Context) -> None:
        ctx.undo(Release("scooter"))
        ctx.undo(Release("hold"))
        self.waiting = True
        await asyncio.Event().wait()


async def test_a_stop_waits_for_the_compensations_of_a_cancelled_request(topology: Topology) -> None:
    await topology.start(Vault, Saga)
    ctx = await topology.client(saga)
    service, keeper, node = topology.service(Saga), topology.service(Vault), topology.node_of("saga")
    request = asyncio.create_task(ctx.request(Go()))
    await eventually(lambda: service.waiting, "the handler waits")
    request.cancel()
    await eventually(lambda: keeper.begun == ["hold"], "the first compensation has begun")
    stopping = asyncio.create_task(node.stop())
    done, _ = await asyncio.wait((stopping,), timeout=0.1)
    assert not done, "the stop waits"
    keeper.gate.set()
    await stopping
    await asyncio.gather(request, return_exceptions=True)
    assert keeper.released == ["hold", "scooter"]
    assert node.metrics.value("undo_failed_total", service="saga") == 0


async def test_a_request_that_is_cancelled_before_its_first_step_is_forgotten() -> None:
    network = MemoryNetwork()
    async with Node([Saga], MemoryTransport(network)) as node, Node([], MemoryTransport(network)) as other:
        await other.registry.wait_for("saga")
        ctx = other.client("test", (saga,))
        for _ in range(5):
            request = asyncio.create_task(ctx.request(Go()))
            for _ in range(3):
                await asyncio.sleep(0)
                request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: node.metrics.value("requests_running") == 0, "no request is left")


# on_stop


class Recorder(Service):
    """Records how often it starts and stops, and fails where the test says so."""

    contract = Contract("recorder")

    def __init__(self, log: list[str], fails: str) -> None:
        self._log = log
        self._fails = fails

    def _maybe_fail(self, where: str) -> None:
        if self._fails == where and self._log.count("start") <= 2:
            raise RuntimeError(where)

    async def on_start(self, ctx: Context) -> None:
        self._log.append("start")
        self._maybe_fail("on_start")
        if self._fails == "nowhere, it hangs":
            await asyncio.Event().wait()

    async def on_stop(self, ctx: Context) -> None:
        self._log.append("stop")
        self._maybe_fail("on_stop")

    @every(seconds=0.001)
    async def tick(self, ctx: Context) -> None:
        self._maybe_fail("timer")


def recorders(log: list[str], fails: str) -> Callable[[], Recorder]:
    return partial(Recorder, log, fails)


@pytest.mark.parametrize(("fails", "starts"), [("nowhere", 1), ("on_start", 3), ("timer", 3), ("on_stop", 1)])
async def test_on_stop_runs_once_for_every_on_start(fails: str, starts: int) -> None:
    log: list[str] = []
    async with Node([recorders(log, fails)], MemoryTransport()):
        await eventually(lambda: log.count("start") == starts, "the last instance has started")
    assert log == ["start", "stop"] * starts


async def test_on_stop_runs_after_a_stop_during_on_start() -> None:
    log: list[str] = []
    node = Node([recorders(log, "nowhere, it hangs")], MemoryTransport())
    starting = asyncio.create_task(node.__aenter__())
    await eventually(lambda: log == ["start"], "on_start runs")
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert log == ["start", "stop"]


@pytest.mark.parametrize("fails", ["on_start", "timer"])
async def test_on_stop_runs_when_the_restart_budget_is_spent(fails: str) -> None:
    log: list[str] = []
    with pytest.raises(Crashed):
        async with Node([recorders(log, fails)], MemoryTransport(), settings=NodeSettings(restarts=0)) as node:
            await node.wait()
    assert log == ["start", "stop"]


# The port of the gateway


class CrashingGateway(Gateway):
    """A gateway that fails at a chosen point after it has begun to listen."""

    contract = Gateway.contract

    def __init__(self, port: int, fails: str) -> None:
        super().__init__(GatewaySettings(port=port))
        self.fails = fails

    async def on_start(self, ctx: Context) -> None:
        await super().on_start(ctx)
        match self.fails:
            case "on_start":
                raise RuntimeError
            case "on_start, for good":
                raise StartError("something is missing")
            case "cancelled":
                await asyncio.Event().wait()

    @every(seconds=0.01)
    async def fail(self, ctx: Context) -> None:
        if self.fails == "timer":
            raise RuntimeError


@pytest.mark.parametrize("fails", ["on_start", "on_start, for good", "timer", "cancelled"])
async def test_the_port_of_a_gateway_is_free_after_it_has_failed(fails: str) -> None:
    port = any_free_port()

    async def listening() -> bool:
        async with httpx.AsyncClient(verify=False) as client:
            try:
                return (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
            except httpx.TransportError:
                return False

    async def run() -> None:
        async with Node([lambda: CrashingGateway(port, fails)], MemoryTransport(), settings=NodeSettings(restarts=0)) as node:
            await node.wait()

    running = asyncio.create_task(run())
    if fails == "cancelled":
        await eventually(listening, "the gateway listens")
        running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert free_port("127.0.0.1", port, "X") == port
