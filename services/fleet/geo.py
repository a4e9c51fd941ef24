"""Search areas: bands of latitude, which an ordinary index can search, and the bounding boxes of a circle.

A band is 0.005 degrees of latitude high, about 556 m. An index on (band, longitude) finds everything in a box with one
short range scan for each band that the box touches, in any SQL database.

Migration 0001 refers to this module by its earlier name, `places.py`. A migration cannot be edited once it is applied.
"""

import math
from collections.abc import Iterator

from runtime import Struct
from services.fleet.messages import METRES_PER_DEGREE

_BANDS_PER_DEGREE = 200


class Box(Struct):
    """An area to search, and the point from which distances are measured.

    If the point lies beyond the date line as seen from the box, `lon` is outside -180 to 180 degrees, so that differences
    of longitude stay correct.
    """

    lat: float
    lon: float
    south: float
    north: float
    west: float
    east: float
    lon_scale: float
    """The length of a degree of longitude, relative to one of latitude."""

    @property
    def bands(self) -> tuple[int, int]:
        """The first and the last band that the box touches."""
        return band(self.south), band(self.north)


def band(lat: float) -> int:
    """Return the band that contains a latitude."""
    return math.floor(lat * _BANDS_PER_DEGREE)


def bounding_boxes(lat: float, lon: float, radius_m: float) -> Iterator[Box]:
    """Yield the bounding box of a circle, or two boxes if the circle crosses the date line.

    Within some kilometres of a pole, distances are approximate.

    Args:
        lat: the latitude of the centre, in degrees.
        lon: the longitude of the centre, in degrees.
        radius_m: the radius, in metres.
    """
    half_height = radius_m / METRES_PER_DEGREE
    south, north = max(lat - half_height, -90.0), min(lat + half_height, 90.0)
    smallest_scale = math.cos(math.radians(max(abs(south), abs(north))))
    contains_pole = abs(lat) + half_height >= 90  # then the circle has points at every longitude
    half_width = 180.0 if contains_pole else min(half_height / smallest_scale, 180.0)
    for centre in (lon, lon - 360, lon + 360):
        west, east = max(centre - half_width, -180.0), min(centre + half_width, 180.0)
        if west <= east:
            yield Box(lat, centre, south, north, west, east, math.cos(math.radians(lat)))
