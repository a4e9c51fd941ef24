"""`callboard publish`: signals from outside, and why there are no events."""

import json
import signal
from pathlib import Path

import pytest

from tests.config.cli.test_candidates import offered
from tests.config.cli.test_tail import shown
from tests.system.process import Callboard, command
from tests.system_under_test import callboard_up

REPORT = {"scooter_id": "a-scooter/1", "lat": 52.5, "lon": 13.4, "battery": 80, "locked": True}


@pytest.mark.long  # that of dev is in the shorter run
async def test_a_signal_is_published_in_a_system_that_up_runs(tmp_path: Path) -> None:
    async with callboard_up(tmp_path) as system:
        assert system.process is not None
        port = {"CALLBOARD_GATEWAY__PORT": str(system.process.port)}
        async with Callboard(
            tmp_path, "tail", "fleet.*", "--kind", "signal", "--where", "scooter_id=a-scooter/1", "--json", **port
        ) as tail:
            await tail.says("Ctrl-C stops")
            status, output = await command(tmp_path, "publish", "fleet.Telemetry", json.dumps(REPORT))
            assert (status, output) == (0, "fleet.Telemetry was published.\n")
            await tail.until(lambda: len(shown(tail)) == 1, "the signal")
            status, output = await command(tmp_path, "publish", "lock", "scooter_id=a-scooter/1", "--json")
            assert (status, json.loads(output)) == (0, {"name": "fleet.Lock", "body": {"scooter_id": "a-scooter/1"}})
            await tail.until(lambda: len(shown(tail)) == 2, "the other signal")
            assert [(one["name"], one["from"], one["body"]) for one in shown(tail)] == [
                ("fleet.Telemetry", "fleet", REPORT),
                ("fleet.Lock", "fleet", {"scooter_id": "a-scooter/1"}),
            ]
            assert await tail.ends(signal.SIGINT) == 0


async def test_a_signal_is_published_in_a_system_that_dev_runs(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload", "auth", "fleet", "gateway") as running:
        await running.says("Stop with Ctrl-C")
        async with Callboard(tmp_path, "tail", "--signals", "--where", "scooter_id=s1", "--json") as tail:
            await tail.says("Ctrl-C stops")
            assert await command(tmp_path, "publish", "fleet.Lock", "scooter_id=s1") == (0, "fleet.Lock was published.\n")
            await tail.until(lambda: len(shown(tail)) == 1, "the signal")
            assert (shown(tail)[0]["name"], shown(tail)[0]["from"]) == ("fleet.Lock", "fleet")
            assert await tail.ends(signal.SIGINT) == 0
        status, output = await command(tmp_path, "publish", "notices.Noticed", "user_id=u1")
        assert (status, output.count("\n")) == (2, 1), "that service does not run"
        assert "No service 'notices' on this node" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("rides.RideEnded", "rides.RideEnded is an event: only a transaction of rides publishes it"),
        ("wallet.TopUp", "wallet.TopUp is a request: `callboard call wallet.TopUp` makes it"),
        ("fleet.Telemetri", "there is no signal fleet.Telemetri: did you mean fleet.Telemetry?"),
        ("fleet.Lock scoter_id=1", "fleet.Lock has no field scoter_id: it takes scooter_id"),
        ("fleet.Lock", "fleet.Lock: /"),
        ("fleet.Lock scooter_id=s1", "no system runs in this folder: start `callboard dev` or `callboard up` here"),
    ],
)
async def test_what_cannot_be_published_is_one_line(arguments: str, said: str, tmp_path: Path) -> None:
    status, output = await command(tmp_path, "publish", *arguments.split())
    assert (status, output.count("\n")) == (2, 1), output
    assert said in output


async def test_signals_and_their_fields_are_completed(tmp_path: Path) -> None:
    assert await offered(tmp_path, "callboard publish fleet.Tel") == ["fleet.Telemetry"]
    assert await offered(tmp_path, "callboard publish fleet.Telemetry lat=5 l") == ["lon=", "locked="]
