"""docs/performance.json: what `make bench` has measured, and the ratios that `make bench-check` compares with."""

from pathlib import Path
from typing import Self

import msgspec

from runtime import Struct
from tests.bench.machine import Machine
from tests.bench.samples import Spread

FILE = Path(__file__).parent.parent.parent / "docs" / "performance.json"


class Measured(Struct):
    """A figure of one side of a comparison.

    Attributes:
        values: the value of each round.
    """

    unit: str
    spread: Spread
    values: tuple[float, ...]


class Results(Struct):
    """What the file contains.

    Attributes:
        machine: where `figures` were measured.
        figures: by the side (`ours`, `before`, or the name of a peer) and the name of the figure.
        ceilings: the ratios of our CPU time to Python's own ceilings.
    """

    machine: Machine | None = None
    figures: dict[str, dict[str, Measured]] = {}
    ceilings: dict[str, Spread] = {}

    @classmethod
    def load(cls, file: Path = FILE) -> Self:
        """Return what the file contains, or nothing if there is no file."""
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()

    def save(self, file: Path = FILE) -> None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
