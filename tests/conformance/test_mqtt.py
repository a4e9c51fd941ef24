"""The MQTT transport conforms, on a real mosquitto."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from runtime import Transport
from runtime.testing import Kit
from tests.broker import Broker
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncGenerator[Broker, None]:
    async with Broker(tmp_path) as started:
        yield started


async def crash(transport: Transport) -> None:
    assert isinstance(transport, MqttTransport)
    transport.crash()


@pytest.mark.parametrize("case", Kit.cases())
async def test_mqtt_conforms(broker: Broker, case: str) -> None:
    await Kit(lambda: MqttTransport(MqttSettings(url=broker.url)), crash).run(case)
