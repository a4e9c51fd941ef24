"""Fixtures and command line options for all tests."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.postgres import stop_shared
from tests.system_under_test import IN_PROCESS, System, open_deployment, open_system, settings
from tests.topology import TOPOLOGIES, Topology

hypothesis_settings.register_profile("any machine", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")


@pytest.fixture(params=TOPOLOGIES)
async def topology(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Topology, None]:
    """Each topology in turn."""
    created = Topology(request.param, tmp_path)
    try:
        yield created
    finally:
        await created.close()


@pytest.fixture
async def one_node(tmp_path: Path) -> AsyncGenerator[Topology, None]:
    """One node with encoding, for tests whose result does not depend on the topology."""
    created = Topology("one-node-serialized", tmp_path)
    try:
        yield created
    finally:
        await created.close()


@pytest.fixture(params=[*IN_PROCESS, pytest.param("mqtt-processes", marks=pytest.mark.long)])  # its seven processes start slowly
async def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[System, None]:
    """The whole system behind its gateway, in each deployment in turn."""
    async with open_deployment(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["serialized", "zero-copy"])
async def system(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[System, None]:
    """The whole system behind its gateway, on one node, with and without encoding."""
    async with open_system(settings(tmp_path, zero_copy=request.param)) as opened:
        yield opened


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=10, help="how many times the system is killed while riders use it")
    parser.addoption(
        "--containers", action="store_true", help="also run the tests that need a container engine (make test-containers)"
    )
    parser.addoption("--locks", action="store_true", help="also resolve the lock files, which takes minutes (make test-locks)")
    parser.addoption("--clients", action="store_true", help="also run the clients in the documentation (make clients)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    option = {
        "containers": "--containers",
        "test_locks.py": "--locks",
        "generators": "--clients",
        "test_clients.py": "--clients",
    }.get(collection_path.name)
    return True if option is not None and not config.getoption(option) else None


def pytest_sessionfinish() -> None:
    stop_shared()
