"""The clock of a node: what happens to durations, tokens, and ids when somebody sets the machine's clock."""

import itertools
from datetime import timedelta

import pytest

from runtime import Clock, ManualClock, Random

HOUR = timedelta(hours=1)
LEAPS = (HOUR, -2 * HOUR, timedelta(days=365), -timedelta(days=366), timedelta(minutes=1), timedelta(0))
"""Forward and back, with nothing left at the end of each round."""


class LeapingClock(Clock):
    """A clock whose time of day leaps at each reading, forward and back. Its monotonic time moves as told."""

    def __init__(self) -> None:
        self.passed = 0.0
        self._leaps = itertools.cycle(itertools.accumulate(one.total_seconds() for one in LEAPS))

    def monotonic(self) -> float:
        return self.passed

    def timestamp(self) -> float:
        return 1_800_000_000 + self.passed + next(self._leaps)


def test_durations_do_not_see_that_the_clock_was_set() -> None:
    clock = LeapingClock()
    start = clock.steady()
    for seconds in range(100):
        assert clock.steady() == start + seconds
        clock.timestamp()
        clock.passed += 1
    assert clock.steady_now().timestamp() == start + 100


def test_a_manual_clock_tells_time_that_passes_from_a_leap() -> None:
    clock = ManualClock()
    day, steady = clock.timestamp(), clock.steady()
    clock.advance(HOUR)
    assert (clock.timestamp() - day, clock.steady() - steady) == (3600, 3600)
    assert clock.possible() == (clock.timestamp(), clock.timestamp())
    clock.leap(-2 * HOUR)
    assert (clock.timestamp() - day, clock.steady() - steady) == (-3600, 3600)
    clock.advance(-3 * HOUR)
    assert (clock.timestamp() - day, clock.steady() - steady) == (-4 * 3600, 0)


@pytest.mark.parametrize("leap", [HOUR, -HOUR])
def test_the_time_of_day_before_a_leap_is_possible_for_a_quarter_of_an_hour(leap: timedelta) -> None:
    clock = ManualClock()
    before = clock.timestamp()
    assert clock.possible() == (before, before)
    clock.leap(leap)
    for minutes in (0, 10, 5):
        clock.advance(timedelta(minutes=minutes))
        before += minutes * 60
        assert clock.possible() == (min(before, clock.timestamp()), max(before, clock.timestamp()))
    clock.advance(timedelta(minutes=2))
    assert clock.possible() == (clock.timestamp(), clock.timestamp())


@pytest.mark.parametrize("seed", [None, 7])
def test_each_uuid7_is_greater_than_the_one_before_however_the_clock_leaps(seed: int | None) -> None:
    random = Random(LeapingClock(), seed)
    made = [random.uuid7() for _ in range(500)]
    assert made == sorted(set(made))
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
    clock = ManualClock()  # which stands still: a thousand within a millisecond
    random = Random(clock, seed)
    made = [random.uuid7() for _ in range(1000)]
    assert made == sorted(set(made))
    assert {one.int >> 80 for one in made} == {int(clock.timestamp() * 1000)}, "the time is that of the clock"


def test_a_uuid7_whose_random_bits_run_over_takes_the_next_millisecond() -> None:
    clock = ManualClock()
    random = Random(clock)
    first = random.uuid7()
    random._last |= (1 << 74) - 1  # pyright: ignore[reportPrivateUsage]
    second = random.uuid7()
    assert (second > first, second.int >> 80, second.version) == (True, (first.int >> 80) + 1, 7)
