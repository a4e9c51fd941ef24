"""The link to a real mosquitto: what callers see when the broker stops or the link breaks, and how the link recovers."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiomqtt
import mqtt5
import msgspec
import pytest

from runtime import Context, InstanceLost, Node, NodeSettings, ServiceError
from runtime.network import Manifest, Registry
from runtime.sockets import any_free_port
from runtime.testing import RecordingReceiver, eventually
from tests.broker import Broker
from tests.system.process import Callboard
from tests.transports.mqtt.echo import Echo, Much, Repeat, Say, answers, echo, echo_over_mqtt, transport
from tests.transports.mqtt.helpers import PERSISTENT, kill, stop
from tests.transports.proxy import Proxy
from transports.mqtt.broker import TakenOver


def registry(ctx: Context) -> Registry:
    """Return the registry of a context's node."""
    found: Registry = ctx.host.environment.registry  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("end", [stop, kill])
@pytest.mark.parametrize("persistent", [False, True], ids=["in-memory", "persistent"])
async def test_a_broker_outage_fails_running_calls_and_delays_new_ones(
    tmp_path: Path, end: Callable[[Broker], Awaitable[None]], persistent: bool
) -> None:
    lines = (*PERSISTENT, f"persistence_location {tmp_path}/") if persistent else ()
    async with Broker(tmp_path, *lines) as broker, echo_over_mqtt(broker.url) as (service, ctx):
        service.gate.clear()
        running_call = asyncio.create_task(ctx.request(Say("running")))
        await eventually(lambda: service.gate._waiters, "the request has arrived")
        await end(broker)
        with pytest.raises(InstanceLost) as caught:
            await asyncio.wait_for(running_call, 5)
        assert caught.value.maybe_delivered, "long before the deadline, an error reports that the request may have run"
        service.gate.set()
        waiting = [asyncio.create_task(ctx.request(Say(str(number)), timeout=20)) for number in range(50)]
        with pytest.raises(ServiceError):
            await ctx.request(Say("no time"), timeout=0.2)
        await broker.start()
        assert await asyncio.gather(*waiting) == [str(number) for number in range(50)], "calls with time left wait for the link"


async def test_a_starting_node_waits_for_an_unreachable_broker(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    await broker.stop()

    async def call() -> bool:
        async with echo_over_mqtt(broker.url) as (_, ctx):
            return await answers(ctx)

    calling = asyncio.create_task(call())
    await eventually(lambda: "cannot be reached" in caplog.text, "the node logs that the broker cannot be reached")
    await broker.start()
    assert await calling


async def test_a_node_that_waits_for_its_broker_can_be_stopped(tmp_path: Path) -> None:
    async with Callboard(
        tmp_path, "run", "wallet", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL="mqtt://127.0.0.1:1"
    ) as run:
        await run.says("cannot be reached")
        assert await run.ends(signal.SIGTERM) == 0


async def test_a_node_stops_while_its_broker_is_down(broker: Broker) -> None:
    async with echo_over_mqtt(broker.url):
        await broker.stop()
        started = time.monotonic()
    assert time.monotonic() - started < 30, "the stop does not wait for the broker"


async def test_a_node_with_a_running_request_stops_while_its_broker_is_down(broker: Broker) -> None:
    node = Node([Echo], transport(broker.url), settings=NodeSettings(drain_timeout=0.1))
    async with node, Node([], transport(broker.url)) as other:
        await other.registry.wait_for("echo")
        service = node.service(Echo)
        assert service is not None
        service.gate.clear()
        running_call = asyncio.create_task(other.client("test", (echo,)).request(Say("never")))
        await eventually(lambda: service.gate._waiters, "the request has arrived")
        await broker.stop()
        with pytest.raises(InstanceLost):
            await running_call
        await asyncio.wait_for(node.stop(), 15)


async def test_a_start_can_be_cancelled_after_its_broker_went_down(broker: Broker) -> None:
    link = transport(broker.url)
    node = Node([Echo], link)
    starting = asyncio.create_task(node.__aenter__())
    await eventually(lambda: link._link is not None, "the node has connected")
    await broker.stop()
    starting.cancel()
    await asyncio.wait_for(asyncio.wait((starting,)), 15)


async def test_a_node_reconnects_when_the_broker_freezes_during_subscribe(broker: Broker) -> None:
    """A fake broker falls silent after the CONNACK of the first connection, and forwards the second one."""
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
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", broker.port)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(1000):
                sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, broker_writer), copy(broker_reader, writer))

    port = any_free_port()
    async with (
        await asyncio.start_server(freeze, "127.0.0.1", port),
        echo_over_mqtt(broker.url, f"mqtt://127.0.0.1:{port}") as (_, ctx),
    ):
        assert connections == 2
        assert await answers(ctx)


async def test_a_cut_link_fails_running_calls_and_delays_new_ones(broker: Broker) -> None:
    async with Proxy(broker.port) as proxy, echo_over_mqtt(broker.url, proxy.url) as (service, ctx):
        service.gate.clear()
        running_call = asyncio.create_task(ctx.request(Say("running")))
        await eventually(lambda: service.gate._waiters, "the request has arrived")
        await proxy.refuse()
        proxy.cut()
        with pytest.raises(InstanceLost):
            await asyncio.wait_for(running_call, 5)
        service.gate.set()
        waiting = asyncio.create_task(ctx.request(Say("waiting"), timeout=20))
        assert registry(ctx).members("echo"), "the instance is suspected, not removed"
        await proxy.listen()
        assert await waiting == "waiting"


@pytest.mark.parametrize("how", ["frozen", "half open"])
async def test_a_link_that_dies_silently_fails_running_calls_and_delays_new_ones(broker: Broker, how: str) -> None:
    async with Proxy(broker.port) as proxy, echo_over_mqtt(broker.url, proxy.url) as (_, ctx):
        assert await answers(ctx)
        (proxy.freeze if how == "frozen" else proxy.half_open)()
        with pytest.raises(InstanceLost):  # the keepalive notices this before the deadline
            await ctx.request(Say("lost"), timeout=30)
        waiting = asyncio.create_task(ctx.request(Repeat("waiting"), timeout=30))
        proxy.thaw()
        proxy.cut()
        assert await waiting == "waiting"


async def test_a_service_behind_a_link_that_dies_silently_is_lost(broker: Broker) -> None:
    async with Proxy(broker.port) as proxy, echo_over_mqtt(proxy.url, broker.url) as (_, ctx):
        assert await answers(ctx)
        proxy.freeze()
        with pytest.raises(InstanceLost):
            await ctx.request(Say("lost"), timeout=30)
        proxy.thaw()
        proxy.cut()
        await eventually(lambda: answers(ctx), "the service answers again")


async def test_a_slow_link_is_not_taken_for_a_broken_one(broker: Broker) -> None:
    """At 10 KiB per second, a 30 KiB answer takes longer than the keepalive, and still arrives."""
    async with Proxy(broker.port) as proxy, echo_over_mqtt(broker.url, proxy.url) as (_, ctx):
        assert await answers(ctx)
        proxy.rate = 10 * 1024
        assert len(await ctx.request(Much(30_000), timeout=30)) == 30_000
        assert await ctx.request(Say("still"), timeout=30) == "still"
        assert ctx.host.environment.metrics.value("links_lost_total") == 0  # type: ignore[attr-defined]


async def test_a_node_whose_session_is_taken_over_stops_and_reports_why() -> None:
    """A fake broker sends the DISCONNECT, because mosquitto 2.0 sends none when it hands a session over (see the next test)."""

    async def take_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
    async with await asyncio.start_server(take_over, "127.0.0.1", port):
        with pytest.raises(TakenOver, match=f"as {node.id}, and taken this node's place"):
            async with node:
                await asyncio.wait_for(node.wait(), 10)


async def test_a_second_node_with_the_same_id_is_detected_by_what_it_announces(broker: Broker) -> None:
    """Mosquitto 2.0 only closes the connection that is taken over. The retained manifest of another instance is the proof."""
    first, second = transport(broker.url), transport(broker.url)
    receivers = RecordingReceiver(), RecordingReceiver()
    await first.open("twice", receivers[0])
    await first.announce(Manifest("echo", "twice", "one"))
    await second.open("twice", receivers[1])
    announcing = asyncio.create_task(second.announce(Manifest("echo", "twice", "two")))
    try:
        await eventually(lambda: any(receiver.failure for receiver in receivers), "one of them ends")
        (error, *_) = [receiver.failure for receiver in receivers if receiver.failure is not None]
        assert isinstance(error, TakenOver)
        assert f"another client has connected to {broker.url} as twice" in str(error)
    finally:
        await asyncio.wait((announcing,), timeout=5)
        await first.close()
        await second.close()


async def test_a_manifest_that_another_service_forges_under_this_nodes_id_ends_nothing(broker: Broker) -> None:
    async with echo_over_mqtt(broker.url) as (_, ctx):
        node = next(iter(registry(ctx).members("echo"))).address.node
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier="x", protocol=aiomqtt.ProtocolVersion.V5) as client:
            forged = msgspec.json.encode(Manifest("other", node, "forged"))
            await client.publish(f"callboard/1/presence/other/{node}", forged, qos=1)
        assert await answers(ctx)


async def test_a_request_that_breaks_the_link_is_not_sent_again_and_again(broker: Broker) -> None:
    """A fake intermediary cuts the connection of a client that sends a certain text, as a broker does for illegal strings."""
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", broker.port)

        async def back() -> None:
            while data := await broker_reader.read(65536):
                writer.write(data)

        returning = asyncio.create_task(back())
        while data := await reader.read(65536):
            if b"poison" in data:
                seen += 1
                break
            broker_writer.write(data)
        returning.cancel()
        writer.transport.abort()
        broker_writer.transport.abort()

    port = any_free_port()
    async with (
        await asyncio.start_server(serve, "127.0.0.1", port),
        echo_over_mqtt(broker.url, f"mqtt://127.0.0.1:{port}") as (_, ctx),
    ):
        assert await answers(ctx)
        with pytest.raises(InstanceLost):
            await ctx.request(Repeat("poison"), timeout=60)
        assert seen == 2, "the request is idempotent, and one cut link may have had any other reason"
        assert await ctx.request(Repeat("harmless"), timeout=30) == "harmless"
