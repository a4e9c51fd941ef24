"""The container image, built once per test run."""

import asyncio

import pytest

from config.provision import provision
from tests.containers.engine import ROOT, build
from tests.project import RENTAL


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    """Build the image from the work tree, next to secrets that must not get into it."""
    provision(ROOT / "containers" / "secrets", RENTAL)
    asyncio.run(build())
