"""The contract of the rides service: rides and the events of their start and end. Amounts of money are integers, in cents."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta

from runtime import Contract, Event, Request, ServiceError, Struct

rides = Contract("rides")

Reason = Literal["scooter-lost", "reservation-lapsed"]


class Ride(Struct):
    """A ride. `cents` is its price once it has ended. An aborted ride is free of charge."""

    id: str
    user_id: str
    scooter_id: str
    state: Literal["active", "ended", "aborted"]
    started_at: datetime
    ended_at: datetime | None = None
    cents: int | None = None


class RidePage(Struct):
    """A page of rides, the newest first. `next` is the cursor of the next page."""

    items: tuple[Ride, ...]
    next: str | None


@rides.message
class StartRide(Request[Ride]):
    """Take a scooter and start a ride. 500 cents are held until the ride has ended."""

    scooter_id: str


@rides.message
class EndRide(Request[Ride]):
    """End a ride and pay for it: 100 cents, plus 20 cents for each minute begun. A ride that is already over stays unchanged."""

    id: str


@rides.message
class GetRide(Request[Ride]):
    """Return a ride."""

    id: str


@rides.message
class ListRides(Request[RidePage]):
    """List the user's rides. For an operator, list the rides of all users."""

    cursor: UUID | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


@rides.message
class RideStarted(Event):
    """A ride has started. This confirms its reservation and its hold."""

    ride_id: str
    user_id: str
    scooter_id: str
    reservation_id: str
    hold_id: str


@rides.message
class RideEnded(Event):
    """A ride has ended, and its price is known."""

    ride_id: str
    user_id: str
    scooter_id: str
    cents: int


@rides.message
class RideAborted(Event):
    """The system has aborted a ride, which costs nothing."""

    ride_id: str
    user_id: str
    scooter_id: str
    reason: Reason


@rides.message
class UnknownRide(ServiceError):
    """You have no such ride."""

    code, status = "unknown-ride", 404


@rides.message
class AlreadyRiding(ServiceError):
    """You have an active ride: end it first."""

    code, status = "already-riding", 409
    ride_id: str
