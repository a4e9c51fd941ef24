"""A process that runs out of file descriptors says so, and measures how many it has."""

import os
import resource
from collections.abc import Generator

import pytest

from runtime import Node
from runtime.node import descriptors
from runtime.testing import eventually
from transports.memory import MemoryTransport


@pytest.fixture
def few_descriptors() -> Generator[int, None, None]:
    """Lower the limit of this process, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = descriptors.in_use() + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        yield few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_process_without_a_free_descriptor_says_so_once(
    few_descriptors: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "_LOOK", 0.005)
    caplog.set_level("INFO")
    async with Node([], MemoryTransport()) as node:
        before = node.metrics.value("process_open_fds")
        assert 0 < before < few_descriptors
        opened: list[int] = []
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                opened.append(os.dup(2))
        try:
            await eventually(lambda: "file descriptors are in use: no connection" in caplog.text, "it is logged")
            assert node.metrics.value("process_open_fds") == few_descriptors
            assert node.metrics.value("process_max_fds") == few_descriptors
            os.close(opened.pop())
            await eventually(lambda: f"of {few_descriptors} file descriptors are in use: raise" in caplog.text, "one is free")
        finally:
            for one in opened:
                os.close(one)
        await eventually(lambda: "there are enough file descriptors again" in caplog.text, "the shortage has ended")
        assert abs(node.metrics.value("process_open_fds") - before) <= 1
    assert caplog.text.count("no connection and no file can be opened") == 1
