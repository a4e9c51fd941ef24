"""Taking turns in `make bench`."""

from pathlib import Path

import pytest

from tests.bench.__main__ import Side, measure


def _side(name: str, folder: Path, *, module: str = "one") -> Side:
    return Side(name, folder, {"local": (module, name)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules that benchmarks could be."""
    (tmp_path / "one.py").write_text('import sys\nprint(\'{"name": "figure", "rate": \' + str(len(sys.argv[1])) + \'}\')\n')
    (tmp_path / "broken.py").write_text("raise SystemExit('a reason')\n")
    return tmp_path


async def test_sides_take_turns_and_the_next_round_reverses_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, failed = await measure([_side("us", folder), _side("them", folder)], ["local"], 2)
    assert failed == []
    assert {side: figures["figure"].values for side, figures in found.items()} == {"us": (2, 2), "them": (4, 4)}
    assert found["us"]["figure"].unit == "per second"
    order = [line.rpartition(", ")[2] for line in capsys.readouterr().err.splitlines()]
    assert order == ["us", "them", "them", "us"]


async def test_a_side_that_fails_is_named_and_the_others_are_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, failed = await measure([_side("us", folder, module="broken"), _side("them", folder)], ["local", "other"], 1)
    assert failed == ["local of us, in round 1"]
    assert found.keys() == {"them"}
    assert "python -m broken us failed with status 1:\na reason" in capsys.readouterr().err
