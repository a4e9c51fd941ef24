"""Presence on a real mosquitto: which instances a node knows after crashes, pauses, and broken links."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from runtime import Context, InstanceLost, Node, NotDelivered, ServiceError
from runtime.testing import eventually
from tests.broker import Broker
from tests.transports.mqtt.echo import Echo, Repeat, Say, answers, echo, transport
from tests.transports.mqtt.helpers import PERSISTENT, echo_process, kill, stop
from tests.transports.proxy import Proxy
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


@pytest.mark.parametrize("end", [stop, kill])
async def test_a_node_that_dies_with_the_broker_is_removed_from_the_registry(
    tmp_path: Path, end: Callable[[Broker], Awaitable[None]]
) -> None:
    broker = Broker(tmp_path, *PERSISTENT, f"persistence_location {tmp_path}/")
    async with broker, Node([], transport(broker.url)) as node:
        dying = transport(broker.url)
        dead = Node([Echo], dying)
        await dead.__aenter__()
        await node.registry.wait_for("echo")
        await end(broker)
        dying.crash()
        await dead.crash()
        await broker.start()
        ctx = node.client("test", (echo,))
        with pytest.raises(NotDelivered):
            await ctx.request(Say("?"), timeout=8)
        await eventually(lambda: not node.registry.members("echo"), "the dead instance is removed")
        async with Node([Echo], transport(broker.url)):
            await eventually(lambda: answers(ctx), "another instance answers")


async def test_a_stopped_service_is_not_announced_again(broker: Broker) -> None:
    async with Node([], transport(broker.url)) as watcher:
        for _ in range(30):
            async with Node([Echo], transport(broker.url, heartbeat=0.01)):
                await watcher.registry.wait_for("echo")
            await eventually(lambda: not watcher.registry.members("echo"), "the instance has left")
        await asyncio.sleep(0.1)
        assert not watcher.registry.members("echo"), "no late heartbeat announces it again"


@pytest.mark.parametrize("retained", ["its-manifest", "nothing"])
async def test_an_instance_that_died_while_the_link_was_cut_delays_no_request(broker: Broker, retained: str) -> None:
    """The other instance answers, whether or not the broker still retains the dead one's manifest."""
    long_timeouts: dict[str, object] = {"keepalive": 60, "heartbeat": 30.0}
    dying, surviving = transport(broker.url, **long_timeouts), transport(broker.url, **long_timeouts)
    async with (
        Proxy(broker.port) as proxy,
        Node([Echo], dying),
        Node([Echo], surviving),
        Node([], transport(proxy.url, **long_timeouts)) as node,
    ):
        await eventually(lambda: len(node.registry.members("echo")) == 2, "both instances are registered")
        ctx = node.client("test", (echo,))
        await asyncio.gather(*(ctx.request(Say("?")) for _ in range(20)))
        await proxy.refuse()
        proxy.cut()
        dying.crash()
        if retained == "nothing":
            await broker.stop()
            await broker.start()
            await eventually(lambda: surviving.connected, "the other instance has reconnected")
        await proxy.listen()
        assert await asyncio.gather(*(ctx.request(Say("?")) for _ in range(20))) == ["?"] * 20


class Load:
    """Calls at a steady rate, alternately idempotent and not, with a record of their outcomes."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.answered = 0
        self.failed: list[tuple[str, ServiceError]] = []

    async def one(self, number: int) -> None:
        message = Repeat(str(number)) if number % 2 else Say(str(number))
        try:
            assert await self.ctx.request(message, timeout=20) == str(number)
        except ServiceError as error:
            self.failed.append((type(message).__name__, error))
        else:
            self.answered += 1

    async def run(self, rate: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, started + number / rate - loop.time()))
                tasks.create_task(self.one(number))


async def test_no_idempotent_call_fails_when_an_instance_is_killed_under_load(broker: Broker, tmp_path: Path) -> None:
    async with (
        echo_process(tmp_path, broker) as first,
        echo_process(tmp_path, broker),
        Node([], MqttTransport(MqttSettings(url=broker.url))) as node,
    ):
        await eventually(lambda: len(node.registry.members("echo")) == 2, "both instances are registered")
        load = Load(node.client("test", (echo,)))
        running = asyncio.create_task(load.run(500, 4))
        await eventually(lambda: load.answered > 400, "enough calls were answered")
        first.process.kill()
        await running
        assert load.answered + len(load.failed) == 2000
        assert [error for name, error in load.failed if name == "Repeat"] == []
        assert all(error.maybe_delivered for _, error in load.failed), load.failed
        assert len(node.registry.members("echo")) == 1


async def test_a_paused_instance_is_suspected_but_not_removed(broker: Broker, tmp_path: Path) -> None:
    quick = {"CALLBOARD_TRANSPORT__MQTT__HEARTBEAT": "0.5"}
    client_transport = MqttTransport(MqttSettings(url=broker.url, heartbeat=0.5))
    async with (
        echo_process(tmp_path, broker, **quick) as first,
        echo_process(tmp_path, broker, **quick),
        Node([], client_transport) as node,
    ):
        await eventually(lambda: len(node.registry.members("echo")) == 2, "both instances are registered")
        load = Load(node.client("test", (echo,)))
        running = asyncio.create_task(load.run(100, 13))
        await eventually(lambda: load.answered > 100, "enough calls were answered")
        first.process.send_signal(signal.SIGSTOP)
        await eventually(
            lambda: any(member.suspected for member in node.registry.members("echo")), "the paused instance is suspected"
        )
        answered = load.answered
        await eventually(lambda: load.answered > answered + 100, "the other instance answers")
        await asyncio.sleep(8)  # how long the instance stays paused
        first.process.send_signal(signal.SIGCONT)
        await running
        assert load.failed == []
        await eventually(
            lambda: not any(member.suspected for member in node.registry.members("echo")), "no instance is suspected any more"
        )
        assert node.metrics.value("instances_lost_total", service="echo") == 0


async def test_a_call_whose_caller_has_not_heard_that_its_callee_has_left_ends_at_once(broker: Broker) -> None:
    """The caller sends it when the callee has left already, as it may after its event loop was blocked for a while."""
    quiet: dict[str, object] = {"keepalive": 60, "heartbeat": 30.0}
    async with Proxy(broker.port) as proxy, Node([], transport(proxy.url, **quiet)) as node:
        async with Node([Echo], transport(broker.url, **quiet)):
            await node.registry.wait_for("echo")
            ctx = node.client("test", (echo,))
            assert await answers(ctx)
            proxy.half_open()
        sent = asyncio.create_task(ctx.request(Say("?"), timeout=300))
        await asyncio.sleep(0.05)
        assert not sent.done()
        proxy.thaw()
        with pytest.raises(InstanceLost):
            await asyncio.wait_for(sent, 10)
