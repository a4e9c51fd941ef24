"""What the commands share."""

import gc
from collections.abc import Generator

import pytest

from config.cli.common import run_loop


@pytest.fixture
def collection() -> Generator[None, None, None]:
    """Restore garbage collection as it was."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


async def _seen() -> tuple[int, int]:
    return gc.get_threshold()[0], gc.get_freeze_count()


@pytest.mark.usefixtures("collection")
def test_a_command_collects_garbage_seldom_and_not_what_was_loaded_before() -> None:
    loaded = len(gc.get_objects())
    threshold, frozen = run_loop(_seen())
    assert threshold == 20_000
    assert frozen >= loaded
