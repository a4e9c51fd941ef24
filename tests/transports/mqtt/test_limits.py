"""What a broker cannot do, as its CONNACK says: the transport does without it, or a start is refused in one line."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import mqtt5
import msgspec
import pytest

from runtime import Node, NoInstance, StartError
from runtime.network import Address, Envelope, Manifest, TransportError
from runtime.testing import Kit, RecordingReceiver, eventually
from runtime.testing.peer import Echo as KitEcho
from runtime.testing.peer import kit
from tests.broker import Broker
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


async def test_a_manifest_that_the_broker_does_not_take_ends_the_start_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Broker(tmp_path, "allow_anonymous true", "max_packet_size 1500") as broker:
        with pytest.raises(StartError) as caught:
            async with Node([Echo], transport(broker.url)):
                pass
        assert f"more than {broker.url} takes (1,500 with its headers): raise max_packet_size (mosquitto)" in str(caught.value)
        assert str(caught.value).startswith("echo: a manifest of ")
        assert "\n" not in str(caught.value)
        assert "crashed" not in caplog.text
        assert "the broker takes packets of at most 1500 bytes" in caplog.text


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


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"\x20\x02\x00\x01", "the broker speaks MQTT 3.1.1 and not MQTT 5, which is needed"),
        (b"\x20\x02\x00\x00", "the broker speaks MQTT 3.1.1 and not MQTT 5, which is needed"),
        (
            mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION).write(),
            "does not support MQTT 5",
        ),
        (mqtt5.ConnAckPacket(wildcard_subscription_available=False).write(), "the broker allows no subscriptions with wildcards"),
    ],
)
async def test_a_broker_that_cannot_be_used_ends_the_start_with_one_line(answer: bytes, said: str) -> None:
    async with played(answering(answer)) as url:
        with pytest.raises(StartError, match=said) as caught:
            await MqttTransport(MqttSettings(url=url)).open("node", RecordingReceiver())
        assert "\n" not in str(caught.value)


async def test_a_broker_that_closes_without_an_answer_is_reported_as_perhaps_not_mqtt_5(caplog: pytest.LogCaptureFixture) -> None:
    async with played(answering(b"")) as url:
        used = MqttTransport(MqttSettings(url=url))
        opening = asyncio.create_task(used.open("node", RecordingReceiver()))
        await eventually(lambda: "is it an MQTT 5 broker" in caplog.text, "the log says so")
        assert "is it an MQTT 5 broker" in used.attempts.last_error
        opening.cancel()
        await asyncio.wait((opening,))


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
