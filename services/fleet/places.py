"""Where things are: bands of latitude, which an ordinary index can search, and the boxes around a point.

A band is 0.005 degrees of latitude high, about 556 m. An index on (band, longitude) finds what lies in a box by one
short walk for each band that the box touches, in any SQL database.
"""

import math
from collections.abc import Iterator

from runtime import Struct

METRES_PER_DEGREE = 111_195.0
"""Of latitude, on a sphere of 6,371 km."""

_BANDS_PER_DEGREE = 200


class Box(Struct):
    """An area to search, and the point in it that distances count from. Where the point lies beyond the date line, `lon` does too."""

    lat: float
    lon: float
    south: float
    north: float
    west: float
    east: float
    narrowing: float
    """How much shorter a degree of longitude is than one of latitude."""

    @property
    def bands(self) -> tuple[int, int]:
        """The first and the last band that the box touches."""
        return band(self.south), band(self.north)


def band(lat: float) -> int:
    """The band that a latitude lies in."""
    return math.floor(lat * _BANDS_PER_DEGREE)


def boxes(lat: float, lon: float, radius_m: float) -> Iterator[Box]:
    """The box around a circle; two where it lies across the date line. Within some kilometres of a pole distances are rough."""
    high = radius_m / METRES_PER_DEGREE
    south, north = max(lat - high, -90.0), min(lat + high, 90.0)
    narrowing = math.cos(math.radians(max(abs(south), abs(north))))
    wide = 180.0 if abs(lat) + high >= 90 else min(high / narrowing, 180.0)  # a circle around a pole has all longitudes
    for centre in (lon, lon - 360, lon + 360):
        west, east = max(centre - wide, -180.0), min(centre + wide, 180.0)
        if west <= east:
            yield Box(lat, centre, south, north, west, east, math.cos(math.radians(lat)))
