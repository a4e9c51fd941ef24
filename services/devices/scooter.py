"""A simulated scooter: it moves and drains while it is unlocked, and reports now and then. No clock, no network: steps in, telemetry out."""

import math

from runtime import Random
from services.fleet.messages import Telemetry

METRES_PER_DEGREE = 111_195.0
_METRES_PER_SECOND = 5.0
_PERCENT_PER_SECOND = 0.02
_SWAP_BELOW = 20.0
"""A parked scooter with less gets a new battery."""
_REPORTS = {True: 15.0, False: 2.0}
"""Seconds between two reports: locked, and under way."""


class Scooter:
    """One scooter on the street."""

    def __init__(self, scooter_id: str, lat: float, lon: float, battery: float, *, locked: bool) -> None:
        self.id = scooter_id
        self.lat = lat
        self.lon = lon
        self.battery = battery
        self.locked = locked
        self._heading = 0.0
        self._due = 0.0

    def __repr__(self) -> str:
        return (
            f"<Scooter {self.id} [{'LOCKED' if self.locked else 'UNLOCKED'}] {self.lat:.5f},{self.lon:.5f} {self.battery:.0f}%>"
        )

    def obey(self, *, locked: bool) -> None:
        """Locks or unlocks, and reports that soon."""
        if locked != self.locked:
            self.locked = locked
            self._due = 0.0

    def step(self, seconds: float, random: Random) -> Telemetry | None:
        """Lets time pass; gives a report when one is due."""
        if not self.locked and self.battery > 0:
            self._move(_METRES_PER_SECOND * seconds, random)
            self.battery = max(0.0, self.battery - _PERCENT_PER_SECOND * seconds)
        elif self.locked and self.battery < _SWAP_BELOW:
            self.battery = 100.0
        self._due -= seconds
        if self._due > 0:
            return None
        self._due = random.jitter(_REPORTS[self.locked])
        return Telemetry(self.id, self.lat, self.lon, round(self.battery, 2), self.locked)

    def _move(self, metres: float, random: Random) -> None:
        self._heading += random.random() - 0.5
        self.lat = _within(self.lat + metres * math.cos(self._heading) / METRES_PER_DEGREE, 89.0)
        across = METRES_PER_DEGREE * math.cos(math.radians(self.lat))
        self.lon = _within(self.lon + metres * math.sin(self._heading) / across, 180.0)


def _within(value: float, limit: float) -> float:
    return round(min(max(value, -limit), limit), 6)
