"""What several rounds of a measurement say: the median, and how far the rounds spread around it."""

import statistics
from collections.abc import Sequence

from runtime import Struct


class Spread(Struct):
    """A measurement of several rounds.

    Attributes:
        deviation: the median distance of a round from the median, as a share of the median.
    """

    median: float
    low: float
    high: float
    deviation: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value, with four significant digits."""
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values) / median if median else 0.0
    return Spread(_short(median), _short(min(values)), _short(max(values)), _short(deviation), len(values))


def ratios(ours: Sequence[float], others: Sequence[float]) -> Spread:
    """Return the spread of the ratios of two measurements whose rounds alternated."""
    return spread([one / other for one, other in zip(ours, others, strict=True)])


def _short(value: float) -> float:
    return float(f"{value:.4g}")
