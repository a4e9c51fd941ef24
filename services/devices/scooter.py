"""A simulated scooter, which moves and drains its battery while it is unlocked.

It has neither a clock nor a network: the caller advances its time and gets telemetry back.
"""

import math

from runtime import Random
from services.fleet.messages import METRES_PER_DEGREE, Telemetry

_METRES_PER_SECOND = 5.0
_PERCENT_PER_SECOND = 0.02
_MIN_PERCENT = 20.0
"""A locked scooter whose battery is below this gets a new one. In percent."""
_REPORT_INTERVALS = {True: 15.0, False: 2.0}
"""Seconds between two reports, by whether the scooter is locked."""


class Scooter:
    """One simulated scooter.

    Attributes:
        lat: the latitude, in degrees.
        lon: the longitude, in degrees.
        battery: the charge of the battery, in percent.
        locked: whether the scooter is locked. A locked scooter does not move.
    """

    def __init__(self, scooter_id: str, lat: float, lon: float, battery: float, *, locked: bool) -> None:
        self.id = scooter_id
        self.lat = lat
        self.lon = lon
        self.battery = battery
        self.locked = locked
        self._heading = 0.0
        self._report_due = 0.0

    def __repr__(self) -> str:
        return (
            f"<Scooter {self.id} [{'LOCKED' if self.locked else 'UNLOCKED'}] {self.lat:.5f},{self.lon:.5f} {self.battery:.0f}%>"
        )

    def obey(self, *, locked: bool) -> None:
        """Lock or unlock the scooter. A change is reported in the next step."""
        if locked != self.locked:
            self.locked = locked
            self._report_due = 0.0

    def step(self, seconds: float, random: Random) -> Telemetry | None:
        """Advance the time by a number of seconds, and return a report if one is due."""
        if not self.locked and self.battery > 0:
            self._move(_METRES_PER_SECOND * seconds, random)
            self.battery = max(0.0, self.battery - _PERCENT_PER_SECOND * seconds)
        elif self.locked and self.battery < _MIN_PERCENT:
            self.battery = 100.0
        self._report_due -= seconds
        if self._report_due > 0:
            return None
        self._report_due = random.jitter(_REPORT_INTERVALS[self.locked])
        return Telemetry(self.id, self.lat, self.lon, round(self.battery, 2), self.locked)

    def _move(self, metres: float, random: Random) -> None:
        self._heading += random.random() - 0.5
        self.lat = _clamp(self.lat + metres * math.cos(self._heading) / METRES_PER_DEGREE, 89.0)
        metres_per_lon_degree = METRES_PER_DEGREE * math.cos(math.radians(self.lat))
        self.lon = _clamp(self.lon + metres * math.sin(self._heading) / metres_per_lon_degree, 180.0)


def _clamp(value: float, limit: float) -> float:
    return round(min(max(value, -limit), limit), 6)
