"""The one way into a handler: the same outcomes through every entrance."""

import asyncio
from pathlib import Path

import pytest

from runtime import (
    DeadlineExceeded,
    HandlerAborted,
    InternalError,
    ServiceError,
)
from runtime.testing import eventually
from tests.runtime.execution.entrances import (
    CALLED,
    UNATTENDED,
    Act,
    Declined,
    Done,
    cancel_own_task,
    close_itself,
    decline,
    fail,
    fail_in_a_group,
    fail_strangely,
    hang,
    leave,
    opened,
    reply_wrongly,
    stray_cancellation,
)


@pytest.mark.parametrize("kind", CALLED)
async def test_the_caller_receives_the_reply(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as entrance:
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("kind", CALLED)
async def test_a_service_error_is_the_answer(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, decline) as entrance:
        with pytest.raises(ServiceError) as raised:
            await entrance.send()
        assert (raised.value.code, raised.value.status) == ("declined", 409)
        if not kind.startswith("gateway"):
            assert raised.value == Declined("no")
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("act", [fail, stray_cancellation, fail_in_a_group, fail_strangely])
@pytest.mark.parametrize("kind", CALLED)
async def test_any_other_error_is_an_incident(kind: str, act: Act, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, act) as entrance:
        with pytest.raises(InternalError):
            await entrance.send()
        assert entrance.node.metrics.value("incidents_total", service="probe") == 1
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("act", [cancel_own_task, close_itself])
@pytest.mark.parametrize("kind", ["network", "gateway remote"])
async def test_a_handler_that_ends_its_own_task_is_an_incident(kind: str, act: Act, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, act) as entrance:
        with pytest.raises(InternalError):
            await entrance.send()
        assert entrance.node.metrics.value("incidents_total", service="probe") == 1
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("act", [cancel_own_task, close_itself])
@pytest.mark.parametrize("kind", ["signal", "event", "timer"])
async def test_a_handler_that_ends_its_own_task_ends_no_loop(kind: str, act: Act, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, act) as entrance:
        await entrance.send()
        await eventually(lambda: not entrance.script.acts, "the first message is handled")

        async def another_succeeds() -> bool:
            await entrance.send()
            return entrance.script.succeeded >= 2

        await eventually(another_succeeds, "the next ones are handled, too")
        counter = {"signal": "signals_failed_total", "event": "dead_letters_total"}.get(kind, "instance_restarts_total")
        labels = {"service": "probe", "publisher": "source"} if kind == "event" else {"service": "probe"}
        await eventually(lambda: entrance.node.metrics.value(counter, **labels) == 1, "the failure is counted once")


@pytest.mark.parametrize("act", [decline, fail, stray_cancellation, fail_in_a_group, fail_strangely])
@pytest.mark.parametrize("kind", UNATTENDED)
async def test_without_a_caller_the_next_message_is_handled_after_a_failure(kind: str, act: Act, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, act) as entrance:
        await entrance.send()
        await eventually(lambda: not entrance.script.acts, "the first message is handled")
        await entrance.send()
        await eventually(lambda: entrance.script.succeeded, "the next one is handled, too")
        counter = {"signal": "signals_failed_total", "event": "dead_letters_total"}.get(kind, "instance_restarts_total")
        labels = {"service": "probe", "publisher": "source"} if kind == "event" else {"service": "probe"}
        await eventually(lambda: entrance.node.metrics.value(counter, **labels) == 1, "the failure is counted once")


@pytest.mark.parametrize("kind", CALLED)
async def test_system_exit_is_an_incident_and_then_stops_the_node(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, leave) as entrance:
        with pytest.raises(InternalError):
            await entrance.send()
        with pytest.raises(HandlerAborted, match=r"SystemExit\(3\)"):
            await entrance.node.wait()
    assert entrance.script.stopped == 1


@pytest.mark.parametrize("kind", ["signal", "event", "timer"])
async def test_system_exit_without_a_caller_stops_the_node_in_an_orderly_way(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, leave) as entrance:
        await entrance.send()
        async with asyncio.timeout(10):
            with pytest.raises(HandlerAborted, match=r"SystemExit\(3\)"):
                await entrance.node.wait()
    assert entrance.script.stopped == 1


async def test_system_exit_in_on_start_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(HandlerAborted, match=r"SystemExit\(3\)"):
        async with opened("on_start", tmp_path, leave):
            pass


@pytest.mark.parametrize("kind", CALLED)
async def test_a_reply_of_the_wrong_class_is_an_incident(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(kind, tmp_path, reply_wrongly) as entrance:
        with pytest.raises(InternalError):
            await entrance.send()
    assert "returned 'a string', expected Done" in caplog.text


@pytest.mark.parametrize("kind", CALLED)
async def test_a_handler_is_cancelled_at_its_deadline(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang) as entrance:
        with pytest.raises(DeadlineExceeded):
            await entrance.send(timeout=0.05)
        await eventually(lambda: entrance.script.cancelled == 1, "the handler was cancelled")
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await entrance.send() == Done("ok")


@pytest.mark.parametrize("kind", ["signal", "event"])
async def test_a_handler_without_a_caller_has_a_time_limit(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang, request_timeout=0.5) as entrance:
        await entrance.send()
        await eventually(lambda: entrance.script.cancelled == 1, "the handler was cancelled")
        await entrance.send()
        await eventually(lambda: entrance.script.succeeded >= 1, "the next message is handled")
        dead = entrance.node.metrics.value("dead_letters_total", service="probe", publisher="source")
        assert dead == 0, "a deadline does not count as an attempt at an event"


@pytest.mark.parametrize("kind", CALLED)
async def test_a_caller_that_leaves_cancels_the_handler(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, hang) as entrance:
        task = asyncio.create_task(entrance.send())
        await eventually(lambda: entrance.script.begun == 1, "the handler runs")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: entrance.script.cancelled == 1, "the handler was cancelled")
        assert await entrance.send() == Done("ok")
