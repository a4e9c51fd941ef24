"""What the fleet publishes: scooters, reservations, and what passes between the fleet and the scooters themselves."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from runtime import Contract, Event, Request, ServiceError, Signal, Struct

fleet = Contract("fleet")

Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]
Percent = Annotated[float, Meta(ge=0, le=100)]


class Scooter(Struct):
    """A scooter as the fleet knows it. `battery` is in percent; `seen_at` is when it last reported."""

    id: str
    state: Literal["free", "reserved", "riding", "lost"]
    lat: float
    lon: float
    battery: float
    seen_at: datetime


class Scooters(Struct):
    """Scooters, the nearest first."""

    items: tuple[Scooter, ...]


class Reservation(Struct):
    """A scooter that is held for a ride. After `until`, one that no ride has confirmed is free again."""

    id: str
    until: datetime


@fleet.message
class FindScooters(Request[Scooters]):
    """Which free scooters are near a point?"""

    lat: Latitude
    lon: Longitude
    radius_m: Annotated[float, Meta(gt=0, le=100_000)] = 1000
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


@fleet.message
class GetScooter(Request[Scooter]):
    """Where is this scooter, and how is it?"""

    id: str


@fleet.message
class AddScooter(Request[Scooter]):
    """Put a scooter on the street."""

    lat: Latitude
    lon: Longitude
    battery: Percent


@fleet.message
class Reserve(Request[Reservation]):
    """Hold a scooter for a rider."""

    scooter_id: str


@fleet.message
class Free(Request[None]):
    """Give a reservation back. One that is gone, or that a ride has confirmed, is no error and stays as it is."""

    reservation_id: str


@fleet.message
class ScooterLost(Event):
    """A scooter has been silent for too long. `ride_id` is the ride that was under way on it."""

    scooter_id: str
    ride_id: str | None = None


@fleet.message
class ReservationLapsed(Event):
    """A ride began with a reservation that no longer stood: it cannot have the scooter."""

    reservation_id: str
    ride_id: str


@fleet.message(key="scooter_id")
class Telemetry(Signal):
    """What a scooter says of itself."""

    scooter_id: str
    lat: Latitude
    lon: Longitude
    battery: Percent
    locked: bool


@fleet.message(key="scooter_id")
class Unlock(Signal):
    """To a scooter: let the rider go."""

    scooter_id: str


@fleet.message(key="scooter_id")
class Lock(Signal):
    """To a scooter: the ride is over."""

    scooter_id: str


@fleet.message
class StillHearing(Signal):
    """The fleet to itself: while this comes back, scooters can be heard too."""


@fleet.message
class UnknownScooter(ServiceError):
    """There is no such scooter."""

    code, status = "unknown-scooter", 404


@fleet.message
class ScooterTaken(ServiceError):
    """Somebody else has this scooter."""

    code, status = "scooter-taken", 409
    scooter_id: str


@fleet.message
class ScooterUnreachable(ServiceError):
    """The scooter is lost: it has not been heard of for a while."""

    code, status = "scooter-lost", 409
    scooter_id: str
