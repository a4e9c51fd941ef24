"""The cost of hashing passwords."""

import pytest

from services.auth.passwords import HashSettings


@pytest.mark.parametrize(
    ("memory_kib", "iterations", "weak"),
    [
        (64 * 1024, 3, False), (47_104, 1, False), (19_456, 2, False), (12_288, 3, False), (9_216, 4, False), (7_168, 5, False),
        (64, 1, True), (64, 1000, True), (19_456, 1, True), (7_168, 4, True),
    ],
)  # fmt: skip
def test_a_cost_below_all_recommendations_is_weak(memory_kib: int, iterations: int, weak: bool) -> None:
    assert HashSettings(memory_kib, iterations).weak == weak
    assert not HashSettings().weak
