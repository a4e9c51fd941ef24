"""What the commands share."""

import gc
import platform
from collections.abc import Generator
from pathlib import Path

import pytest

from config.cli.common import run_loop
from tests.config.test_signals import run_script


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
    loaded = gc.get_objects()  # which keeps them, so that none goes away meanwhile
    threshold, frozen = run_loop(_seen())
    assert threshold == 20_000
    assert frozen >= len(loaded)


_LARGE_MESSAGES = """
import resource
from config.cli.common import run_loop
from tests.config.test_signals import run_script

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

async def work():
    count = []
    for _ in range(20):
        before = pages()
        text = b"x" * 1_000_000
        texts = text.decode(), text + text
        del text, texts
        count.append(pages() - before)
    print(min(count))

run_loop(work())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library returns the memory at once")
def test_the_memory_of_large_messages_is_used_again(tmp_path: Path) -> None:
    status, printed = run_script(tmp_path, _LARGE_MESSAGES)
    assert (status, int(printed) < 50) == (0, True), printed
