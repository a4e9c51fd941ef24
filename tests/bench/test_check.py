"""The decision of `make bench-check`."""

import re
import sys
from pathlib import Path

import pytest

from tests.bench import check, ratios
from tests.bench.check import better, fallen
from tests.bench.results import Results
from tests.bench.samples import Spread, spread


def test_a_ratio_may_fall_by_less_than_30_percent() -> None:
    stored = {"ours : ceiling": spread([0.5])}
    assert fallen(stored, {"ours : ceiling": spread([0.36])}) == {}
    assert fallen(stored, {"ours : ceiling": spread([0.9])}) == {}


def test_a_ratio_that_fell_by_more_is_reported_with_both_values() -> None:
    found = fallen({"ours : ceiling": spread([0.5])}, {"ours : ceiling": spread([0.34, 0.3, 0.38])})
    assert found.keys() == {"ours : ceiling"}
    assert "fallen from 0.5 to 0.34, by 32%" in found["ours : ceiling"]


def test_a_ratio_of_which_only_one_side_exists_is_reported() -> None:
    found = fallen({"old : ceiling": spread([0.5])}, {"new : ceiling": spread([0.5])})
    assert "no longer measured" in found["old : ceiling"]
    assert "not in the file" in found["new : ceiling"]


def test_the_higher_one_of_two_measurements_counts() -> None:
    first, second = {"a": spread([0.3]), "b": spread([0.5])}, {"a": spread([0.4]), "b": spread([0.2])}
    assert better(first, second) == {"a": spread([0.4]), "b": spread([0.5])}


def test_the_file_has_every_measured_ratio() -> None:
    assert set(Results.load().ceilings) == {name for group in ratios.GROUPS for name in group.names}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the check measure these values of every ratio, one after the other, in relation to the stored ones."""
    factors: list[float] = []
    stored = Results.load().ceilings

    async def measure(groups: tuple[ratios.Group, ...], rounds: int = 1) -> dict[str, Spread]:
        factor = factors.pop(0)
        return {name: spread([stored[name].median * factor]) for group in groups for name in group.names}

    monkeypatch.setattr(ratios, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["check"])
    return factors


def test_the_check_measures_again_before_it_fails(measured: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    measured += [0.5, 0.9]
    check.main()
    assert "measuring again" in capsys.readouterr().out


def test_the_check_fails_if_the_ratios_are_low_twice(measured: list[float]) -> None:
    measured += [0.5, 0.6]
    with pytest.raises(SystemExit, match=re.escape("bench-check: local_c1 : direct_await has fallen")):
        check.main()


def test_no_file_holds_nothing(tmp_path: Path) -> None:
    assert Results.load(tmp_path / "absent.json") == Results()


def test_results_are_stored_and_loaded(tmp_path: Path) -> None:
    results = Results(ceilings={"ours : ceiling": spread([0.25, 0.5])})
    results.save(tmp_path / "stored.json")
    assert Results.load(tmp_path / "stored.json") == results
