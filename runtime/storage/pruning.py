"""Steps of deleting what is old: one long statement would keep every other transaction of the service waiting."""

STEP = 2_000
"""The largest number of rows that one transaction deletes."""
_FEWEST = 50
_LONG = 0.05
"""The seconds that a step may take. After one that has taken longer, the next ones delete fewer rows."""


def next_step(rows: int, seconds: float) -> int:
    """Return how many rows the next step deletes, after one of so many rows has taken so many seconds."""
    return min(max(int(rows * _LONG / max(seconds, 1e-6)), _FEWEST), STEP)
