"""Fixtures for the tests of the transports."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.http_peers import HttpPeers
from tests.transports.http.echo import NAMES


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncGenerator[Broker, None]:
    """A real MQTT broker."""
    async with Broker(tmp_path) as started:
        yield started


@pytest.fixture
def http_peers() -> HttpPeers:
    """Settings for HTTP transports that can reach each other."""
    return HttpPeers(NAMES, heartbeat=0.5)
