"""The rides service: it starts and ends the rides of users on scooters.

Starting a ride is a saga: it holds the money, then reserves the scooter, and only then begins the ride. If a step fails,
`ctx.undo` releases what the earlier steps took. If a service cannot be reached for that, it is asked again until it answers.
"""

import math
from datetime import timedelta

from runtime import Context, Service, Transaction, handles, roles, subscribes
from services.auth.messages import ROLES
from services.fleet.messages import (
    Free,
    ReservationLapsed,
    Reserve,
    ScooterLost,
    ScooterTaken,
    ScooterUnreachable,
    UnknownScooter,
    fleet,
)
from services.rides.messages import (
    AlreadyRiding,
    EndRide,
    GetRide,
    ListRides,
    Reason,
    Ride,
    RideAborted,
    RideEnded,
    RidePage,
    RideStarted,
    StartRide,
    UnknownRide,
    rides,
)
from services.rides.store import Store
from services.wallet.messages import Hold, InsufficientFunds, ReleaseHold, wallet

HOLD_CENTS = 500
BASE_CENTS = 100
CENTS_PER_MINUTE = 20


class Rides(Service):
    """Starts and ends rides. Its events tell fleet, wallet, and notices what to do in consequence."""

    contract = rides
    calls = (fleet, wallet)

    async def on_start(self, ctx: Context) -> None:
        self.store = Store(self.db, self.clock, self.random)

    @handles(
        http="POST /rides", status=201, allow=roles("rider"), once=True,
        raises=(AlreadyRiding, InsufficientFunds, UnknownScooter, ScooterTaken, ScooterUnreachable),
    )  # fmt: skip
    async def start(self, message: StartRide, ctx: Context, tx: Transaction) -> Ride:
        rider = ctx.user.subject
        await self._require_no_active_ride(rider)
        hold = await ctx.request(Hold(HOLD_CENTS))
        ctx.undo(ReleaseHold(hold.id))  # sent if this handler does not commit
        reservation = await ctx.request(Reserve(message.scooter_id))
        ctx.undo(Free(reservation.id))
        ride = await self.store.begin(tx, rider, message.scooter_id)
        if ride is None:  # another ride of the rider or the scooter has begun meanwhile
            await self._require_no_active_ride(rider, tx)
            raise ScooterTaken(message.scooter_id)
        await tx.publish(RideStarted(ride.id, rider, message.scooter_id, reservation.id, hold.id))
        return ride  # row, event, and reply commit together

    async def _require_no_active_ride(self, rider: str, tx: Transaction | None = None) -> None:
        active = await self.store.active_ride(rider, tx)
        if active is not None:
            raise AlreadyRiding(active)

    @handles(http="POST /rides/{id}/end", allow=roles(*ROLES), idempotent=True, raises=(UnknownRide,))
    async def end(self, message: EndRide, ctx: Context, tx: Transaction) -> Ride:
        ride = await self.store.get(message.id, tx)
        if ride is None or ride.user_id != ctx.user.subject:
            raise UnknownRide
        if ride.state != "active":
            return ride
        ended = await self.store.end(tx, ride.id, price(await self.store.duration(tx, ride)))
        if ended is None or ended.cents is None:  # another replica has ended it meanwhile
            return await self.store.get(message.id, tx) or ride
        await tx.publish(RideEnded(ended.id, ended.user_id, ended.scooter_id, ended.cents))
        return ended

    @handles(http="GET /rides/{id}", allow=roles(*ROLES), raises=(UnknownRide,))
    async def get(self, message: GetRide, ctx: Context) -> Ride:
        ride = await self.store.get(message.id)
        if ride is None or (ride.user_id != ctx.user.subject and "operator" not in ctx.user.roles):
            raise UnknownRide
        return ride

    @handles(http="GET /rides", allow=roles(*ROLES))
    async def list_rides(self, message: ListRides, ctx: Context) -> RidePage:
        user_id = None if "operator" in ctx.user.roles else ctx.user.subject
        return await self.store.page(user_id, message.cursor, message.limit)

    @subscribes
    async def on_scooter_lost(self, event: ScooterLost, ctx: Context, tx: Transaction) -> None:
        if event.ride_id is not None:
            await self._abort(tx, event.ride_id, "scooter-lost")

    @subscribes
    async def on_reservation_lapsed(self, event: ReservationLapsed, ctx: Context, tx: Transaction) -> None:
        await self._abort(tx, event.ride_id, "reservation-lapsed")

    async def _abort(self, tx: Transaction, ride_id: str, reason: Reason) -> None:
        ride = await self.store.abort(tx, ride_id)
        if ride is not None:
            await tx.publish(RideAborted(ride.id, ride.user_id, ride.scooter_id, reason))


def price(duration: timedelta) -> int:
    """Return the price of a ride of this duration, in cents. The first minute counts from the start, even for a duration of zero."""
    return BASE_CENTS + CENTS_PER_MINUTE * max(1, math.ceil(duration / timedelta(minutes=1)))
