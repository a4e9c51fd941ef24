"""The MQTT transport conforms, on a real mosquitto and on a real ejabberd, which has no shared subscriptions."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from runtime import Transport
from runtime.testing import Kit
from tests.broker import Broker
from tests.ejabberd import Ejabberd, needs_ejabberd
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncGenerator[Broker, None]:
    async with Broker(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def ejabberd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ejabberd]:
    """An ejabberd for all cases: it takes seconds to start."""
    with asyncio.Runner() as runner:
        started = Ejabberd(tmp_path_factory.mktemp("ejabberd"))
        runner.run(started.__aenter__())
        yield started
        runner.run(started.stop())


async def crash(transport: Transport) -> None:
    assert isinstance(transport, MqttTransport)
    transport.crash()


@pytest.mark.parametrize("case", Kit.cases())
async def test_mqtt_conforms(broker: Broker, case: str) -> None:
    await Kit(lambda: MqttTransport(MqttSettings(url=broker.url)), crash).run(case)


@needs_ejabberd
@pytest.mark.parametrize("case", Kit.cases())
async def test_mqtt_conforms_on_ejabberd(ejabberd: Ejabberd, case: str) -> None:
    settings = ejabberd.settings(namespace=case)
    await Kit(lambda: MqttTransport(settings), crash).run(case)
