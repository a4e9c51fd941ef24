"""The HTTP transport conforms, alone and combined with MQTT for signals."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime import Transport
from runtime.testing import Kit
from tests.broker import Broker
from tests.http_peers import InterchangeablePeers
from tests.transports.proxy import Proxy
from transports.http.transport import HttpTransport
from transports.http_mqtt import HttpMqttTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

NAMES = ("conformance", "asker", "stranger", "apple", "pear", "lonely", "sender")


class ProxiedPeers(InterchangeablePeers):
    """Nodes that reach each other through proxies. Cutting the proxy of a node looks like the death of its process."""

    proxies: list[Proxy] = []

    async def start_proxies(self) -> None:
        self.proxies = [Proxy(port) for port in self.ports]
        self.reached_at = [proxy.port for proxy in self.proxies]
        for proxy in self.proxies:
            await proxy.listen()

    async def crash(self, transport: Transport) -> None:
        http = transport.http if isinstance(transport, HttpMqttTransport) else transport
        assert isinstance(http, HttpTransport)
        proxy = self.proxies[self.ports.index(http.port)]
        await proxy.refuse()
        proxy.cut()

    async def stop_proxies(self) -> None:
        for proxy in self.proxies:
            await proxy.__aexit__(None, None, None)


CASES_WITH_CRASHES = {"a_crash_is_seen_and_fails_its_calls", "idempotent_requests_move_to_another_instance"}


@pytest.fixture
async def peers(case: str) -> AsyncGenerator[ProxiedPeers, None]:
    created = ProxiedPeers(NAMES)
    if case in CASES_WITH_CRASHES:  # the others need a free port to refuse connections, which a proxy does not
        await created.start_proxies()
    yield created
    await created.stop_proxies()


@pytest.mark.parametrize("case", Kit.cases())
async def test_http_conforms(peers: ProxiedPeers, case: str) -> None:
    await Kit(lambda: HttpTransport(peers.settings()), peers.crash).run(case)


@pytest.mark.parametrize("case", Kit.cases())
async def test_http_with_signals_over_mqtt_conforms(peers: ProxiedPeers, tmp_path: Path, case: str) -> None:
    async with Broker(tmp_path) as broker:

        def transport() -> Transport:
            return HttpMqttTransport(HttpTransport(peers.settings()), MqttTransport(MqttSettings(url=broker.url)))

        await Kit(transport, peers.crash).run(case)
