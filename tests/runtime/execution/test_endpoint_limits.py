"""The one way into a handler: full mailboxes and stopping nodes, through every entrance."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from runtime import (
    InstanceLost,
    Overloaded,
)
from runtime.testing import eventually
from tests.runtime.execution.entrances import CALLED, Done, Entrance, fail, hang, opened, probe, source


@pytest.mark.parametrize("kind", CALLED)
async def test_a_full_mailbox_answers_overloaded(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang) as entrance:
        running = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "the handler runs")
        with pytest.raises(Overloaded):
            await entrance.send(timeout=1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("kind", ["signal", "event", "timer"])
async def test_a_full_mailbox_without_a_caller(kind: str, tmp_path: Path) -> None:
    """A signal is dropped, an event waits, a tick of a timer is skipped."""
    release = asyncio.Event()

    async def wait() -> Done:
        await release.wait()
        return Done("released")

    async with opened("local serialized", tmp_path, wait) as entrance:
        running = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "a request occupies the mailbox")
        entrance.script.entrance = kind
        other = Entrance(kind, entrance.script, entrance.node, entrance.node.client("test", (probe, source)))
        await other.send()
        metrics = entrance.node.metrics
        if kind == "signal":
            await eventually(lambda: metrics.value("signals_dropped_total", service="probe") == 1, "the signal is dropped")
        elif kind == "event":
            retried = partial(metrics.value, "stream_retries_total", service="probe", publisher="source")
            await eventually(lambda: retried() >= 1, "the event is tried again")
        assert entrance.script.begun == 1
        release.set()
        await running
        if kind == "signal":
            assert entrance.script.begun == 1
        else:
            await eventually(lambda: entrance.script.succeeded >= 2, "the event or a later tick is handled")
            assert metrics.value("instance_restarts_total", service="probe") == 0


@pytest.mark.parametrize("kind", [*CALLED, "signal", "event"])
async def test_a_stop_lets_the_handler_finish(kind: str, tmp_path: Path) -> None:
    release = asyncio.Event()

    async def finish() -> Done:
        await release.wait()
        return Done("finished")

    async with opened(kind, tmp_path, finish) as entrance:
        sending = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "the handler runs")
        stopping = asyncio.create_task(entrance.node.stop())
        await asyncio.sleep(0.02)
        assert not stopping.done()
        release.set()
        if kind in CALLED:
            assert await sending == Done("finished")
        await stopping
        await asyncio.gather(sending, return_exceptions=True)
    assert (entrance.script.succeeded, entrance.script.cancelled, entrance.script.stopped) == (1, 0, 1)


@pytest.mark.parametrize("kind", [*CALLED, "signal", "event", "timer"])
async def test_a_stop_cancels_a_handler_that_does_not_finish(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang, drain_timeout=0.02) as entrance:
        sending = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "the handler runs")
        stopping = asyncio.create_task(entrance.node.stop())
        if kind in ("network", "gateway remote"):
            with pytest.raises(InstanceLost):
                await sending
        elif kind in CALLED:
            sending.cancel()  # the caller is this task's own process, which stops with the node
        async with asyncio.timeout(10):
            await stopping
        await asyncio.gather(sending, return_exceptions=True)
    assert (entrance.script.cancelled, entrance.script.stopped) == (1, 1)


async def test_a_crash_runs_on_stop_once_for_each_start(tmp_path: Path) -> None:
    async with opened("timer", tmp_path, fail) as entrance:
        await eventually(lambda: entrance.script.stopped == 1, "the crashed instance is stopped")
        await eventually(lambda: entrance.script.succeeded, "the next instance runs")
    assert entrance.script.stopped == 2
