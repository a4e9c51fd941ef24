"""Medians, spreads, and ratios."""

from tests.bench.samples import Spread, ratios, spread


def test_the_spread_has_the_median_the_range_and_the_deviation() -> None:
    assert spread([1.0, 4.0, 2.0, 2.2, 1.8]) == Spread(2.0, 1.0, 4.0, 0.1, 5)


def test_ratios_pair_the_rounds() -> None:
    """A machine that becomes slower for a round changes both sides of that round, and not their ratio."""
    assert ratios([100, 50, 200], [50, 25, 100]) == Spread(2.0, 2.0, 2.0, 0.0, 3)
