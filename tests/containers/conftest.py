"""The image, built once."""

import asyncio

import pytest

from config.provision import provision
from config.settings import Settings
from tests.containers.engine import ROOT, build


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    """The image of the work tree, built beside the secrets that must not get into it."""
    provision(ROOT / "containers" / "secrets", Settings())
    asyncio.run(build())
