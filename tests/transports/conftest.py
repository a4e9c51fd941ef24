"""A real broker for the tests of the MQTT transport."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.broker import Broker


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncGenerator[Broker, None]:
    async with Broker(tmp_path) as started:
        yield started
