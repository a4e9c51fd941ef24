"""The fleet service: the position and state of every scooter, and its reservations."""

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

_MAX_GAP = 10.0
"""Seconds. If the process has not run its check for longer than this, it was paused. If it has not received its own signal for longer
than this, it was cut off."""
_SIGNAL_INTERVAL = 3.0
"""The seconds between two signals of the fleet to itself."""


class FleetSettings(Struct):
    """The settings of the fleet service. Durations are in seconds."""

    reservation_seconds: Annotated[float, Meta(gt=0)] = 60
    """The time after which a reservation expires if no ride confirms it."""
    silent_seconds: Annotated[float, Meta(gt=0)] = 60
    """The time without a report after which a scooter is lost."""


class Fleet(Service):
    """Manages the scooters. Requests create reservations, and the events of rides confirm and end them."""

    contract = fleet
    Settings = FleetSettings
    settings: FleetSettings

    async def on_start(self, ctx: Context) -> None:
        self.store = Store(self.db, self.clock, self.random)
        self.listening_since = self.looked_at = self.heard_at = self.sent_at = self.clock.steady()

    # For riders and operators

    @handles(http="GET /scooters", allow=roles(*ROLES))
    async def find(self, message: FindScooters, ctx: Context) -> Scooters:
        return Scooters(await self.store.nearest(message))

    @handles(http="GET /scooters/{id}", allow=roles(*ROLES), raises=(UnknownScooter,))
    async def get(self, message: GetScooter, ctx: Context) -> Scooter:
        scooter = await self.store.get(message.id)
        if scooter is None:
            raise UnknownScooter
        return scooter

    @handles(http="POST /scooters", status=201, allow=roles("operator") | services("devices"), once=True)
    async def add(self, message: AddScooter, ctx: Context, tx: Transaction) -> Scooter:
        return await self.store.add(tx, message)

    # For rides: requests reserve, events confirm and end

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
        """Free the scooters whose reservation has expired.

        It waits until this service has caught up with rides, because the event that confirms a reservation may not have been applied.
        """
        expired = await self.store.expired_reservations(self.settings.reservation_seconds)
        if expired and await ctx.caught_up(rides):
            async with self.db.transaction() as tx:
                for reservation_id in expired:
                    await self.store.unreserve(tx, reservation_id)

    # For the scooters

    @subscribes(allow=services("devices"))
    async def on_telemetry(self, signal: Telemetry, ctx: Context, tx: Transaction) -> None:
        riding = await self.store.record_telemetry(tx, signal)
        if riding is None:
            self.log.debug("ignored telemetry of the unknown scooter %s", signal.scooter_id)
        elif riding and signal.locked:
            await ctx.publish(Unlock(signal.scooter_id))  # a signal may be lost, so it is repeated until the scooter obeys
        elif not riding and not signal.locked:
            await ctx.publish(Lock(signal.scooter_id))

    @subscribes(broadcast=True)
    async def on_still_hearing(self, signal: StillHearing, ctx: Context) -> None:
        self.heard_at = self.clock.steady()

    @every(seconds=1, each=True)
    async def listen(self, ctx: Context) -> None:
        """Note since when this instance can receive reports: not while its process is paused or cut off from the broker."""
        now = self.clock.steady()
        if now - min(self.looked_at, self.heard_at) > _MAX_GAP:
            self.listening_since = now
        self.looked_at = now
        if now - self.sent_at >= _SIGNAL_INTERVAL:
            self.sent_at = now
            await ctx.publish(StillHearing())

    @every(seconds=1)
    async def mark_silent_scooters_lost(self, ctx: Context) -> None:
        """Mark the scooters as lost that have not reported for `silent_seconds`.

        Only time in which this instance could receive reports counts. It has them in common with the others, in the database.
        """
        now = self.clock.steady()
        if now - min(self.looked_at, self.heard_at) > _MAX_GAP:
            return  # it has been paused or cut off, and `listen` has not noted that yet
        silent_since = now - self.settings.silent_seconds
        silent = await self.store.silent_since(silent_since)
        if silent and silent_since >= self.listening_since:
            async with self.db.transaction() as tx:
                for scooter_id in silent:
                    lost = await self.store.mark_lost(tx, scooter_id, silent_since)
                    if lost is not None:
                        self.log.info("scooter %s is lost", scooter_id)
                        await tx.publish(lost)
