"""The contract of the fleet service: scooters, reservations, and the signals between the fleet and the scooters."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from runtime import Contract, Event, Request, ServiceError, Signal, Struct

fleet = Contract("fleet")

METRES_PER_DEGREE = 111_195.0
"""Metres per degree of latitude, on a sphere with a radius of 6,371 km."""

Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]
Percent = Annotated[float, Meta(ge=0, le=100)]


class Scooter(Struct):
    """A scooter as the fleet knows it. `battery` is in percent, and `seen_at` is the time of its last report."""

    id: str
    state: Literal["free", "reserved", "riding", "lost"]
    lat: float
    lon: float
    battery: float
    seen_at: datetime


class Scooters(Struct):
    """A list of scooters, the nearest first."""

    items: tuple[Scooter, ...]


class Reservation(Struct):
    """A scooter that is reserved for a ride. If no ride confirms the reservation by `until`, the scooter becomes free again."""

    id: str
    until: datetime


@fleet.message
class FindScooters(Request[Scooters]):
    """Find the free scooters near a point."""

    lat: Latitude
    lon: Longitude
    radius_m: Annotated[float, Meta(gt=0, le=100_000)] = 1000
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


@fleet.message
class GetScooter(Request[Scooter]):
    """Return a scooter with its position and state."""

    id: str


@fleet.message
class AddScooter(Request[Scooter]):
    """Add a scooter to the fleet."""

    lat: Latitude
    lon: Longitude
    battery: Percent


@fleet.message
class Reserve(Request[Reservation]):
    """Reserve a scooter for a rider."""

    scooter_id: str


@fleet.message
class Free(Request[None]):
    """Cancel a reservation. If it no longer exists or a ride has confirmed it, nothing changes and no error is raised."""

    reservation_id: str


@fleet.message
class ScooterLost(Event):
    """A scooter has not reported for too long. `ride_id` is the ride that was in progress on it, if any."""

    scooter_id: str
    ride_id: str | None = None


@fleet.message
class ReservationLapsed(Event):
    """A ride began with a reservation that was no longer valid, so it does not get the scooter."""

    reservation_id: str
    ride_id: str


@fleet.message(key="scooter_id")
class Telemetry(Signal):
    """A report of a scooter on its position and state."""

    scooter_id: str
    lat: Latitude
    lon: Longitude
    battery: Percent
    locked: bool


@fleet.message(key="scooter_id")
class Unlock(Signal):
    """A command for a scooter to unlock."""

    scooter_id: str


@fleet.message(key="scooter_id")
class Lock(Signal):
    """A command for a scooter to lock, because its ride is over."""

    scooter_id: str


@fleet.message
class StillHearing(Signal):
    """A signal of the fleet to itself. As long as it arrives, signals of scooters can arrive too."""


@fleet.message
class UnknownScooter(ServiceError):
    """There is no such scooter."""

    code, status = "unknown-scooter", 404


@fleet.message
class ScooterTaken(ServiceError):
    """Another rider has this scooter."""

    code, status = "scooter-taken", 409
    scooter_id: str


@fleet.message
class ScooterUnreachable(ServiceError):
    """The scooter is lost: it has not reported for a while."""

    code, status = "scooter-lost", 409
    scooter_id: str
