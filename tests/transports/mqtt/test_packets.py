"""Messages that a node must refuse: too large, unreadable, or forged."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import aiomqtt
import mqtt5
import msgspec
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from runtime import InternalError, Invalid, Node
from runtime.testing import eventually
from tests.broker import Broker
from tests.services import consistency
from tests.system_under_test import PASSWORD, open_deployment
from tests.transports.mqtt.echo import Echo, Much, Say, answers, echo_over_mqtt, transport
from transports.mqtt.connection import Connection
from transports.mqtt.packets import envelope


async def test_a_message_larger_than_the_broker_accepts_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        Broker(tmp_path, "allow_anonymous true", "max_packet_size 200000") as broker,
        echo_over_mqtt(broker.url) as (_, ctx),
    ):
        with pytest.raises(Invalid, match="expected at most 198,976 bytes of JSON, got 200,011"):
            await ctx.request(Say("x" * 200_000))
        with pytest.raises(InternalError):
            await ctx.request(Much(200_000))
        assert "the reply to echo.Much: expected at most 198,976 bytes of JSON, got 200,002" in caplog.text
        assert await answers(ctx)


GARBAGE = (b"", b"\xff\xfe", b"{}", b'{"service":"other","node":"x","instance":"y"}', b"[" * 5000)


HEADERS: tuple[list[tuple[str, str]], ...] = (
    [],
    [("kind", "nonsense")],
    [("kind", "reply")],
    [("budget", "soon")],
    [("budget", "9" * 400)],
    [("budget", "١٠٠")],
    [("params", "{")],
    [("path", "1")],
    [("load", "-1")],
)


async def test_garbage_on_every_topic_is_counted_and_logged_once_per_sender(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with echo_over_mqtt(broker.url) as (service, ctx):
        environment, node = ctx.host.environment, ctx.host.environment.node  # type: ignore[attr-defined]
        packets: list[mqtt5.Packet] = []
        loop = asyncio.get_running_loop()
        _, intruder = await loop.create_connection(
            lambda: Connection(lambda _, packet: packets.append(packet), lambda _, reason: None, 1 << 20),
            "127.0.0.1",
            broker.port,
        )
        intruder.send(mqtt5.ConnectPacket("intruder", clean_start=True))
        await eventually(lambda: packets, "the intruder is connected")
        echo_node = next(member for member in environment.registry.members("echo")).address.node
        topics = [
            f"inbox/test/{node}/echo", f"inbox/test/{node}/", f"inbox/echo/{echo_node}/x", "request/echo/Say/x", "request/echo/Nothing/x",
            "presence/echo/nobody", f"presence/echo/{echo_node}x", "gone/x", "stream/echo", "signal/echo/Heard/hall", "signal/echo/Heard/-",
        ]  # fmt: skip
        for topic in topics:
            for body in GARBAGE:
                for headers in HEADERS:
                    intruder.send(mqtt5.PublishPacket(f"callboard/1/{topic}", body, user_properties=headers))
        await eventually(lambda: answers(ctx), "the service answers")
        await eventually(lambda: environment.metrics.value("unreadable_total") > 10, "the unreadable messages are counted")
        await eventually(lambda: answers(ctx), "the service answers")
        assert {signal.text for signal in service.heard} <= {"?"}, "only the real signals are received"
        said = [record.getMessage() for record in caplog.records if "cannot be read, and is dropped" in record.getMessage()]
        assert len(said) < 60, "each of the two nodes logs it once per sender and topic"
        assert all("; it begins with b" in line for line in said)
        assert "Traceback" not in caplog.text
        intruder.end("done")


@pytest.mark.parametrize("topic", ["request/echo/Say/intruder", "inbox/echo/{node}/intruder"])
@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", [], 400, "malformed"),
        (b'"\xff"', [], 400, "malformed"),
        (b"{}", [], 422, "invalid"),
        (b'{"text":"?"}', [("budget", "soon")], 400, "malformed"),
        (b'{"text":"?"}', [("kind", "nonsense")], 400, "malformed"),
        (b"{}", [("kind", "signal")], 400, "malformed"),
    ],
)
async def test_garbage_with_a_response_topic_is_answered_with_a_problem_document(
    broker: Broker, topic: str, body: bytes, headers: list[tuple[str, str]], status: int, code: str
) -> None:
    async with Node([Echo], transport(broker.url)) as node:
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier="x", protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe("answers/here")
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic, properties.CorrelationData = "answers/here", b"\x00\xff\x10"
            properties.UserProperty = headers if topic.startswith("request") else [("subject", "echo.Say"), *headers]
            await client.publish(f"callboard/1/{topic.format(node=node.id)}", body, properties=properties)
            answer = await asyncio.wait_for(anext(aiter(client.messages)), 10)
        assert isinstance(answer.payload, bytes)
        found = msgspec.json.decode(answer.payload, type=dict[str, Any])
        assert (found["status"], found["code"], found["type"]) == (status, code, f"urn:callboard:callboard:{code}")
        assert found["title"]
        assert answer.properties is not None
        answered = answer.properties.json()  # type: ignore[no-untyped-call]
        assert answered["ContentType"] == "application/problem+json"
        assert answered["CorrelationData"] == b"\x00\xff\x10".hex(), (
            "the correlation data comes back unchanged, whatever its bytes"
        )


@pytest.mark.parametrize(
    "response_topic",
    ["callboard/1/presence/echo/x", "callboard/1/inbox/other/node", "callboard/1/signal/echo/Heard/hall", "$SYS/x"],
)
async def test_no_reply_goes_to_a_topic_that_the_caller_may_not_publish_to(broker: Broker, response_topic: str) -> None:
    """A reply goes only to the caller's own inbox or outside Callboard's topics. Otherwise a service could be made to forge messages."""
    async with Node([Echo], transport(broker.url)) as node:
        packets: list[mqtt5.Packet] = []
        loop = asyncio.get_running_loop()
        _, intruder = await loop.create_connection(
            lambda: Connection(lambda _, packet: packets.append(packet), lambda _, reason: None, 1 << 20),
            "127.0.0.1",
            broker.port,
        )
        intruder.send(mqtt5.ConnectPacket("intruder", clean_start=True))
        intruder.send(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter("#", max_qos=mqtt5.QoS.AT_MOST_ONCE)]))
        intruder.send(
            mqtt5.PublishPacket(
                "callboard/1/request/echo/Say/me", b'{"text":"?"}', response_topic=response_topic, correlation_data=b"1"
            )
        )
        await eventually(lambda: node.metrics.value("unreadable_total") == 1, "the message is refused")
        published = [packet.topic for packet in packets if isinstance(packet, mqtt5.PublishPacket)]
        assert [
            topic
            for topic in published
            if not topic.startswith(("callboard/1/presence/echo/echo", "callboard/1/presence/echo/node", "callboard/1/request/"))
        ] == []
        intruder.end("done")


async def test_an_unknown_request_is_answered_with_404(broker: Broker) -> None:
    async with Node([Echo], transport(broker.url)):
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier="x", protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe("answers/here")
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = "answers/here"
            await client.publish("callboard/1/request/echo/Nothing/x", b"{}", properties=properties)
            answer = await asyncio.wait_for(anext(aiter(client.messages)), 10)
        assert isinstance(answer.payload, bytes)
        assert msgspec.json.decode(answer.payload, type=dict[str, Any])["status"] == 404


@pytest.mark.parametrize(
    ("topic", "headers"),
    [
        ("signal/echo/Heard/hall", [("kind", "request"), ("subject", "echo.Say")]),
        ("signal/echo/Heard/hall", [("subject", "echo.Other")]),
        ("signal/echo/Heard/hall", [("kind", "head")]),
        ("request/echo/Say/intruder", [("subject", "echo.Refuse")]),
        ("request/echo/Say/intruder", [("kind", "reply")]),
        ("inbox/echo/{node}/intruder", [("kind", "signal"), ("subject", "echo.Heard")]),
        ("inbox/echo/{node}/intruder", [("kind", "head")]),
    ],
)
async def test_headers_cannot_change_what_a_topic_means(broker: Broker, topic: str, headers: list[tuple[str, str]]) -> None:
    """The broker authorizes topics only. A device that may publish its telemetry must not be able to send requests as the fleet."""
    async with Node([Echo], transport(broker.url)) as node:
        packets: list[mqtt5.Packet] = []
        loop = asyncio.get_running_loop()
        _, intruder = await loop.create_connection(
            lambda: Connection(lambda _, packet: packets.append(packet), lambda _, reason: None, 1 << 20),
            "127.0.0.1",
            broker.port,
        )
        intruder.send(mqtt5.ConnectPacket("intruder", clean_start=True))
        intruder.send(
            mqtt5.PublishPacket(
                f"callboard/1/{topic.format(node=node.id)}", b'{"room":"hall","text":"?"}', user_properties=headers
            )
        )
        await eventually(lambda: node.metrics.value("unreadable_total") == 1, "the message is refused")
        service = node.service(Echo)
        assert service is not None
        assert service.heard == []
        intruder.end("done")


async def test_forged_hints_and_heads_cost_a_pull_and_nothing_else(tmp_path: Path) -> None:
    """A hint on a stream's topic is never trusted, even from an authorized sender: the subscriber asks the stream's owner for its head."""
    async with open_deployment("mqtt-separate-nodes", tmp_path) as system:
        url = system.nodes[0].environment.transport._settings.url  # type: ignore[attr-defined]
        packets: list[mqtt5.Packet] = []
        loop = asyncio.get_running_loop()
        _, intruder = await loop.create_connection(
            lambda: Connection(lambda _, packet: packets.append(packet), lambda _, reason: None, 1 << 20),
            "127.0.0.1", int(url.rpartition(":")[2]),
        )  # fmt: skip
        intruder.send(mqtt5.ConnectPacket("intruder", clean_start=True))
        for number in range(200):
            for service in ("auth", "wallet", "rides", "fleet", "nobody"):
                for body in (b'{"epoch":"forged","seq":1000000}', b'{"epoch":"","seq":-1}', b"null", b'{"x":' + b"[" * 3000):
                    intruder.send(
                        mqtt5.PublishPacket(f"callboard/1/stream/{service}", body, correlation_data=str(number).encode())
                    )
        email = {"email": "new@example.com", "password": PASSWORD}
        assert (await system.client.post("/users", json={**email, "name": "New"})).status_code == 201
        rider = await system.bearer(email["email"])
        assert (await system.client.post("/wallet/top-ups", json={"amount_cents": 500}, headers=rider)).status_code == 201
        assert (await system.client.get("/wallet", headers=rider)).json() == {"balance_cents": 500, "held_cents": 0}
        await eventually(lambda: not consistency.violations(system.folder), "the databases are consistent")
        malformed = [node.metrics.value("hints_malformed_total") for node in system.nodes]
        assert sum(malformed) > 0, "the forged hints arrived"
        intruder.end("done")


@pytest.mark.parametrize(
    "name", ["subject", "kind", "budget", "token", "traceparent", "tracestate", "baggage", "key", "params", "path", "load"]
)
def test_a_header_that_comes_twice_is_refused(name: str) -> None:
    value = {"kind": "request", "params": "[]", "path": "[]"}.get(name, "1")
    once = mqtt5.PublishPacket("topic", b"{}", user_properties=[(name, value), ("own", "a"), ("own", "b")])
    assert envelope(once, "request", "", "caller", None).kind == "request"
    twice = mqtt5.PublishPacket("topic", b"{}", user_properties=[(name, value), (name, value)])
    with pytest.raises(ValueError, match=f"the header {name} more than once"):
        envelope(twice, "request", "", "caller", None)
