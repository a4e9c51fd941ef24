"""Fixtures for the tests of nodes and supervisors."""

import pytest

from tests.runtime.node.services import LOG


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()
