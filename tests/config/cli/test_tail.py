"""`callboard tail`: events since a time, what is selected, and what a terminal shows."""

import asyncio
import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from config.cli import tail
from config.cli.tail import tail_command
from runtime import CallboardError
from tests.config.cli.terminal import Terminal
from tests.system.process import ROOT, Callboard


async def register(running: Callboard, name: str) -> str:
    """Register a user, which auth publishes. Return the user's id."""
    async with httpx.AsyncClient(base_url=running.url) as client:
        new = {"email": f"{name}@example.com", "password": "a long password", "name": name}
        answer = await client.post("/users", json=new)
        assert answer.status_code == 201
        return str(answer.json()["id"])


def shown(following: Callboard) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in following.output.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")
    ]


def users(following: Callboard) -> list[str]:
    return [one["body"]["user_id"] for one in shown(following) if one["name"] == "auth.UserRegistered"]


async def test_events_since_a_time_are_shown_and_then_those_that_follow(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        first = await register(running, "first")
        between = datetime.now(UTC).isoformat()
        second = await register(running, "second")
        port = {"CALLBOARD_GATEWAY__PORT": str(running.port)}
        selected = ("tail", "--json", "--kind", "event")
        async with (
            Callboard(tmp_path, *selected, "auth.*", "--since", "1h", **port) as hour,
            Callboard(tmp_path, *selected, "auth.UserRegistered", "--since", between, **port) as since,
            Callboard(
                tmp_path,
                *selected,
                "--from",
                "auth",
                "--where",
                "role=rider",
                "--since",
                "1h",
                "--where",
                f"user_id={second}",
                **port,
            ) as one_user,
            Callboard(tmp_path, *selected, "--from", "wallet", "--since", "1h", **port) as wallet,
            Callboard(tmp_path, "tail", "--json", "--kind", "signal", "--from", "devices", **port) as signals,
            Terminal(tmp_path, "tail", "auth.*", "--since", "1h", **port) as screen,
        ):
            await hour.until(lambda: users(hour)[-2:] == [first, second], "both events")
            await since.until(lambda: users(since) == [second], "the event since the time")
            for one in (one_user, wallet, signals):
                await one.says("Ctrl-C stops")
            await one_user.until(lambda: users(one_user) == [second], "the event with these values")
            later = [await register(running, name) for name in ("third", "fourth")]
            await since.until(lambda: users(since) == [second, *later], "the later events")
            await hour.until(lambda: users(hour)[-4:] == [first, second, *later], "the later events")
            assert users(one_user) == [second]
            assert hour.output.splitlines()[0].startswith("listening to auth.*, events, since 20")
            first_line = one_user.output.splitlines()[0]
            assert first_line.startswith(
                f"listening to everything, events, from auth, where role=rider, where user_id={second}, since 20"
            )
            assert first_line.endswith(f", at {running.url}; Ctrl-C stops")
            assert {one["from"] for one in shown(wallet)} <= {"wallet"}
            await signals.until(lambda: len(shown(signals)) > 2, "signals")
            assert {(one["kind"], one["from"]) for one in shown(signals)} == {("signal", "devices")}
            await screen.until(lambda: later[-1] in screen.text, "the terminal shows it")
            assert "\x1b[32mevent" in screen.output
            assert "\x1b" not in hour.output
            screen.type("\x03")
            assert await screen.ends() == 0
            assert await hour.ends(signal.SIGINT) == 0


async def test_a_lost_connection_resumes_without_gaps_or_duplicates(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload", "auth", "gateway") as first:
        await first.says("Stop with Ctrl-C")
        port = {"CALLBOARD_GATEWAY__PORT": str(first.port)}
        async with Callboard(tmp_path, "tail", "auth.*", "--json", **port) as following:
            await following.says("Ctrl-C stops")
            before = await register(first, "before")
            await following.until(lambda: users(following) == [before], "the first event")
            following.process.send_signal(signal.SIGSTOP)
            first.process.kill()
            await first.process.wait()
            async with Callboard(tmp_path, "dev", "--no-reload", "auth", "gateway", **port) as second:
                second.url = first.url
                await second.says("Stop with Ctrl-C")
                meanwhile = await register(second, "meanwhile")
                following.process.send_signal(signal.SIGCONT)
                await following.says(meanwhile)
                after = await register(second, "after")
                await following.says(after)
            assert users(following) == [before, meanwhile, after]
            assert following.output.count("listening to auth.*") == 2


async def test_only_messages_are_on_standard_output(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload") as running:
        await running.ready()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "config.cli", "tail", "fleet.Telemetry", "--json", cwd=tmp_path,
            env={**running.environment, "PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline())["name"] == "fleet.Telemetry"
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
        assert errors.decode() == f"listening to fleet.Telemetry, events and signals, at {running.url}; Ctrl-C stops\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "yesterday"], "--since yesterday: expected a duration such as 10m"),
        (["--since", ""], "expected a duration"),
        (["--since", "2026-11-30T08:00:00"], "or an RFC 3339 time such as"),
        (["--since", "1h", "--kind", "signal"], "signals are not retained"),
        (["--since", "1h", "--signals"], "signals are not retained"),
        (["--where", "name"], "--where name: expected FIELD=VALUE"),
    ],
)
def test_what_cannot_be_selected_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(tail_command, arguments)
    assert isinstance(result.exception, CallboardError)
    assert said in str(result.exception)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("id=7", True), ("id=7.0", True), ("id=8", False), ("id=seven", False), ("name=7", True), ("name=\"7\"", False), ("spot.lat=52.5", True),
        ("spot.lon=52.5", False), ("items.1=b", True), ("items.2=b", False), ("locked=true", True), ("locked=1", False), ("none=null", True),
        ("spot={\"lat\":52.5}", True), ("id.x=7", False), ("missing=null", False),
    ],
)  # fmt: skip
def test_a_field_is_compared_by_its_value(condition: str, holds: bool) -> None:
    body = {"id": 7, "name": "7", "spot": {"lat": 52.5}, "items": ["a", "b"], "locked": True, "none": None}
    field, _, text = condition.partition("=")
    assert tail._Condition(tuple(field.split(".")), text).holds(body) is holds


def test_a_new_connection_begins_where_each_publisher_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("config.cli.tail.time.monotonic", lambda: now[0])
    events = tail._Shown("08:00")

    def comes(publisher: str, seq: int, at: str) -> bool:
        return events.is_new({"from": publisher, "seq": seq, "at": at})

    assert events.since == "08:00"
    assert comes("quiet", 1, "08:01")
    now[0] += 100
    assert comes("busy", 7, "09:30")
    assert comes("behind", 3, "09:10")
    assert events.since == "09:10", "the quiet one has nothing to catch up on"
    assert not comes("busy", 7, "09:30")
    assert comes("behind", 4, "09:11")
    assert comes("busy", 2, "09:40"), "it was restored, and counts from a smaller number"
    now[0] += 100
    assert events.since == "09:40"


async def test_a_mistyped_pattern_or_service_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    async with Callboard(tmp_path, "dev", "--no-reload", "auth", "rides", "gateway") as running:
        await running.says("Stop with Ctrl-C")
        async with Callboard(tmp_path, "tail", "ridez.*", "rides.RideEndet", "auth.*", "--from", "ride") as tail:
            await tail.says("Ctrl-C stops")
            assert "nothing called ridez.*: did you mean rides.*?" in tail.output
            assert "nothing called rides.RideEndet: did you mean rides.RideEnded?" in tail.output
            assert "nothing called ride: did you mean rides?" in tail.output
            assert "auth.*:" not in tail.output
            assert await tail.ends(signal.SIGINT) == 0
