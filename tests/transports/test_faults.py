"""Brokers that stop and links that break, on a real mosquitto: what a caller sees, and that it mends by itself."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiomqtt
import mqtt5
import pytest

from runtime import Context, InstanceLost, Node, NodeSettings, NotDelivered, ServiceError
from runtime.network import Registry
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.broker import Broker
from tests.system.process import Callboard
from tests.transports.echo import Echo, Much, Repeat, Say, answers, echo, pair, transport
from tests.transports.proxy import Proxy
from transports.mqtt.link import TakenOver
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


def registry(ctx: Context) -> Registry:
    found: Registry = ctx.host.environment.registry  # type: ignore[attr-defined]
    return found


async def kill(broker: Broker) -> None:
    await broker.stop(signal.SIGKILL)


async def stop(broker: Broker) -> None:
    await broker.stop()


PERSISTENT = ("allow_anonymous true", "persistence true", "autosave_interval 1", "autosave_on_changes true")


@pytest.mark.parametrize("end", [stop, kill])
@pytest.mark.parametrize("persistent", [False, True], ids=["forgetful", "persistent"])
async def test_a_broker_that_comes_back_costs_nobody_an_answer_that_could_be_had(
    tmp_path: Path, end: Callable[[Broker], Awaitable[None]], persistent: bool
) -> None:
    lines = (*PERSISTENT, f"persistence_location {tmp_path}/") if persistent else ()
    async with Broker(tmp_path, *lines) as broker, pair(broker.url) as (service, ctx):
        service.gate.clear()
        under_way = asyncio.create_task(ctx.request(Say("under way")))
        await eventually(lambda: service.gate._waiters, "the request has come")
        await end(broker)
        with pytest.raises(InstanceLost) as caught:
            await asyncio.wait_for(under_way, 5)
        assert caught.value.maybe_delivered, "whether it ran is not known, and that is said, long before the deadline"
        service.gate.set()
        patient = [asyncio.create_task(ctx.request(Say(str(number)), timeout=20)) for number in range(50)]
        with pytest.raises(ServiceError):
            await ctx.request(Say("no time"), timeout=0.2)
        await broker.start()
        assert await asyncio.gather(*patient) == [str(number) for number in range(50)], "who has time waits for the link"


@pytest.mark.parametrize("end", [stop, kill])
async def test_a_node_that_dies_with_the_broker_leaves_no_ghost(tmp_path: Path, end: Callable[[Broker], Awaitable[None]]) -> None:
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
            await ctx.request(Say("?"), timeout=20)
        await eventually(lambda: not node.registry.members("echo"), "it is given up")
        async with Node([Echo], transport(broker.url)):
            await eventually(lambda: answers(ctx), "another is there")


async def test_a_broker_that_is_not_there_at_the_start_is_waited_for(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    await broker.stop()

    async def play() -> bool:
        async with pair(broker.url) as (_, ctx):
            return await answers(ctx)

    playing = asyncio.create_task(play())
    await eventually(lambda: "cannot be reached" in caplog.text, "that is said")
    await broker.start()
    assert await playing


async def test_a_start_that_waits_for_its_broker_can_be_stopped(tmp_path: Path) -> None:
    async with Callboard(
        tmp_path, "run", "wallet", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL="mqtt://127.0.0.1:1"
    ) as run:
        await run.says("cannot be reached")
        assert await run.ends(signal.SIGTERM) == 0


async def test_a_node_stops_while_its_broker_is_away(broker: Broker) -> None:
    async with pair(broker.url):
        await broker.stop()
        begun = time.monotonic()
    assert time.monotonic() - begun < 30, "nobody waits for it"


async def test_a_node_with_work_under_way_stops_while_its_broker_is_away(broker: Broker) -> None:
    node = Node([Echo], transport(broker.url), settings=NodeSettings(drain_timeout=0.1))
    async with node, Node([], transport(broker.url)) as other:
        await other.registry.wait_for("echo")
        service = node.service(Echo)
        assert service is not None
        service.gate.clear()
        asking = asyncio.create_task(other.client("test", (echo,)).request(Say("never")))
        await eventually(lambda: service.gate._waiters, "the request has come")
        await broker.stop()
        with pytest.raises(InstanceLost):
            await asking
        await asyncio.wait_for(node.stop(), 15)


async def test_a_start_whose_broker_goes_away_meanwhile_can_be_stopped(broker: Broker) -> None:
    link = transport(broker.url)
    node = Node([Echo], link)
    starting = asyncio.create_task(node.__aenter__())
    await eventually(lambda: link._link is not None, "it is connected")
    await broker.stop()
    starting.cancel()
    await asyncio.wait_for(asyncio.wait((starting,)), 15)


async def test_a_broker_that_freezes_while_we_subscribe_is_given_up(broker: Broker) -> None:
    """Its part is played: after the welcome it says nothing, the first time."""
    connections = 0

    async def freeze(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await reader.read(1000)
            writer.write(mqtt5.ConnAckPacket().write())
            while await reader.read(1000):
                continue
            writer.close()
            return
        there, here = await asyncio.open_connection("127.0.0.1", broker.port)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(1000):
                sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, here), copy(there, writer))

    port = any_free_port()
    async with await asyncio.start_server(freeze, "127.0.0.1", port), pair(broker.url, f"mqtt://127.0.0.1:{port}") as (_, ctx):
        assert connections == 2
        assert await answers(ctx)


async def test_a_service_that_stops_is_not_announced_again(broker: Broker) -> None:
    async with Node([], transport(broker.url)) as watcher:
        for _ in range(30):
            async with Node([Echo], transport(broker.url, heartbeat=0.01)):
                await watcher.registry.wait_for("echo")
            await eventually(lambda: not watcher.registry.members("echo"), "it has left")
        await asyncio.sleep(0.1)
        assert not watcher.registry.members("echo"), "and no heartbeat brings it back"


async def test_a_link_that_is_cut(broker: Broker) -> None:
    async with Proxy(broker.port) as proxy, pair(broker.url, proxy.url) as (service, ctx):
        service.gate.clear()
        under_way = asyncio.create_task(ctx.request(Say("under way")))
        await eventually(lambda: service.gate._waiters, "the request has come")
        await proxy.refuse()
        proxy.cut()
        with pytest.raises(InstanceLost):
            await asyncio.wait_for(under_way, 5)
        service.gate.set()
        patient = asyncio.create_task(ctx.request(Say("patient"), timeout=20))
        assert registry(ctx).members("echo"), "it is suspected, and not gone"
        await proxy.listen()
        assert await patient == "patient"


@pytest.mark.parametrize("memory", ["its-manifest", "nothing"])
async def test_who_died_while_our_link_was_cut_holds_up_nobody(broker: Broker, memory: str) -> None:
    """Nobody tells the asker, whether the broker still has something of the dead one or not: the other instance is there."""
    patient: dict[str, object] = {"keepalive": 60, "heartbeat": 30.0}
    dies, lives = transport(broker.url, **patient), transport(broker.url, **patient)
    async with (
        Proxy(broker.port) as proxy,
        Node([Echo], dies),
        Node([Echo], lives),
        Node([], transport(proxy.url, **patient)) as node,
    ):
        await eventually(lambda: len(node.registry.members("echo")) == 2, "both are there")
        ctx = node.client("test", (echo,))
        await asyncio.gather(*(ctx.request(Say("?")) for _ in range(20)))
        await proxy.refuse()
        proxy.cut()
        dies.crash()
        if memory == "nothing":
            await broker.stop()
            await broker.start()
            await eventually(lambda: lives.connected, "the other instance is back")
        await proxy.listen()
        assert await asyncio.gather(*(ctx.request(Say("?")) for _ in range(20))) == ["?"] * 20


@pytest.mark.parametrize("how", ["frozen", "half open"])
async def test_a_link_that_dies_without_a_word(broker: Broker, how: str) -> None:
    async with Proxy(broker.port) as proxy, pair(broker.url, proxy.url) as (_, ctx):
        assert await answers(ctx)
        (proxy.freeze if how == "frozen" else proxy.half_open)()
        with pytest.raises(InstanceLost):  # the keepalive tells, before the deadline does
            await ctx.request(Say("lost"), timeout=30)
        patient = asyncio.create_task(ctx.request(Repeat("patient"), timeout=30))
        proxy.thaw()
        proxy.cut()
        assert await patient == "patient"


async def test_a_service_behind_a_link_that_dies_without_a_word_is_lost(broker: Broker) -> None:
    async with Proxy(broker.port) as proxy, pair(proxy.url, broker.url) as (_, ctx):
        assert await answers(ctx)
        proxy.freeze()
        with pytest.raises(InstanceLost):
            await ctx.request(Say("lost"), timeout=30)
        proxy.thaw()
        proxy.cut()
        await eventually(lambda: answers(ctx), "it is as before")


async def test_a_slow_link_is_no_broken_link(broker: Broker) -> None:
    """10 KiB a second: 30 KiB take longer than the keepalive, and are heard all the same."""
    async with Proxy(broker.port) as proxy, pair(broker.url, proxy.url) as (_, ctx):
        assert await answers(ctx)
        proxy.rate = 10 * 1024
        assert len(await ctx.request(Much(30_000), timeout=30)) == 30_000
        assert await ctx.request(Say("still"), timeout=30) == "still"
        assert ctx.host.environment.metrics.value("links_lost_total") == 0  # type: ignore[attr-defined]


async def test_a_node_that_is_told_that_its_place_is_taken_stops_and_says_why() -> None:
    """The broker's part is played: mosquitto 2.0 says nothing when it hands a place over (the next test)."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(mqtt5.ConnAckPacket().write())
        while data := await reader.read(1000):
            packet, _ = mqtt5.read(memoryview(data))
            assert isinstance(packet, mqtt5.SubscribePacket)
            writer.write(mqtt5.SubAckPacket(packet.packet_id, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]).write())
            writer.write(mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER).write())
            break
        writer.close()

    port = any_free_port()
    node = Node([Echo], transport(f"mqtt://127.0.0.1:{port}"), name="twice")
    async with await asyncio.start_server(tell, "127.0.0.1", port):
        with pytest.raises(TakenOver, match=f"as {node.id}, and taken this node's place"):
            async with node:
                await asyncio.wait_for(node.wait(), 10)


async def test_two_with_one_id_do_not_fight_for_ever(broker: Broker, tmp_path: Path) -> None:
    async with replica(tmp_path, broker) as run:
        await run.says("callboard.node: ")
        node = next(word for word in run.output.split() if word.startswith("echo-")).rstrip(":")

        async def fight() -> None:
            while True:
                try:
                    async with aiomqtt.Client(
                        "127.0.0.1", broker.port, identifier=node, protocol=aiomqtt.ProtocolVersion.V5
                    ) as client:
                        async for _ in client.messages:
                            pass
                except aiomqtt.MqttError:
                    await asyncio.sleep(0.05)

        fighting = asyncio.create_task(fight())
        try:
            assert await run.ends() == 2
        finally:
            fighting.cancel()
        assert f"another client has connected to {broker.url} as {node}" in run.output.splitlines()[-1]


def replica(folder: Path, broker: Broker, **more: str) -> Callboard:
    """An `echo` in a process of its own."""
    return Callboard(
        folder, "run", "echo",
        CALLBOARD_SERVICES="tests.transports.echo:Echo", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL=broker.url, **more,
    )  # fmt: skip


class Load:
    """Calls at a steady rate, idempotent and plain by turns, and what became of them."""

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
        begun = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, begun + number / rate - loop.time()))
                tasks.create_task(self.one(number))


async def test_an_instance_killed_under_load_costs_no_idempotent_call(broker: Broker, tmp_path: Path) -> None:
    async with (
        replica(tmp_path, broker) as first,
        replica(tmp_path, broker),
        Node([], MqttTransport(MqttSettings(url=broker.url))) as node,
    ):
        await eventually(lambda: len(node.registry.members("echo")) == 2, "both are there")
        load = Load(node.client("test", (echo,)))
        running = asyncio.create_task(load.run(500, 4))
        await eventually(lambda: load.answered > 400, "it runs")
        first.process.kill()
        await running
        assert load.answered + len(load.failed) == 2000
        assert [error for name, error in load.failed if name == "Repeat"] == []
        assert all(error.maybe_delivered for _, error in load.failed), load.failed
        assert len(node.registry.members("echo")) == 1


async def test_an_instance_that_pauses_is_suspected_and_not_buried(broker: Broker, tmp_path: Path) -> None:
    quick = {"CALLBOARD_TRANSPORT__MQTT__HEARTBEAT": "0.5"}
    asker = MqttTransport(MqttSettings(url=broker.url, heartbeat=0.5))
    async with replica(tmp_path, broker, **quick) as first, replica(tmp_path, broker, **quick), Node([], asker) as node:
        await eventually(lambda: len(node.registry.members("echo")) == 2, "both are there")
        load = Load(node.client("test", (echo,)))
        running = asyncio.create_task(load.run(100, 13))
        await eventually(lambda: load.answered > 100, "it runs")
        first.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: any(member.suspected for member in node.registry.members("echo")), "it is suspected")
        answered = load.answered
        await eventually(lambda: load.answered > answered + 100, "the other one answers")
        await asyncio.sleep(8)  # the pause itself
        first.process.send_signal(signal.SIGCONT)
        await running
        assert load.failed == []
        await eventually(lambda: not any(member.suspected for member in node.registry.members("echo")), "it is trusted again")
        assert node.metrics.value("instances_lost_total", service="echo") == 0
