"""The fleet service: where the scooters are, and who has which of them."""

from datetime import timedelta
from typing import Annotated

from msgspec import Meta

from runtime import Context, Service, Struct, Transaction, every, handles, roles, services, subscribes
from services.auth.messages import ROLES
from services.fleet.messages import (
    AddScooter,
    FindScooters,
    Free,
    GetScooter,
    Lock,
    Reservation,
    ReservationLapsed,
    Reserve,
    Scooter,
    Scooters,
    ScooterTaken,
    ScooterUnreachable,
    StillHearing,
    Telemetry,
    UnknownScooter,
    Unlock,
    fleet,
)
from services.fleet.store import Store
from services.rides.messages import RideAborted, RideEnded, RideStarted, rides

_PAUSE = timedelta(seconds=10)
"""A process that has not looked for so long was asleep; one that has not heard itself for so long was deaf."""
_EVERY = timedelta(seconds=3)
"""How often it says something to hear it."""


class FleetSettings(Struct):
    """How the fleet behaves. Durations are in seconds."""

    reservation_seconds: Annotated[float, Meta(gt=0)] = 60
    """How long a reservation stands that no ride confirms."""
    silent_seconds: Annotated[float, Meta(gt=0)] = 60
    """How long a scooter may be silent before it is lost."""


class Fleet(Service):
    """Knows every scooter. Reservations come by request; the rides that confirm and end them, by event."""

    contract = fleet

    def __init__(self, settings: FleetSettings | None = None) -> None:
        self.settings = settings or FleetSettings()

    async def on_start(self, ctx: Context) -> None:
        self.store = Store(self.db, self.clock, self.random)
        self.listening_since = self.looked_at = self.heard_at = self.said_at = self.clock.now()

    # For riders and operators

    @handles(http="GET /scooters", allow=roles(*ROLES))
    async def find(self, message: FindScooters, ctx: Context) -> Scooters:
        return Scooters(await self.store.near(message))

    @handles(http="GET /scooters/{id}", allow=roles(*ROLES), raises=(UnknownScooter,))
    async def get(self, message: GetScooter, ctx: Context) -> Scooter:
        scooter = await self.store.get(message.id)
        if scooter is None:
            raise UnknownScooter
        return scooter

    @handles(http="POST /scooters", status=201, allow=roles("operator") | services("devices"), once=True)
    async def add(self, message: AddScooter, ctx: Context, tx: Transaction) -> Scooter:
        return await self.store.add(tx, message)

    # For rides: taken by request, confirmed and ended by event

    @handles(allow=services("rides"), once=True, raises=(UnknownScooter, ScooterTaken, ScooterUnreachable))
    async def reserve(self, message: Reserve, ctx: Context, tx: Transaction) -> Reservation:
        return await self.store.reserve(tx, message.scooter_id, self.settings.reservation_seconds)

    @handles(allow=services("rides"), idempotent=True)
    async def unreserve(self, message: Free, ctx: Context, tx: Transaction) -> None:
        await self.store.unreserve(tx, message.reservation_id)

    @subscribes
    async def on_ride_started(self, event: RideStarted, ctx: Context, tx: Transaction) -> None:
        if await self.store.hand_over(tx, event.reservation_id, event.ride_id):
            await ctx.publish(Unlock(event.scooter_id))
        else:
            await tx.publish(ReservationLapsed(event.reservation_id, event.ride_id))

    @subscribes
    async def on_ride_ended(self, event: RideEnded, ctx: Context, tx: Transaction) -> None:
        if await self.store.take_back(tx, event.ride_id):
            await ctx.publish(Lock(event.scooter_id))

    @subscribes
    async def on_ride_aborted(self, event: RideAborted, ctx: Context, tx: Transaction) -> None:
        if await self.store.take_back(tx, event.ride_id):
            await ctx.publish(Lock(event.scooter_id))

    @every(seconds=1)
    async def expire_reservations(self, ctx: Context) -> None:
        """Frees what was reserved and never ridden. Only now: before, the ride that confirms it may be on its way."""
        overdue = await self.store.overdue(self.settings.reservation_seconds)
        if overdue and await ctx.caught_up(rides):
            async with self.db.transaction() as tx:
                for reservation_id in overdue:
                    await self.store.unreserve(tx, reservation_id)

    # For the scooters

    @subscribes(allow=services("devices"))
    async def on_telemetry(self, signal: Telemetry, ctx: Context, tx: Transaction) -> None:
        ridden = await self.store.note(tx, signal)
        if ridden is None:
            self.log.debug("telemetry of the unknown scooter %s", signal.scooter_id)
        elif ridden and signal.locked:
            await ctx.publish(Unlock(signal.scooter_id))  # a signal may be lost: what it has not obeyed is said again
        elif not ridden and not signal.locked:
            await ctx.publish(Lock(signal.scooter_id))

    @subscribes(broadcast=True)
    async def on_still_hearing(self, signal: StillHearing, ctx: Context) -> None:
        self.heard_at = self.clock.now()

    @every(seconds=1)
    async def lose_the_silent(self, ctx: Context) -> None:
        """Gives up scooters that have been silent, but for no longer than this service has listened.

        A process that pauses hears nothing, nor does one whose link to the broker is down.
        """
        now = self.clock.now()
        if now - min(self.looked_at, self.heard_at) > _PAUSE:
            self.listening_since = now
        self.looked_at = now
        if now - self.said_at >= _EVERY:
            self.said_at = now
            await ctx.publish(StillHearing())
        silent_since = now - timedelta(seconds=self.settings.silent_seconds)
        if silent_since < self.listening_since:
            return
        silent = await self.store.silent(silent_since)
        if silent:
            async with self.db.transaction() as tx:
                for scooter_id in silent:
                    lost = await self.store.give_up(tx, scooter_id, silent_since)
                    if lost is not None:
                        self.log.info("scooter %s is lost", scooter_id)
                        await tx.publish(lost)
