"""Requests over HTTP and signals over MQTT."""

from pathlib import Path

import pytest

from runtime import Node, StartError
from runtime.testing import RecordingReceiver, eventually
from tests.broker import Broker
from tests.http_peers import HttpPeers
from tests.transports.http.echo import Ping, Say, SubscribedEcho, echo
from transports.http.transport import HttpTransport
from transports.http_mqtt import HttpMqttTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


async def test_requests_work_without_the_broker_and_signals_once_it_is_up(http_peers: HttpPeers, tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    service = SubscribedEcho()

    def transport(name: str) -> HttpMqttTransport:
        return HttpMqttTransport(HttpTransport(http_peers.settings(name)), MqttTransport(MqttSettings(url=broker.url)))

    async with Node([lambda: service], transport("echo")) as server, Node([], transport("client"), name="client") as client_node:
        await client_node.registry.wait_for("echo")
        assert (await client_node.client("client", (echo,)).request(Say("x"))).text == "x"
        assert server.waits_for() == []
        ctx = server.client("echo", ())
        await ctx.publish(Ping())
        async with broker:

            async def ping_received() -> bool:
                await ctx.publish(Ping())
                return service.pings_received > 0

            await eventually(ping_received, "signals arrive")
    wrong = MqttSettings(url="mqtts://127.0.0.1:1", ca_file="/nowhere")
    with pytest.raises(StartError, match="ca_file"):
        await HttpMqttTransport(HttpTransport(http_peers.settings("echo")), MqttTransport(wrong)).open("x", RecordingReceiver())
