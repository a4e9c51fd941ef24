"""What benchmarks print, and how it is read."""

import pytest

from tests.bench.figures import Figure, read, report


def test_a_report_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    report("memory", 70.126, "MiB")
    assert read(capsys.readouterr().out) == [Figure("memory", 70.13, "MiB")]


def test_rates_of_callboard_bench_are_read_and_other_lines_are_skipped() -> None:
    assert read('warning\n{"name":"local_c1","rate":1000}\n\n') == [Figure("local_c1", 1000, "per second")]
