"""The image, built once."""

import asyncio

import pytest

from tests.containers.engine import build


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    """The image of the work tree."""
    asyncio.run(build())
