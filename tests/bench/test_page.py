"""The table, the chart, and the generated parts of docs/performance.md."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import page, table
from tests.bench.chart import Bar, svg
from tests.bench.machine import describe, with_load_after
from tests.bench.results import FILE, Measured, Results
from tests.bench.samples import Spread, spread

_SVG = "{http://www.w3.org/2000/svg}"


def _measured(*values: float, unit: str = "per second") -> Measured:
    return Measured(unit, spread(values), values)


def _results(**figures: dict[str, Measured]) -> Results:
    return Results(figures=figures)


def _line(results: Results, figure: str, side: str) -> table.Line:
    return next(line for line in table.lines(results) if line.row.figure == figure and line.row.side == side)


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    results = _results(ours={"local_c1": _measured(50, 100, 400)}, Moleculer={"local_c1": _measured(100, 200, 400)})
    line = _line(results, "local_c1", table.MOLECULER)
    assert line.ratio == Spread(0.5, 0.5, 1.0, 0.0, 3)
    assert line.reached is True
    assert line.advantage == 0.5


def test_where_less_is_better_the_ratio_may_be_at_most_the_target() -> None:
    cpu = {"cpu_caller_c64": _measured(7, unit="µs per request")}
    line = _line(
        _results(ours=cpu, before={"cpu_caller_c64": _measured(10, unit="µs per request")}), "cpu_caller_c64", table.BEFORE
    )
    assert (line.ratio and line.ratio.median, line.reached) == (0.7, False)
    assert line.advantage == pytest.approx(1 / 0.7)
    assert page.cells(line)[1:] == ["7 µs", "10 µs before", "**0.70** (0.70–0.70, ± 0%)", "at most 0.65, missed"]


def test_a_side_that_was_not_measured_is_a_dash() -> None:
    line = _line(_results(ours={"events": _measured(70_000)}), "events", table.MOLECULER)
    assert page.cells(line)[1:] == ["70,000/s", "– Moleculer", "–", "at least 1.7"]


def test_rows_compare_figures_with_the_same_unit_and_each_pair_once() -> None:
    pairs = [(row.figure, row.side, row.other) for row in table.ROWS]
    assert len(pairs) == len(set(pairs))


def test_the_chart_is_well_formed_and_its_text_is_text() -> None:
    root = ET.fromstring(svg("Ours & others", [Bar("a < b", 2.0), Bar("behind", 0.5), Bar("equal", 1.0)]))
    assert root.tag == f"{_SVG}svg"
    texts = [element.text for element in root.iter(f"{_SVG}text")]
    assert texts == ["Ours & others", "a < b", "2.00", "behind", "0.50", "equal", "1.00"]
    assert root.findtext(f"{_SVG}title") == "Ours & others"
    assert "prefers-color-scheme: dark" in (root.findtext(f"{_SVG}style") or "")


def test_bars_show_the_factor_from_the_line_in_the_middle() -> None:
    root = ET.fromstring(svg("", [Bar("ahead", 2.0), Bar("behind", 0.5)]))
    ahead, behind = root.iter(f"{_SVG}rect")
    line = root.find(f"{_SVG}line")
    assert line is not None
    assert ahead.get("x") == line.get("x1")
    assert float(behind.get("x", 0)) + float(behind.get("width", 0)) == pytest.approx(float(line.get("x1", 0)))
    assert ahead.get("width") == behind.get("width")
    assert (ahead.get("class"), behind.get("class")) == ("better", "worse")


def test_a_chart_without_bars_is_well_formed() -> None:
    assert ET.fromstring(svg("nothing", [])).tag == f"{_SVG}svg"


def test_latencies_are_shown_by_side_and_share() -> None:
    figures = {
        f"latency_{share}_{name}": _measured(share / 10, unit="ms") for share in (30, 60, 80) for name in ("p50", "p99", "p999")
    }
    figures |= {f"latency_{share}_generator": _measured(40.2, unit="% of a core") for share in (30, 60, 80)}
    results = _results(ours={"latency_capacity": _measured(40_000), **figures})
    text = page.filled(page.PAGE.read_text(encoding="utf-8"), results)
    assert "| ours | 30 %: 12,000/s | 3 ms | 3 ms | 3 ms | 40 % |" in text


def test_the_table_for_a_terminal_has_the_measured_rows_in_columns() -> None:
    results = _results(ours={"events": _measured(70_000)}, Moleculer={"events": _measured(35_000)})
    head, row = page.printed(table.lines(results)).splitlines()
    assert row.split("  ")[0] == "signals over MQTT"
    assert row.index("35,000/s Moleculer") == head.index("compared with")
    assert row.split("  ")[-1] == "at least 1.7"


def test_a_full_run_fills_every_row_and_names_the_machine_and_its_load() -> None:
    figures: dict[str, dict[str, Measured]] = {}
    for row in table.ROWS:
        figures.setdefault(table.OURS, {})[row.figure] = _measured(200, 220)
        figures.setdefault(row.side, {})[row.other] = _measured(100, 100)
    figures[table.OURS]["dev_ready"] = _measured(0.61, unit="s until the gateway is ready")
    results = Results(with_load_after(describe()), figures)
    text = page.filled(page.PAGE.read_text(encoding="utf-8"), results)
    shown = text.partition("<!-- bench table: begin -->")[2].partition("<!-- bench table: end -->")[0]
    assert shown.count("\n| ") == len(table.ROWS) + 2
    assert "| – |" not in shown
    assert "| `dev_ready` | 0.61 | s until the gateway is ready | ± 0% |" in text
    assert "Medians of 2 rounds. Load before the run: " in text
    bars = ET.fromstring(page.chart(results)).iter(f"{_SVG}rect")
    assert len(list(bars)) == len(table.ROWS)


def test_a_page_without_the_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the lines <!-- bench machine: begin -->"):
        page.filled("# Performance", Results())


def test_the_page_and_the_chart_match_the_stored_results() -> None:
    results = Results.load()
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, results) == text, "docs/performance.md is out of date: run `make bench-check ARGS=--write`"
    assert page.CHART.read_text(encoding="utf-8") == page.chart(results), "docs/performance.svg is out of date"


def test_the_page_is_the_same_after_the_results_were_stored(tmp_path: Path) -> None:
    results = Results(ceilings={"b": spread([0.2]), "a": spread([0.1])})
    results.save(tmp_path / "stored.json")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, Results.load(tmp_path / "stored.json")) == page.filled(text, results)


def test_the_stored_results_name_neither_the_machine_nor_a_path() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert "/home" not in text
    assert "/tmp" not in text
