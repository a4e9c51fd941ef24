"""What a running node warns about."""

import logging
from pathlib import Path

import pytest

from config import compose
from config.users import warn_if_hashing_is_weak
from services.auth.service import AuthSettings
from tests.project import rental
from tests.system_under_test import settings


async def test_a_weak_cost_of_hashing_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with compose.node(settings(tmp_path), ["auth"]) as node:
        warn_if_hashing_is_weak(node)
        assert "auth.hashing is so cheap" in caplog.text
    caplog.clear()
    async with compose.node(rental({"auth": AuthSettings()}, database=settings(tmp_path).database), ["auth"]) as node:
        warn_if_hashing_is_weak(node)
        assert not caplog.text
