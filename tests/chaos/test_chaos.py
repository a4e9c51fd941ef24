"""The chaos rig: one seed in every run of the tests, and the bugs that the account finds."""

from pathlib import Path

import pytest

from tests.chaos.faults import cut, kill
from tests.chaos.run import run


@pytest.mark.parametrize(("engine", "kind"), [("sqlite", "mqtt"), pytest.param("postgres", "http", marks=pytest.mark.long)])
async def test_nothing_is_lost_twice_or_stuck(tmp_path: Path, engine: str, kind: str) -> None:
    outcome = await run(tmp_path, 1, engine=engine, kind=kind, replicas=2, seconds=10, stories=40)
    assert outcome.account.is_clean, outcome
    assert outcome.rides > 20


@pytest.mark.long
@pytest.mark.parametrize(("bug", "found"), [("acknowledge", "lost"), ("dedup", "twice"), ("cursor", "lost"), ("hint", "stuck")])
async def test_the_account_finds_a_planted_bug(tmp_path: Path, bug: str, found: str) -> None:
    """A rig that finds none of them would say nothing by finding nothing."""
    kinds = () if bug == "hint" else (kill, kill, kill, cut)
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        outcome = await run(
            folder, attempt, engine="sqlite", kind="mqtt", seconds=15, stories=120, bug=bug, kinds=kinds, settles=12
        )
        if getattr(outcome.account, found):
            return
    raise AssertionError(f"nothing is {found}: {outcome}")
