"""The rides service: a rider, a scooter and money come together, and part again.

Starting a ride is a saga: the money is held, the scooter reserved, and only then does the ride begin. Whatever fails on
the way, what was taken before is given back (`ctx.undo`), or, where nobody can be reached, expires by itself.
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
    """Begins rides and ends them. What follows from that, fleet, wallet and notices hear from its events."""

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
        await self._refuse_a_second(rider)
        hold = await ctx.request(Hold(HOLD_CENTS))
        ctx.undo(ReleaseHold(hold.id))  # asked for if this handler does not commit
        spot = await ctx.request(Reserve(message.scooter_id))
        ctx.undo(Free(spot.id))
        ride = await self.store.begin(tx, rider, message.scooter_id)
        if ride is None:  # the rider, or the scooter, has one that began meanwhile
            await self._refuse_a_second(rider, tx)
            raise ScooterTaken(message.scooter_id)
        await tx.publish(RideStarted(ride.id, rider, message.scooter_id, spot.id, hold.id))
        return ride  # row, event and reply commit together

    async def _refuse_a_second(self, rider: str, tx: Transaction | None = None) -> None:
        active = await self.store.active(rider, tx)
        if active is not None:
            raise AlreadyRiding(active)

    @handles(http="POST /rides/{id}/end", allow=roles(*ROLES), idempotent=True, raises=(UnknownRide,))
    async def end(self, message: EndRide, ctx: Context, tx: Transaction) -> Ride:
        ride = await self.store.get(message.id, tx)
        if ride is None or ride.user_id != ctx.user.subject:
            raise UnknownRide
        if ride.state != "active":
            return ride
        over = await self.store.end(tx, ride.id, price(self.clock.now() - ride.started_at))
        if over is None or over.cents is None:  # another replica was quicker
            return await self.store.get(message.id, tx) or ride
        await tx.publish(RideEnded(over.id, over.user_id, over.scooter_id, over.cents))
        return over

    @handles(http="GET /rides/{id}", allow=roles(*ROLES), raises=(UnknownRide,))
    async def get(self, message: GetRide, ctx: Context) -> Ride:
        ride = await self.store.get(message.id)
        if ride is None or (ride.user_id != ctx.user.subject and ctx.user.role != "operator"):
            raise UnknownRide
        return ride

    @handles(http="GET /rides", allow=roles(*ROLES))
    async def list_rides(self, message: ListRides, ctx: Context) -> RidePage:
        whose = None if ctx.user.role == "operator" else ctx.user.subject
        return await self.store.page(whose, message.cursor, message.limit)

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
    """What a ride of that length costs, in cents: the first minute has begun when the ride does."""
    return BASE_CENTS + CENTS_PER_MINUTE * max(1, math.ceil(duration / timedelta(minutes=1)))
