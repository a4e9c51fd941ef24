"""Fixtures for the tests of the gateway."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.gateway.environment import TOPOLOGIES, GatewayEnvironment
from tests.system_under_test import IN_PROCESS, System, open_deployment


@pytest.fixture(params=TOPOLOGIES)
async def env(request: pytest.FixtureRequest) -> AsyncGenerator[GatewayEnvironment, None]:
    """A gateway and the probe, on each topology."""
    async with GatewayEnvironment(request.param) as opened:
        yield opened


@pytest.fixture(params=IN_PROCESS)
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[System, None]:
    """The whole system in this process, where tests can make its services publish."""
    async with open_deployment(request.param, tmp_path) as opened:
        yield opened
