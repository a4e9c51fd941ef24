"""Which requests are retried on another instance, and for how long."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from runtime import InstanceLost, Node, NodeSettings, NoInstance, Transport, Unreachable
from runtime.network import Address, Envelope, PeerUnreachable
from runtime.testing import eventually
from tests.broker import Broker
from tests.http_peers import HttpPeers
from tests.runtime.execution.shop import Buy, Shop, shop
from tests.runtime.workers import Hang, SlowWhoReplies, WhoReplies, Worker, worker
from tests.topology import Topology
from transports.http.transport import HttpTransport
from transports.memory import MemoryNetwork, MemoryTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


async def test_an_error_that_a_handler_lets_through_is_not_retried(topology: Topology) -> None:
    """The bank was never reached, but the shop was: its handler has run."""
    await topology.start(Shop)
    ctx = await topology.client(shop)
    with pytest.raises(NoInstance) as caught:
        await ctx.request(Buy(), timeout=5)
    assert caught.value.service == "bank"
    assert caught.value.maybe_delivered
    assert topology.service(Shop).bought == 1


class LargeWorker(Worker):
    """A worker that runs many requests at once."""

    concurrency = 600


@asynccontextmanager
async def crash_under_load(caller: Node, network: MemoryNetwork, count: int) -> AsyncGenerator[None, None]:
    """Run a worker; on leaving the block, wait until it is busy with `count` requests, then crash it."""
    transport, busy = MemoryTransport(network), LargeWorker("lost")
    node = Node([lambda: busy], transport)
    await node.__aenter__()
    yield
    await eventually(lambda: busy.hanging == count, "all requests are running")
    transport.crash()
    await node.crash()
    await eventually(lambda: not caller.registry.members("worker"), "the worker is lost")


@asynccontextmanager
async def run_replacement(network: MemoryNetwork) -> AsyncGenerator[None, None]:
    """Run a worker that replies at once."""
    replying = LargeWorker("replacement")
    replying.gate.set()
    async with Node([lambda: replying], MemoryTransport(network)):
        yield


async def test_idempotent_requests_are_retried_each_time_their_instance_is_lost() -> None:
    network, count = MemoryNetwork(), LargeWorker.concurrency
    async with Node([], MemoryTransport(network)) as caller:
        ctx = caller.client("caller", (worker,))
        for _ in range(3):
            async with crash_under_load(caller, network, count):
                waiting = [asyncio.create_task(ctx.request(SlowWhoReplies())) for _ in range(count)]
            async with run_replacement(network):
                assert await asyncio.gather(*waiting) == ["replacement"] * count


async def test_requests_that_lose_one_instance_after_another_are_not_retried_forever() -> None:
    network, count = MemoryNetwork(), LargeWorker.concurrency
    async with Node([], MemoryTransport(network)) as caller:
        ctx = caller.client("caller", (worker,))
        async with crash_under_load(caller, network, count):
            waiting = [asyncio.create_task(ctx.request(SlowWhoReplies())) for _ in range(count)]
        for _ in range(2):
            async with crash_under_load(caller, network, count):
                pass
        async with run_replacement(network):
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        errors = [outcome for outcome in outcomes if outcome != "replacement"]
        assert errors
        assert all(isinstance(error, InstanceLost) for error in errors)


async def test_the_final_error_remembers_that_a_lost_instance_may_have_run_the_request() -> None:
    network = MemoryNetwork()
    async with Node([], MemoryTransport(network)) as caller:
        async with crash_under_load(caller, network, 1):
            waiting = asyncio.create_task(caller.client("caller", (worker,)).request(SlowWhoReplies(), timeout=1))
        with pytest.raises(NoInstance) as caught:
            await waiting
        assert caught.value.maybe_delivered


async def test_an_unreachable_instance_is_retried_until_the_deadline() -> None:
    class UnreachableTransport(MemoryTransport):
        refused = 1500

        def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
            if envelope.kind == "request" and self.refused > 0:
                self.refused -= 1
                raise PeerUnreachable("not yet")
            return super().unicast_now(to, envelope, sender)

    network = MemoryNetwork()
    async with run_replacement(network), Node([], UnreachableTransport(network)) as caller:
        ctx = caller.client("caller", (worker,))
        assert await asyncio.gather(*(ctx.request(SlowWhoReplies()) for _ in range(600))) == ["replacement"] * 600
        transport = caller.environment.transport
        assert isinstance(transport, UnreachableTransport)
        transport.refused = 10**9
        with pytest.raises(Unreachable):
            await ctx.request(SlowWhoReplies(), timeout=0.2)


@asynccontextmanager
async def restarting_service(kind: str, folder: Path) -> AsyncGenerator[tuple[Node, Callable[[], Node]], None]:
    """Yield a caller's node, and a function that makes a node with a worker for each of its starts."""
    async with AsyncExitStack() as stack:
        network = MemoryNetwork()
        broker = await stack.enter_async_context(Broker(folder)) if kind == "mqtt" else None
        peers = HttpPeers(["worker", "caller"], heartbeat=0.5)

        def transport(name: str) -> Transport:
            if broker is not None:
                return MqttTransport(MqttSettings(url=broker.url))
            return HttpTransport(peers.settings(name)) if kind == "http" else MemoryTransport(network)

        def worker_node() -> Node:
            replying = LargeWorker("one")
            replying.gate.set()
            return Node([lambda: replying], transport("worker"), settings=NodeSettings(drain_timeout=1))

        yield await stack.enter_async_context(Node([], transport("caller"))), worker_node


@pytest.mark.parametrize("kind", ["memory", "mqtt", "http"])
async def test_a_service_that_restarts_in_an_orderly_way_fails_no_safe_request(kind: str, tmp_path: Path) -> None:
    """Its only instance withdraws while requests keep coming, and another one starts within the deadline."""
    async with restarting_service(kind, tmp_path) as (caller, worker_node):
        running, done = True, 0
        node = await worker_node().__aenter__()
        await caller.registry.wait_for("worker")

        async def ask_repeatedly() -> None:
            nonlocal done
            ctx = caller.client("caller", (worker,))
            while running:
                assert await ctx.request(WhoReplies(), timeout=20) == "one"
                done += 1

        asking = [asyncio.create_task(ask_repeatedly()) for _ in range(5)]
        for _ in range(2):
            before = done
            await eventually(lambda before=before: done > before + 50, "requests are answered")  # type: ignore[misc]
            await node.stop()
            await eventually(lambda: not caller.registry.members("worker"), "the caller has noticed")
            unsafe = caller.client("caller", (worker,)).request(Hang(), timeout=20)
            with pytest.raises(NoInstance):
                await unsafe
            node = await worker_node().__aenter__()
        running = False
        await asyncio.gather(*asking)
        await node.stop()


async def test_a_stopping_node_waits_for_no_other_service() -> None:
    network = MemoryNetwork()
    async with Node([], MemoryTransport(network)) as caller:
        async with run_replacement(network):
            await caller.registry.wait_for("worker")
        await eventually(lambda: not caller.registry.members("worker"), "the worker has left")
        waiting = asyncio.create_task(caller.client("caller", (worker,)).request(WhoReplies(), timeout=60))
        await asyncio.sleep(0)
        assert not waiting.done()
        stopping = asyncio.create_task(caller.stop())
        with pytest.raises(NoInstance):
            await asyncio.wait_for(waiting, 5)
        await stopping
