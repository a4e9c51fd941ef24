"""What a broker cannot do, as its CONNACK says: the transport does without it, or a start is refused in one line."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiomqtt
import mqtt5
import msgspec
import pytest

from runtime import Invalid, Node, NoInstance, StartError
from runtime.network import Address, Envelope, Manifest, TooLarge, TransportError
from runtime.testing import Kit, RecordingReceiver, eventually
from runtime.testing.peer import Echo as KitEcho
from runtime.testing.peer import kit
from tests.broker import Broker
from tests.system_under_test import PASSWORD, open_system, settings
from tests.transports.mqtt.echo import Echo, Say, answers, echo, echo_over_mqtt, transport
from tests.transports.mqtt.helpers import less_capable
from tests.transports.mqtt.test_link_state import played
from transports.mqtt.limits import Limits
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

MULTICASTS = (
    "a_broadcast_reaches_all", "a_key_narrows_a_topic", "a_signal_reaches_one_of_each_group", "anycast", "heads_reach_every_subscriber",
    "unsubscribing",
)  # fmt: skip
WITHOUT = {
    "shared subscriptions": {"shared_subscription_available": False},
    "subscription ids": {"subscription_id_available": False},
    "both": {"shared_subscription_available": False, "subscription_id_available": False},
}


@pytest.mark.parametrize("missing", WITHOUT)
@pytest.mark.parametrize("case", MULTICASTS)
async def test_multicasts_conform_without(broker: Broker, missing: str, case: str) -> None:
    async with less_capable(broker, **WITHOUT[missing]) as url:
        await Kit(lambda: MqttTransport(MqttSettings(url=url))).run(case)


async def test_requests_work_and_anycast_is_refused_without_shared_subscriptions(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with less_capable(broker, shared_subscription_available=False) as url, echo_over_mqtt(url) as (service, ctx):
        assert await answers(ctx)
        await eventually(lambda: [heard.text for heard in service.heard] == ["?"], "the signal arrives once")
        used = ctx.host.environment.transport  # type: ignore[attr-defined]
        with pytest.raises(TransportError, match="has no shared subscriptions: choose an instance of echo"):
            await used.anycast("echo", Envelope("request", "1", "echo.Say", b"{}"), "test")
        assert f"{url}: it has no shared subscriptions: a client that is not a node cannot call" in caplog.text


async def test_a_new_instance_knows_the_others_before_it_takes_signals(broker: Broker) -> None:
    """Without a retained manifest, and long before the next heartbeat: the others introduce themselves."""
    async with less_capable(broker, shared_subscription_available=False, retain_available=False) as url:
        nodes = [MqttTransport(MqttSettings(url=url, heartbeat=60)) for _ in range(2)]
        receivers = [RecordingReceiver() for _ in nodes]
        for number, node in enumerate(nodes):
            await node.open(f"node-{number}", receivers[number])
            await node.watch("echo")
            await node.announce(Manifest("echo", f"node-{number}", str(number)))
        try:
            everybody = {Address("echo", "node-0"), Address("echo", "node-1")}
            await eventually(lambda: all(set(seen.members) == everybody for seen in receivers), "both know both")
        finally:
            for node in nodes:
                await node.close()


@pytest.mark.parametrize("line", ["retain_available false", "max_qos 0", "max_keepalive 10"])
async def test_nodes_work_on_a_mosquitto_with(tmp_path: Path, line: str) -> None:
    async with Broker(tmp_path, "allow_anonymous true", line) as broker, echo_over_mqtt(broker.url, keepalive=60) as (_, ctx):
        assert await answers(ctx)
        used: MqttTransport = ctx.host.environment.transport  # type: ignore[attr-defined]
        expected = {"retain_available false": Limits(retain=False), "max_qos 0": Limits(acknowledges=False)}.get(line, Limits())
        limits = used.link.limits
        assert (limits.retain, limits.acknowledges) == (expected.retain, expected.acknowledges)
        assert limits.keepalive == (10 if line == "max_keepalive 10" else 60)


async def test_a_request_waits_one_heartbeat_for_what_the_node_cannot_know_yet(tmp_path: Path) -> None:
    """A broker that retains nothing, or another one of a cluster, gives a new node no manifests."""
    async with (
        Broker(tmp_path, "allow_anonymous true", "retain_available false") as broker,
        Node([Echo], transport(broker.url)),
        Node([], transport(broker.url)) as client,
    ):
        assert await client.client("test", (echo,)).request(Say("?")) == "?"
        beginning = client.environment.clock.monotonic()
        with pytest.raises(NoInstance):
            await client.client("test", (kit,)).request(KitEcho("?"))
        waited = client.environment.clock.monotonic() - beginning
        with pytest.raises(NoInstance):
            await asyncio.wait_for(client.client("test", (kit,)).request(KitEcho("?")), waited)
        assert waited >= 0.3


@pytest.mark.parametrize("whose", ["the broker takes", "transport.mqtt.max_packet allows"])
async def test_nodes_work_with_packets_of_1024_bytes(tmp_path: Path, whose: str, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest that is larger is sent in parts; any other message that is larger fails, and the error names the limit."""
    lines = ("max_packet_size 1024",) if whose == "the broker takes" else ()
    own = MqttSettings().max_packet if lines else 1024
    async with Broker(tmp_path, "allow_anonymous true", *lines) as broker:
        async with echo_over_mqtt(broker.url, max_packet=own) as (service, ctx):
            assert await answers(ctx)
            await eventually(lambda: [heard.text for heard in service.heard] == ["?"], "the signal arrives")
            assert f"{whose} packets of at most 1024 bytes" in caplog.text
            with pytest.raises(Invalid, match="expected at most 768 bytes of JSON, got 2,"):
                await ctx.request(Say("x" * 2000))
            used: MqttTransport = ctx.host.environment.transport  # type: ignore[attr-defined]
            with pytest.raises(TooLarge, match=f"a message of 2,0\\d\\d bytes with its headers is more than {whose} ."):
                await used.link.publish("callboard/1/signal/echo/Heard/-", b"x" * 2000)
            async with Node(
                [], transport(broker.url, max_packet=own)
            ) as late:  # it learns of the instance from retained parts alone
                assert await answers(late.client("test", (echo,)))
            async with aiomqtt.Client("127.0.0.1", broker.port, identifier="x", protocol=aiomqtt.ProtocolVersion.V5) as client:
                await client.subscribe("callboard/1/presence/echo/+")
                first = await asyncio.wait_for(anext(aiter(client.messages)), 10)
                assert len(first.payload) < 1024
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier="y", protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe("callboard/1/presence/#")
            await client.publish("callboard/1/presence/none", b"none", qos=1)
            left = await asyncio.wait_for(anext(aiter(client.messages)), 10)
            assert left.payload == b"none", "a node that has left leaves no part behind"


async def test_the_whole_system_works_with_packets_of_1024_bytes(tmp_path: Path) -> None:
    """Tokens, events, and each service's manifest fit, or are sent in parts."""
    async with Broker(tmp_path, "allow_anonymous true", "max_packet_size 1024") as broker:
        chosen = settings(tmp_path)
        over_mqtt = msgspec.structs.replace(chosen.transport, kind="mqtt", mqtt=MqttSettings(url=broker.url))
        async with open_system(msgspec.structs.replace(chosen, transport=over_mqtt), separate_nodes=True) as system:
            rider = {"email": "new@example.com", "password": PASSWORD}
            assert (await system.client.post("/users", json={**rider, "name": "New"})).status_code == 201
            headers = await system.bearer("new@example.com")
            topped_up = await system.client.post("/wallet/top-ups", json={"amount_cents": 500}, headers=headers)
            assert topped_up.status_code == 201, topped_up.text
            assert (await system.client.get("/wallet", headers=headers)).json() == {"balance_cents": 500, "held_cents": 0}


async def test_a_broker_that_takes_less_than_1024_bytes_is_refused(tmp_path: Path) -> None:
    async with Broker(tmp_path, "allow_anonymous true", "max_packet_size 1023") as broker:
        with pytest.raises(
            StartError, match="takes packets of at most 1023 bytes, and a node needs 1,024: raise its limit"
        ) as caught:
            await MqttTransport(MqttSettings(url=broker.url)).open("node", RecordingReceiver())
        assert "\n" not in str(caught.value)


async def test_a_message_that_is_too_large_for_a_node_does_not_cost_its_connection(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """The node announces no Maximum Packet Size, so the broker delivers it. It is dropped, whether it arrives in one piece or in many."""
    async with aiomqtt.Client("127.0.0.1", broker.port, identifier="x", protocol=aiomqtt.ProtocolVersion.V5) as client:
        used, receiver = transport(broker.url, max_packet=2048), RecordingReceiver()
        await used.open("node", receiver)
        await used.listen("echo")
        for size in (1_000, 2_048, 70_000, 1_000_000):
            for qos in (0, 1):
                await client.publish(f"callboard/1/inbox/echo/node/x{size}", b"x" * size, qos=qos)
        await client.publish("callboard/1/inbox/echo/node/last", b"{}", qos=1)
        await eventually(
            lambda: [got.caller for got, _ in receiver.envelopes] == ["x1000", "x1000", "last"], "those that fit arrive"
        )
        assert receiver.garbage == 6
        assert receiver.cuts == 0
        assert caplog.text.count("are more than transport.mqtt.max_packet") == 1
        await used.close()


def test_only_a_small_limit_of_packets_is_named() -> None:
    assert Limits(max_packet=64 * 1024).restrictions() == []
    (said,) = Limits(max_packet=64 * 1024 - 1).restrictions()
    assert said.startswith("the broker takes packets of at most 65535 bytes")


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(answer)
        writer.close()

    return serve


UNSUPPORTED = mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION).write()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"\x20\x02\x00\x01", " does not speak MQTT 5: it speaks MQTT 3.1.1 only"),
        (b"\x20\x02\x00\x00", " does not speak MQTT 5: it speaks MQTT 3.1.1 only"),
        (UNSUPPORTED, " does not speak MQTT 5: it speaks MQTT 3.1.1 only"),
        (mqtt5.ConnAckPacket(wildcard_subscription_available=False).write(), "the broker allows no subscriptions with wildcards"),
    ],
)
async def test_a_broker_that_cannot_be_used_ends_the_start_with_one_line(answer: bytes, said: str) -> None:
    async with played(answering(answer)) as url:
        with pytest.raises(StartError, match=said) as caught:
            await MqttTransport(MqttSettings(url=url)).open("node", RecordingReceiver())
        assert str(caught.value).startswith(url)
        assert "\n" not in str(caught.value)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.transport.abort()


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        (answering(b""), "it closed the connection without an answer (or it expects TLS here, mqtts://, or is still starting)"),
        (resetting, "it closed the connection without an answer"),
        (silent, "no answer to CONNECT within 0.1 s (or it is stuck)"),
        (answering(b"\x15\x03\x01\x00\x02\x02\x46"), "it expects TLS here: use mqtts://"),
        (answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "its answer begins with b'HTTP/1.1 400 Bad Req', as no broker's does"),
        (answering(b"AMQP\x00\x00\x09\x01"), "its answer begins with b'AMQP"),
        (answering(b"SSH-2.0-OpenSSH_9.2p1\r\n"), "its answer begins with b'SSH-2.0"),
        (answering(mqtt5.PingRespPacket().write()), "its answer begins with b'\\xd0\\x00'"),
    ],
)  # fmt: skip
async def test_whatever_answers_otherwise_is_said_not_to_speak_mqtt_5(
    serve: Serve, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A node keeps trying, because a broker that is starting behind a forwarded port looks like this, too."""
    async with played(serve) as url:
        used = MqttTransport(MqttSettings(url=url, connect_timeout=0.1))
        opening = asyncio.create_task(used.open("node", RecordingReceiver()))
        expected = f"{url} does not speak MQTT 5: {said}"
        await eventually(lambda: expected in caplog.text, f"the log says {expected}")
        assert used.attempts.last_error.startswith(expected)
        assert not opening.done()
        opening.cancel()
        await asyncio.wait((opening,))


async def test_a_node_pings_as_often_as_the_broker_demands() -> None:
    """Server Keep Alive, from a fake broker: the node's own keepalive would let it wait for five minutes."""
    pinged = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connect, _ = mqtt5.read(memoryview(await reader.read(1000)))
        assert isinstance(connect, mqtt5.ConnectPacket)
        assert (connect.keep_alive, connect.max_packet_size) == (600, None)
        writer.write(mqtt5.ConnAckPacket(server_keep_alive=1).write())
        while data := await reader.read(1000):
            packet, _ = mqtt5.read(memoryview(data))
            if isinstance(packet, mqtt5.SubscribePacket):
                writer.write(mqtt5.SubAckPacket(packet.packet_id, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]).write())
            elif isinstance(packet, mqtt5.PingReqPacket):
                pinged.set()
        writer.close()

    async with played(serve) as url:
        used = MqttTransport(MqttSettings(url=url, keepalive=600))
        await used.open("node", RecordingReceiver())
        await asyncio.wait_for(pinged.wait(), 30)
        await used.close()


async def test_the_brokers_of_a_cluster_are_tried_in_turn(broker: Broker, tmp_path: Path) -> None:
    async with Broker(tmp_path) as other:
        urls = ("mqtt://127.0.0.1:1", broker.url, other.url)
        used = MqttTransport(MqttSettings(urls=urls, url="mqtt://127.0.0.1:2", heartbeat=0.3))
        await used.open("node", RecordingReceiver())
        assert used.attempts.url == broker.url
        await broker.stop()
        await eventually(lambda: used.connected and used.attempts.url == other.url, "it has moved to the other broker")
        await used.close()


@pytest.mark.parametrize("name", ["a\tb", "\x7f", "a\x85", ""])
def test_a_user_name_with_control_characters_is_refused_with_the_settings(name: str) -> None:
    """A broker would close the connection without a word."""
    with pytest.raises(msgspec.ValidationError, match="username"):
        msgspec.convert({"username": name}, MqttSettings)
