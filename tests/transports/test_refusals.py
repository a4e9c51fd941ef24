"""Brokers that will not have us, and what cannot be read: a clear word, and no storm."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiomqtt
import mqtt5
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from runtime import CallboardError, InternalError, Invalid, Node
from runtime.testing import eventually
from tests.broker import Broker
from tests.services import account
from tests.system.process import Callboard
from tests.system_under_test import PASSWORD, open_deployment
from tests.transports.echo import Echo, Much, Say, answers, pair, transport
from transports.mqtt.access import password_file
from transports.mqtt.connection import Connection
from transports.mqtt.link import BrokerRefused
from transports.mqtt.settings import MqttSettings


def with_users(folder: Path) -> tuple[str, ...]:
    """A broker's settings for one user, `echo`, with the password `right`."""
    (folder / "users").write_text(password_file({"echo": "right"}))
    return "allow_anonymous false", f"password_file {folder}/users"


async def test_a_wrong_password_is_said_and_not_tried_again(tmp_path: Path) -> None:
    async with Broker(tmp_path, *with_users(tmp_path)) as broker:
        for settings in ({}, {"username": "echo", "password": "wrong"}):
            with pytest.raises(BrokerRefused, match="the user name or the password is wrong"):
                async with Node([Echo], transport(broker.url, **settings)):
                    pass
        async with Node([Echo], transport(broker.url, username="echo", password="right")):
            pass
        assert "right" not in repr(MqttSettings(password="right"))


async def test_a_run_with_a_wrong_password_ends_with_one_line(tmp_path: Path) -> None:
    async with Broker(tmp_path, *with_users(tmp_path)) as broker:
        async with Callboard(
            tmp_path, "run", "wallet", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL=broker.url,
            CALLBOARD_TRANSPORT__MQTT__USERNAME="echo", CALLBOARD_TRANSPORT__MQTT__PASSWORD="wrong-secret",
        ) as run:  # fmt: skip
            assert await run.ends() == 2
        assert len(run.output.splitlines()) == 1
        assert "the user name or the password is wrong" in run.output
        assert "wrong-secret" not in run.output


class Authority:
    """A small certificate authority."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(_pem(self._sign(self._name, self._key.public_key(), 1, authority=True)))

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePublicKey, days: int, *, authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(_usage(authority=authority), critical=True)  # without it and the next two, Python 3.13 trusts nobody
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return certificate.sign(self._key, hashes.SHA256())

    def broker(self, days: int = 1) -> tuple[str, ...]:
        """The settings of a broker that has a certificate of ours, valid for so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
        (self._folder / "broker.pem").write_bytes(_pem(self._sign(name, key.public_key(), days, authority=False)))
        plain = serialization.NoEncryption()
        (self._folder / "broker.key").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        )
        return "allow_anonymous true", f"certfile {self._folder}/broker.pem", f"keyfile {self._folder}/broker.key"


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def secure(broker: Broker) -> str:
    return broker.url.replace("mqtt://", "mqtts://")


async def test_over_tls(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    async with Broker(tmp_path, *ours.broker()) as broker, pair(secure(broker), ca_file=str(ours.file)) as (_, ctx):
        assert await answers(ctx)
        assert len(await ctx.request(Much(1_000_000))) == 1_000_000


@pytest.mark.parametrize(
    ("days", "trusted", "said"),
    [(1, "theirs", "unable to get local issuer certificate"), (-1, "ours", "certificate has expired")],
)
async def test_a_certificate_that_is_not_to_be_trusted(tmp_path: Path, days: int, trusted: str, said: str) -> None:
    authorities = {name: Authority(tmp_path, name) for name in ("ours", "theirs")}
    async with Broker(tmp_path, *authorities["ours"].broker(days)) as broker:
        with pytest.raises(BrokerRefused, match=f"not to be trusted: {said}"):
            async with Node([Echo], transport(secure(broker), ca_file=str(authorities[trusted].file))):
                pass
        async with Callboard(
            tmp_path, "run", "wallet", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL=secure(broker),
            CALLBOARD_TRANSPORT__MQTT__CA_FILE=str(authorities[trusted].file),
        ) as run:  # fmt: skip
            assert await run.ends() == 2
        assert len(run.output.splitlines()) == 1
        assert said in run.output


async def test_plain_text_to_a_tls_port_is_waited_for_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = Authority(tmp_path, "ours")
    async with Broker(tmp_path, *ours.broker()) as broker:
        joining = asyncio.create_task(Node([Echo], transport(broker.url)).__aenter__())
        await eventually(lambda: "cannot be reached" in caplog.text, "that is said")
        joining.cancel()
        await asyncio.wait((joining,))


async def test_what_is_too_large_for_the_broker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Broker(tmp_path, "allow_anonymous true", "max_packet_size 200000") as broker, pair(broker.url) as (_, ctx):
        with pytest.raises(Invalid, match="more than the broker takes"):
            await ctx.request(Say("x" * 200_000))
        with pytest.raises(InternalError):
            await ctx.request(Much(200_000))
        assert "the answer to echo.Much: a message of 200,002 bytes is more than the broker takes" in caplog.text
        assert await answers(ctx)


GARBAGE = (b"", b"\xff\xfe", b"{}", b'{"service":"other","node":"x","instance":"y"}', b"[" * 5000)
HEADERS: tuple[list[tuple[str, str]], ...] = (
    [],
    [("kind", "nonsense")],
    [("kind", "reply")],
    [("budget", "soon")],
    [("budget", "9" * 400)],
    [("params", "{")],
    [("path", "1")],
    [("load", "-1")],
)


async def test_garbage_on_every_topic_is_counted_and_logged_once(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with pair(broker.url) as (service, ctx):
        asker, place = ctx.host.environment, ctx.host.environment.node  # type: ignore[attr-defined]
        packets: list[mqtt5.Packet] = []
        loop = asyncio.get_running_loop()
        _, stranger = await loop.create_connection(
            lambda: Connection(lambda _, packet: packets.append(packet), lambda _, reason: None, 1 << 20),
            "127.0.0.1",
            broker.port,
        )
        stranger.send(mqtt5.ConnectPacket("stranger", clean_start=True))
        await eventually(lambda: packets, "the stranger is connected")
        there = next(member for member in asker.registry.members("echo")).address.node
        topics = [
            f"inbox/test/{place}/echo", f"inbox/test/{place}/", f"inbox/echo/{there}/x", "request/echo/Say/x", "request/echo/Nothing/x",
            "presence/echo/nobody", f"presence/echo/{there}x", "gone/x", "stream/echo", "signal/echo/Heard/hall", "signal/echo/Heard/-",
        ]  # fmt: skip
        for topic in topics:
            for body in GARBAGE:
                for headers in HEADERS:
                    stranger.send(mqtt5.PublishPacket(f"callboard/1/{topic}", body, user_properties=headers))
        assert await answers(ctx)
        await eventually(lambda: asker.metrics.value("unreadable_total") > 10, "it is counted")
        assert await answers(ctx)
        assert {signal.text for signal in service.heard} <= {"?"}, "only what was really said"
        assert caplog.text.count("cannot be read, and is dropped") <= 2, "once for each of the two nodes"
        assert "Traceback" not in caplog.text
        stranger.end("done")


@pytest.mark.parametrize("topic", ["request/echo/Say/stranger", "inbox/echo/{node}/stranger"])
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
            asked = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            asked.ResponseTopic, asked.CorrelationData = "answers/here", b"\x00\xff\x10"
            asked.UserProperty = headers if topic.startswith("request") else [("subject", "echo.Say"), *headers]
            await client.publish(f"callboard/1/{topic.format(node=node.id)}", body, properties=asked)
            answer = await asyncio.wait_for(anext(aiter(client.messages)), 10)
        assert isinstance(answer.payload, bytes)
        found = msgspec.json.decode(answer.payload, type=dict[str, Any])
        assert (found["status"], found["code"], found["type"]) == (status, code, f"urn:callboard:callboard:{code}")
        assert found["title"]
        assert answer.properties is not None
        properties = answer.properties.json()  # type: ignore[no-untyped-call]
        assert properties["ContentType"] == "application/problem+json"
        assert properties["CorrelationData"] == b"\x00\xff\x10".hex(), "any bytes come back as they were"


@pytest.mark.parametrize(
    "wanted",
    ["callboard/1/presence/echo/x", "callboard/1/inbox/other/node", "callboard/1/signal/echo/Heard/hall", "$SYS/x"],
)
async def test_nobody_is_made_to_speak_where_the_asker_may_not(broker: Broker, wanted: str) -> None:
    """The answer to a request goes to the asker's own inbox, or outside of our topics: else a service could be made to forge."""
    async with Node([Echo], transport(broker.url)) as node:
        packets: list[mqtt5.Packet] = []
        loop = asyncio.get_running_loop()
        _, stranger = await loop.create_connection(
            lambda: Connection(lambda _, packet: packets.append(packet), lambda _, reason: None, 1 << 20),
            "127.0.0.1",
            broker.port,
        )
        stranger.send(mqtt5.ConnectPacket("stranger", clean_start=True))
        stranger.send(mqtt5.SubscribePacket(1, [mqtt5.TopicFilter("#", max_qos=mqtt5.QoS.AT_MOST_ONCE)]))
        stranger.send(
            mqtt5.PublishPacket("callboard/1/request/echo/Say/me", b'{"text":"?"}', response_topic=wanted, correlation_data=b"1")
        )
        await eventually(lambda: node.metrics.value("unreadable_total") == 1, "it is refused")
        said = [packet.topic for packet in packets if isinstance(packet, mqtt5.PublishPacket)]
        assert [
            topic
            for topic in said
            if not topic.startswith(("callboard/1/presence/echo/echo", "callboard/1/presence/echo/node", "callboard/1/request/"))
        ] == []
        stranger.end("done")


async def test_a_request_that_nobody_knows_is_answered(broker: Broker) -> None:
    async with Node([Echo], transport(broker.url)):
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier="x", protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.subscribe("answers/here")
            asked = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            asked.ResponseTopic = "answers/here"
            await client.publish("callboard/1/request/echo/Nothing/x", b"{}", properties=asked)
            answer = await asyncio.wait_for(anext(aiter(client.messages)), 10)
        assert isinstance(answer.payload, bytes)
        assert msgspec.json.decode(answer.payload, type=dict[str, Any])["status"] == 404


@pytest.mark.parametrize(
    ("topic", "headers"),
    [
        ("signal/echo/Heard/hall", [("kind", "request"), ("subject", "echo.Say")]),
        ("signal/echo/Heard/hall", [("subject", "echo.Other")]),
        ("signal/echo/Heard/hall", [("kind", "head")]),
        ("request/echo/Say/stranger", [("subject", "echo.Refuse")]),
        ("request/echo/Say/stranger", [("kind", "reply")]),
        ("inbox/echo/{node}/stranger", [("kind", "signal"), ("subject", "echo.Heard")]),
        ("inbox/echo/{node}/stranger", [("kind", "head")]),
    ],
)
async def test_headers_cannot_make_something_else_of_a_topic(broker: Broker, topic: str, headers: list[tuple[str, str]]) -> None:
    """The broker vouches for topics: a device that may publish its telemetry must not be able to ask in the fleet's name."""
    async with Node([Echo], transport(broker.url)) as node:
        packets: list[mqtt5.Packet] = []
        loop = asyncio.get_running_loop()
        _, stranger = await loop.create_connection(
            lambda: Connection(lambda _, packet: packets.append(packet), lambda _, reason: None, 1 << 20),
            "127.0.0.1",
            broker.port,
        )
        stranger.send(mqtt5.ConnectPacket("stranger", clean_start=True))
        stranger.send(
            mqtt5.PublishPacket(
                f"callboard/1/{topic.format(node=node.id)}", b'{"room":"hall","text":"?"}', user_properties=headers
            )
        )
        await eventually(lambda: node.metrics.value("unreadable_total") == 1, "it is refused")
        service = node.service(Echo)
        assert service is not None
        assert service.heard == []
        stranger.end("done")


@pytest.mark.parametrize("url", ["mqtt://127.0.0.1:99999", f"mqtt://{'a' * 70}.example:1883"])
async def test_an_address_that_is_none_is_said(url: str) -> None:
    with pytest.raises(CallboardError):
        async with asyncio.timeout(10):
            async with Node([Echo], transport(url)):
                pass


async def test_forged_hints_and_heads_cost_a_pull_and_nothing_else(tmp_path: Path) -> None:
    """Whoever may publish on a stream's topic, what it says is not believed: how far the stream goes is asked of its owner."""
    async with open_deployment("mqtt-apart", tmp_path) as system:
        url = system.nodes[0].environment.transport._settings.url  # type: ignore[attr-defined]
        packets: list[mqtt5.Packet] = []
        loop = asyncio.get_running_loop()
        _, stranger = await loop.create_connection(
            lambda: Connection(lambda _, packet: packets.append(packet), lambda _, reason: None, 1 << 20),
            "127.0.0.1", int(url.rpartition(":")[2]),
        )  # fmt: skip
        stranger.send(mqtt5.ConnectPacket("stranger", clean_start=True))
        for number in range(200):
            for service in ("auth", "wallet", "rides", "fleet", "nobody"):
                for body in (b'{"epoch":"forged","seq":1000000}', b'{"epoch":"","seq":-1}', b"null", b'{"x":' + b"[" * 3000):
                    stranger.send(
                        mqtt5.PublishPacket(f"callboard/1/stream/{service}", body, correlation_data=str(number).encode())
                    )
        email = {"email": "new@example.com", "password": PASSWORD}
        assert (await system.client.post("/users", json={**email, "name": "New"})).status_code == 201
        rider = await system.bearer(email["email"])
        assert (await system.client.post("/wallet/top-ups", json={"amount_cents": 500}, headers=rider)).status_code == 201
        assert (await system.client.get("/wallet", headers=rider)).json() == {"balance_cents": 500, "held_cents": 0}
        await eventually(lambda: not account.faults(system.folder), "the account is right")
        heard = [node.metrics.value("hints_malformed_total") for node in system.nodes]
        assert sum(heard) > 0, "they came"
        stranger.end("done")
