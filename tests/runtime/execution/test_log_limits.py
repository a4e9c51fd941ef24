"""However many messages fail, and however they came, the log stays short."""

import logging
from functools import partial
from pathlib import Path

import pytest

from runtime import InternalError, Node
from runtime.network import Envelope
from runtime.testing import eventually
from tests.runtime.execution.entrances import CALLED, Entrance, fail, opened

MANY = 200


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log as text: a traceback has many lines."""
    formatter = logging.Formatter()
    return "\n".join(formatter.format(record) for record in caplog.records if record.levelno >= logging.WARNING).splitlines()


def begun(entrance: Entrance, count: int) -> bool:
    return entrance.script.begun == count


@pytest.mark.parametrize("kind", [*CALLED, "signal"])
async def test_a_handler_that_always_fails_is_logged_once_and_then_counted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(kind, tmp_path, *[fail] * MANY) as entrance:
        incidents: set[str] = set()
        for number in range(MANY):
            try:
                await entrance.send()
            except InternalError as error:
                incidents.add(error.incident)
            await eventually(partial(begun, entrance, number + 1), "the message was handled")
        await eventually(lambda: entrance.node.metrics.value("incidents_total", service="probe") == MANY, "each was counted")
        found = lines(caplog)
        assert len(found) < 40
        assert sum("ValueError: a mistake" in line for line in found) == 1
        assert all(incident in "\n".join(found) for incident in incidents), "the log has the details of every incident"
        assert len(incidents) == (kind != "signal")
    assert f"{MANY - 1} more within a minute: incident" in "\n".join(lines(caplog))


def deliver(node: Node, body: bytes, key: str | None = None, caller: str = "test") -> None:
    node.inbound.receive(Envelope("signal", "1", "probe.Ping", body, caller, signal_key=key), "probe")


async def test_a_signal_that_cannot_be_decoded_is_logged_once_per_sender_with_topic_and_first_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened("signal", tmp_path) as entrance:
        for _ in range(MANY):
            deliver(entrance.node, b"\xff\x00" + b"x" * 1_000)
            deliver(entrance.node, b"[]", key="device 7")
        metrics = entrance.node.metrics
        await eventually(lambda: metrics.value("signals_failed_total", service="probe") == 2 * MANY, "each was counted")
        first, second = (record.getMessage() for record in caplog.records)
        assert first.startswith("probe.Ping from test refused: it cannot be decoded: ")
        assert "it came on probe/Ping/- and begins with b'\\xff\\x00xxx" in first
        assert "it came on probe/Ping/device 7 and begins with b'[]'" in second
        assert len(first) < 400


@pytest.mark.parametrize("what", ["stranger", "head"])
async def test_what_is_refused_or_malformed_is_logged_once_per_sender(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened("signal", tmp_path) as entrance:
        for _ in range(MANY):
            if what == "stranger":
                deliver(entrance.node, b"{}", caller="stranger")
            else:
                entrance.node.inbound.receive(Envelope("head", "1", "source.head", b"{", "source"), "probe")
        metric = "signals_refused_total" if what == "stranger" else "hints_malformed_total"
        labels = {"service": "probe"} if what == "stranger" else {}
        await eventually(lambda: entrance.node.metrics.value(metric, **labels) == MANY, "each was counted")
        said = [record.getMessage() for record in caplog.records if record.name != "callboard.security"]
        [line] = said
        assert ("from stranger refused" if what == "stranger" else "a hint about the stream of source cannot be decoded") in line
        assert sum(record.name == "callboard.security" for record in caplog.records) == (10 if what == "stranger" else 0)
