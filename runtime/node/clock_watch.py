"""Reports that the machine's clock was set, once each time, and by how much."""

import asyncio
import logging

from runtime.clock import Clock
from runtime.metrics import Metrics

_INTERVAL = 1.0
"""Seconds between two looks."""
_SET = 1.0
"""Seconds by which the time of day has to leap in order to count as set."""
_BELIEVED = 24 * 3600.0
"""Seconds for which the clock has to show the time that it was set to, until new durations begin from it."""


class ClockWatch:
    """Compares the time of day with the time that has passed, every second until it is stopped.

    Durations do not follow a clock that was set forward, which may be a mistake of a minute. After a day, it is believed.
    So a machine that starts without the right time does not stamp what it stores with a time of 1970 for months.
    """

    def __init__(self, clock: Clock, metrics: Metrics, log: logging.Logger) -> None:
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._ahead = self._difference()
        self._set_at = clock.steady()
        self._lag = metrics.histogram("event_loop_lag_seconds")
        self._begin()

    def _difference(self) -> float:
        self._clock.possible()  # remembers this time of day
        return self._clock.timestamp() - self._clock.steady()

    def look(self) -> None:
        """Log and count it if the clock was set since the last look."""
        ahead = self._difference()
        change = ahead - self._ahead
        if abs(change) >= _SET:
            ahead = self._difference()  # a pause of the process between the two readings looks the same
            change = ahead - self._ahead
        if abs(change) >= _SET:
            self._metrics.count("clock_set_total")
            self._log.warning(
                "the clock was set %s by %.1f s, or the machine slept: timeouts, expiry, and retention still count the time that has passed",
                "forward" if change > 0 else "back", abs(change),
            )  # fmt: skip
            self._ahead, self._set_at = ahead, self._clock.steady()
        elif ahead >= _SET and self._clock.steady() - self._set_at >= _BELIEVED:
            self._clock.adopt()
            self._ahead = self._difference()

    def _begin(self) -> None:
        self._due = self._clock.monotonic() + _INTERVAL
        self._timer: asyncio.TimerHandle = self._clock.loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self._lag.observe(max(self._clock.monotonic() - self._due, 0.0))
        self.look()
        self._begin()

    def stop(self) -> None:
        """Look no more. Calling it twice is harmless."""
        self._timer.cancel()
