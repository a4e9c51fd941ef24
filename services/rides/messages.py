"""What rides publishes: rides, their beginning and their end. Money is integer cents."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta

from runtime import Contract, Event, Request, ServiceError, Struct

rides = Contract("rides")

Reason = Literal["scooter-lost", "reservation-lapsed"]


class Ride(Struct):
    """A ride. `cents` is its price, once it has ended; an aborted one is free of charge."""

    id: str
    user_id: str
    scooter_id: str
    state: Literal["active", "ended", "aborted"]
    started_at: datetime
    ended_at: datetime | None = None
    cents: int | None = None


class RidePage(Struct):
    """A page of rides, the newest first. `next` is the cursor of the page that follows."""

    items: tuple[Ride, ...]
    next: str | None


@rides.message
class StartRide(Request[Ride]):
    """Take a scooter. 500 cents are held until the ride has ended."""

    scooter_id: str


@rides.message
class EndRide(Request[Ride]):
    """Leave the scooter, and pay: 100 cents, and 20 for each minute begun. A ride that is over stays as it is."""

    id: str


@rides.message
class GetRide(Request[Ride]):
    """How is this ride?"""

    id: str


@rides.message
class ListRides(Request[RidePage]):
    """My rides; an operator sees everybody's."""

    cursor: UUID | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


@rides.message
class RideStarted(Event):
    """A ride has begun. It confirms the reservation and the hold that it was begun with."""

    ride_id: str
    user_id: str
    scooter_id: str
    reservation_id: str
    hold_id: str


@rides.message
class RideEnded(Event):
    """A ride has ended, and costs so much."""

    ride_id: str
    user_id: str
    scooter_id: str
    cents: int


@rides.message
class RideAborted(Event):
    """A ride was broken off by us, and costs nothing."""

    ride_id: str
    user_id: str
    scooter_id: str
    reason: Reason


@rides.message
class UnknownRide(ServiceError):
    """There is no such ride among yours."""

    code, status = "unknown-ride", 404


@rides.message
class AlreadyRiding(ServiceError):
    """You have a ride under way: end it first."""

    code, status = "already-riding", 409
    ride_id: str
