"""What a running node warns about."""

import logging
from pathlib import Path

import pytest

from config import compose
from config.settings import Settings
from tests.system_under_test import settings


async def test_a_weak_cost_of_hashing_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    chosen = settings(tmp_path)
    async with compose.node(chosen, ["auth"]) as node:
        compose.warn_if_hashing_is_weak(node, chosen)
        assert "auth.hashing is so cheap" in caplog.text
        caplog.clear()
        compose.warn_if_hashing_is_weak(node, Settings())
        assert not caplog.text
