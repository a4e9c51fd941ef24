"""The parts of docs/performance.md that `make bench` and `make bench-check ARGS=--write` fill, and the chart beside it."""

from collections.abc import Iterable, Sequence

from tests.bench import latency, table
from tests.bench.chart import Bar, svg
from tests.bench.results import FILE, Results
from tests.bench.table import Line, Row

PAGE = FILE.with_suffix(".md")
CHART = FILE.with_suffix(".svg")
_TITLE = "Callboard compared with others, and with its version before (1 is equal, further right is better)"
_UNMEASURED = "Not measured yet."
_SIDES = {table.BEFORE: "before", table.OURS: ""}


def publish(results: Results) -> None:
    """Write the results into docs/performance.json, and what follows from them into the page and its chart."""
    results.save()
    CHART.write_text(chart(results), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


def filled(text: str, results: Results) -> str:
    """Return the text of the page with the text between the two markers of each block replaced."""
    blocks = {
        "machine": _machine(results),
        "table": _table(results),
        "latency": _latency(results),
        "ceilings": _ceilings(results),
        "rest": _rest(results),
    }
    for name, block in blocks.items():
        begin, end = f"<!-- bench {name}: begin -->", f"<!-- bench {name}: end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{PAGE.name} needs the lines {begin} and {end}, between which the results are written")
        text = f"{before}{begin}\n\n{block}\n\n{end}{after}"
    return text


def chart(results: Results) -> str:
    """Return the chart of all rows that have a ratio."""
    rows = [(line.row, line.advantage) for line in table.lines(results)]
    bars = [Bar(_label(row), advantage) for row, advantage in rows if advantage is not None]
    return svg(_TITLE, bars)


def _label(row: Row) -> str:
    side = _SIDES.get(row.side, row.side)
    return f"{row.scenario} : {side}" if side else row.scenario


def number(value: float | None, unit: str = "") -> str:
    """Return a value with three significant digits or all digits before the point, and a short unit."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return text + {"per second": "/s", "µs per request": " µs", "MB per second": " MB/s", "MiB resident": " MiB"}.get(unit, "")


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    found = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in found) if len(found) > 2 else _UNMEASURED


def cells(line: Line) -> list[str]:
    """Return the cells of a row: scenario, ours, the other side, the ratio with its noise, and the target."""
    row, ratio = line.row, line.ratio
    target = "" if row.target is None else f"{'at most' if row.less else 'at least'} {row.target:g}"
    if line.reached is False:
        target += ", missed"
    noise = "–" if ratio is None else f"**{ratio.median:.2f}** ({ratio.low:.2f}–{ratio.high:.2f}, ± {ratio.deviation:.0%})"
    other = f"{number(line.other, line.unit)} {_SIDES.get(row.side, row.side)}".rstrip()
    return [row.scenario, number(line.ours, line.unit), other, noise, target]


def _table(results: Results) -> str:
    head = ("", "ours", "compared with", "ratio (range over the rounds, ± median deviation)", "target")
    return text_table(head, [cells(line) for line in table.lines(results)])


def _machine(results: Results) -> str:
    machine = results.machine
    if machine is None:
        return _UNMEASURED
    rounds = max((len(one.values) for side in results.figures.values() for one in side.values()), default=0)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))
    return (
        f"{machine.cores} cores ({machine.processor}), {machine.system}, Python {machine.python}, {versions}. "
        f"Medians of {rounds} rounds. Load before the run: {machine.load}; at its end: {machine.load_after}."
    )


def _latency(results: Results) -> str:
    """Return a row for each side and each share of its capacity, with the medians over the rounds."""
    rows: list[Sequence[str]] = []
    for side, figures in results.figures.items():
        if "latency_capacity" in figures:
            values = {name: one.spread.median for name, one in figures.items()}
            for share in latency.SHARES:
                rate = number(values["latency_capacity"] * share / 100, "per second")
                quantiles = [f"{number(values[f'latency_{share}_{name}'])} ms" for name in latency.QUANTILES]
                rows.append((side, f"{share} %: {rate}", *quantiles, f"{values[f'latency_{share}_generator']:.0f} %"))
    return text_table(("", "of the capacity", "p50", "p99", "p99.9", "the generator's share of a core"), rows)


def _ceilings(results: Results) -> str:
    rows = [
        (name, f"{ratio.median:.3g}", f"{ratio.low:.3g}–{ratio.high:.3g}", f"± {ratio.deviation:.0%}")
        for name, ratio in results.ceilings.items()
    ]
    return text_table(("ours : ceiling", "ratio of CPU times", "range over the rounds", "median deviation"), rows)


def _rest(results: Results) -> str:
    """Return the figures of ours that no row compares."""
    shown = {name for row in table.ROWS for name in (row.figure, row.other if row.side == table.OURS else row.figure)}
    rows = [
        (f"`{name}`", number(one.spread.median), one.unit, f"± {one.spread.deviation:.0%}")
        for name, one in results.figures.get(table.OURS, {}).items()
        if name not in shown and not name.startswith("latency_")
    ]
    return text_table(("figure", "ours", "unit", "median deviation"), rows)


def printed(rows: Iterable[Line]) -> str:
    """Return the table for a terminal."""
    found = [[cell.replace("**", "") for cell in cells(line)] for line in rows if line.ours is not None]
    lines = [["", "ours", "compared with", "ratio (range, ± deviation)", "target"], *found]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
