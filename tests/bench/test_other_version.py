"""Measuring another checkout."""

from pathlib import Path

import pytest

from runtime import CallboardError
from tests.bench.other_version import other_version


def test_the_packages_are_the_other_ones_and_the_benchmarks_are_ours(tmp_path: Path) -> None:
    for package in ("runtime", "transports", "gateway", "services", "config", "config/cli", "config/cli/bench"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("theirs = True\n")
    here = Path(__file__).parent.parent.parent
    with other_version(tmp_path) as folder:
        for package in ("runtime", "transports", "gateway", "services", "config", "config/cli"):
            assert (folder / package / "__init__.py").read_text() == "theirs = True\n"
        for ours in ("config/cli/bench/measured.py", "tests/bench/wide.py"):
            assert (folder / ours).resolve() == here / ours
    assert not folder.exists()


def test_a_folder_without_callboard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallboardError, match="is not a checkout of Callboard"), other_version(tmp_path):
        pass
