"""How a benchmark reports what it has measured: one JSON object per line, as `callboard bench --json` does."""

import msgspec

from runtime import Struct


class Figure(Struct):
    """A measured value.

    Attributes:
        name: the name of the measurement. It is unique among all benchmarks.
        value: the value, in `unit`.
        unit: the unit, such as "per second".
    """

    name: str
    value: float
    unit: str


class _Line(Struct):
    """A line of output, as `report` and `callboard bench` print it."""

    name: str
    value: float = 0.0
    unit: str = "per second"
    rate: float | None = None


def report(name: str, value: float, unit: str) -> None:
    """Print a measurement."""
    print(msgspec.json.encode(Figure(name, round(value, 2), unit)).decode(), flush=True)


def read(text: str) -> list[Figure]:
    """Return the figures in the output of a benchmark. Lines that are not JSON objects are skipped."""
    lines = [msgspec.json.decode(line, type=_Line) for line in text.splitlines() if line.startswith("{")]
    return [Figure(line.name, line.value if line.rate is None else line.rate, line.unit) for line in lines]
