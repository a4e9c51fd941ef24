"""The HTTP transport passes the conformance kit, and so does the one that sends signals by MQTT."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime import Transport
from runtime.testing import Kit
from tests.broker import Broker
from tests.http_peers import Square
from tests.transports.proxy import Proxy
from transports.http.transport import HttpTransport
from transports.http_mqtt import HttpMqttTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

NAMES = ("conformance", "asker", "stranger", "apple", "pear", "lonely", "sender")


class ProxiedSquare(Square):
    """Nodes that reach each other through proxies: one that is cut is as one whose process was killed."""

    proxies: list[Proxy] = []

    async def build(self) -> None:
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

    async def end(self) -> None:
        for proxy in self.proxies:
            await proxy.__aexit__(None, None, None)


CRASHES = {"a_crash_is_seen_and_fails_its_calls", "idempotent_requests_move_to_another_instance"}


@pytest.fixture
async def square(case: str) -> AsyncGenerator[ProxiedSquare, None]:
    made = ProxiedSquare(NAMES)
    if case in CRASHES:  # elsewhere a port where nobody listens has to refuse, which a proxy does not
        await made.build()
    yield made
    await made.end()


@pytest.mark.parametrize("case", Kit.cases())
async def test_http(square: ProxiedSquare, case: str) -> None:
    await Kit(lambda: HttpTransport(square.settings()), square.crash).run(case)


@pytest.mark.parametrize("case", Kit.cases())
async def test_http_with_signals_by_mqtt(square: ProxiedSquare, tmp_path: Path, case: str) -> None:
    async with Broker(tmp_path) as broker:

        def transport() -> Transport:
            return HttpMqttTransport(HttpTransport(square.settings()), MqttTransport(MqttSettings(url=broker.url)))

        await Kit(transport, square.crash).run(case)
