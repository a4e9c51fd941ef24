"""Text from outside arrives equal on every transport and never breaks a link, in whatever part of an envelope it travels."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import aiomqtt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import Node, Transport, UsageError
from runtime.network import Address, Envelope, Manifest, Topic
from runtime.testing import RecordingReceiver, eventually
from runtime.trace import TraceFields
from tests.broker import Broker
from tests.http_peers import InterchangeablePeers
from tests.system_under_test import open_deployment
from tests.transports.mqtt.echo import Echo, Heard, echo_over_mqtt
from tests.transports.test_header_values import HOSTILE, TEXTS
from transports.http.transport import HttpTransport
from transports.http_mqtt import HttpMqttTransport
from transports.memory import MemoryNetwork, MemoryTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

KINDS = ("memory", "mqtt", "http+mqtt")
KEYS = ("a b", "a/b", "Käse", "", "-", "+", "#", "$SYS", "%", "%2F", "\x7f\x85\ufffd\ufdd0\U0001fffe", "x" * 300)

PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
"""The alphabet of `tracestate` and `baggage`, which headers carry as they are."""


@asynccontextmanager
async def factory(kind: str, folder: Path) -> AsyncGenerator[Callable[[], Transport], None]:
    """Return a factory for transports that reach each other."""
    network, peers = MemoryNetwork(), InterchangeablePeers(("echo", "sender"))
    if kind == "memory":
        yield lambda: MemoryTransport(network)
        return
    async with Broker(folder) as broker:
        mqtt = MqttSettings(url=broker.url)
        if kind == "mqtt":
            yield lambda: MqttTransport(mqtt)
        else:
            yield lambda: HttpMqttTransport(HttpTransport(peers.settings()), MqttTransport(mqtt))


class Answering(RecordingReceiver):
    """A receiver that answers every request."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self._transport = transport

    def receive(self, envelope: Envelope, to: str) -> None:
        super().receive(envelope, to)
        if envelope.reply_to is not None:
            assert self._transport.unicast_now(envelope.reply_to, Envelope("reply", envelope.id, "", b"null"), to)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_text_an_envelope_has_arrives_equal(kind: str, tmp_path: Path) -> None:
    async def start() -> tuple[Transport, Transport, RecordingReceiver]:
        new = await stack.enter_async_context(factory(kind, tmp_path))
        sender, receiver = new(), new()
        heard = Answering(receiver)
        await receiver.open("receiver", heard)
        await receiver.listen("echo")
        await receiver.subscribe(Topic("signal", "sender", "Ping"), "echo", broadcast=True)
        await receiver.announce(Manifest("echo", "receiver", "1"))
        await sender.open("sender", RecordingReceiver())
        await sender.watch("echo")
        return sender, receiver, heard

    stack = AsyncExitStack()
    optional = st.none() | TEXTS.filter(bool)
    with asyncio.Runner() as runner:
        sender, receiver, heard = runner.run(start())

        async def send(envelope: Envelope, key: str) -> None:
            heard.envelopes.clear()
            await sender.unicast(Address("echo", "receiver"), envelope, "sender")
            signal = Envelope("signal", "2", "sender.Ping", b"{}", signal_key=key)
            await sender.multicast(Topic("signal", "sender", "Ping", key), signal, "sender")
            await eventually(lambda: len(heard.envelopes) == 2, "the request and the signal arrive")
            (arrived,) = [found for found, _ in heard.envelopes if found.kind == "request"]
            for name in ("subject", "token", "trace", "idempotency_key", "params", "path", "trace_fields"):
                assert getattr(arrived, name) == getattr(envelope, name), name
            assert [found.signal_key for found, _ in heard.envelopes if found.kind == "signal"] == [key]

        @given(
            optional,
            optional,
            optional,
            st.none() | st.lists(st.tuples(TEXTS, TEXTS)).map(tuple),
            st.lists(TEXTS).map(tuple),
            TEXTS,
            st.none() | st.tuples(PRINTABLE, PRINTABLE).filter(any),
        )
        @settings(max_examples=25)
        def check(
            token: str | None, trace: str | None, idempotency_key: str | None, params: tuple[tuple[str, str], ...] | None,
            path: tuple[str, ...], key: str, trace_fields: tuple[str, str] | None,
        ) -> None:  # fmt: skip
            runner.run(
                send(
                    Envelope(
                        "request",
                        "1",
                        "echo.Say",
                        b"{}",
                        "sender",
                        Address("sender", "sender"),
                        5.0,
                        token,
                        trace,
                        idempotency_key,
                        params,
                        path,
                        trace_fields=None if trace_fields is None else TraceFields(*trace_fields),
                    ),
                    key,
                )
            )

        try:
            check()
        finally:

            async def stop() -> None:
                await sender.close()
                await receiver.close()
                await stack.aclose()

            runner.run(stop())


@pytest.mark.parametrize("kind", KINDS)
async def test_a_signal_is_delivered_whatever_its_key_is(kind: str, tmp_path: Path) -> None:
    async with factory(kind, tmp_path) as new, Node([Echo], new()) as node:
        service = node.service(Echo)
        assert service is not None
        ctx = node.client("echo", ())
        for key in (*KEYS, HOSTILE):
            await ctx.publish(Heard(key, "?"))
        await eventually(lambda: len(service.heard) > len(KEYS), "all arrive")
        assert [heard.room for heard in service.heard] == [*KEYS, HOSTILE]


@pytest.mark.parametrize("level", ["a b", "Käse", "a%20b", "K%C3%A4se", quote("a/b", safe=""), ""])
async def test_a_signal_of_another_client_is_delivered_whatever_its_key_is(broker: Broker, level: str) -> None:
    async with echo_over_mqtt(broker.url) as (service, _):
        key = {"a%20b": "a b", "K%C3%A4se": "Käse", "a%2Fb": "a/b"}.get(level, level)
        async with aiomqtt.Client("127.0.0.1", broker.port, identifier="device", protocol=aiomqtt.ProtocolVersion.V5) as client:
            await client.publish(f"callboard/1/signal/echo/Heard/{level}", f'{{"room":"{key}","text":"?"}}')
        await eventually(lambda: service.heard, "the signal arrives")
        assert service.heard == [Heard(key, "?")]


async def test_a_signal_that_cannot_be_sent_is_an_error_where_it_is_published(broker: Broker) -> None:
    async with echo_over_mqtt(broker.url) as (_, ctx):
        for key in ("x" * 70_000, "ü" * 30_000):
            with pytest.raises(UsageError, match=r"echo.Heard: /room: a key of [0-9,]+ characters: expected at most 1,024"):
                await ctx.publish(Heard(key, "?"))


async def test_nothing_in_a_url_or_a_header_breaks_a_link(tmp_path: Path) -> None:
    """Each of these requests ended the gateway's connection, and then the gateway, before headers were encoded."""
    async with open_deployment("mqtt-separate-nodes", tmp_path) as system:
        rider = await system.bearer()
        hostile = [quote(text) for text in "\0\x01\t\x7f\x80\x9f\ufffd\ufdd0\ufffe\U0001fffe\U0010ffff"]
        paths = [f"/{start}{text}" for text in hostile for start in ("rides/", "scooters?a=", "scooters?")]
        for path in paths:
            response = await system.client.get(path, headers=rider)
            assert response.status_code in (200, 400, 404, 405, 422), (path, response.text)
            assert (await system.client.get(path)).status_code in (400, 401, 404, 405, 422), path
        for token in ("a\tb", "a%7fb", "a\x7fb", "ä", "a b", "x" * 9000):
            header = {b"Authorization": f"Bearer {token}".encode("latin-1")}
            assert (await system.client.get("/rides", headers=header)).status_code in (400, 401), token
        assert (await system.client.get("/rides", headers=rider)).status_code == 200
        assert [node.metrics.value("links_lost_total") for node in system.nodes] == [0] * len(system.nodes)
