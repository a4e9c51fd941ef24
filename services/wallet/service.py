"""The wallet service: a ledger of positive and negative entries, and holds on the balance."""

from typing import Annotated

from msgspec import Meta

from runtime import Context, Service, Struct, Transaction, every, handles, roles, services, subscribes
from services.auth.messages import ROLES, UserRegistered
from services.rides.messages import RideAborted, RideEnded, RideStarted, rides
from services.wallet.messages import (
    Balance,
    BalanceLow,
    Entries,
    Entry,
    GetWallet,
    Hold,
    HoldPlaced,
    InsufficientFunds,
    ListEntries,
    ReleaseHold,
    TopUp,
    wallet,
)
from services.wallet.store import Store


class WalletSettings(Struct):
    """The settings of the wallet service."""

    hold_seconds: Annotated[float, Meta(gt=0)] = 60
    """The time after which a hold expires if no ride confirms it, in seconds."""
    low_cents: Annotated[int, Meta(ge=0)] = 500
    """The balance below which a user is notified after paying for a ride. The default is the amount that the next ride would hold."""


class Wallet(Service):
    """Keeps the users' money, which moves exactly once even if a request or an event is repeated."""

    contract = wallet
    Settings = WalletSettings
    settings: WalletSettings

    async def on_start(self, ctx: Context) -> None:
        self.store = Store(self.db, self.clock, self.random)

    @subscribes
    async def on_user_registered(self, event: UserRegistered, ctx: Context, tx: Transaction) -> None:
        await self.store.open_account(tx, event.user_id)

    # For users

    @handles(http="GET /wallet", allow=roles(*ROLES))
    async def get_wallet(self, message: GetWallet, ctx: Context) -> Balance:
        return await self.store.balance(ctx.user.subject)

    @handles(http="POST /wallet/top-ups", status=201, allow=roles(*ROLES), once=True)
    async def top_up(self, message: TopUp, ctx: Context, tx: Transaction) -> Entry:
        return await self.store.add_entry(tx, ctx.user.subject, "top-up", message.amount_cents)

    @handles(http="GET /wallet/entries", allow=roles(*ROLES))
    async def list_entries(self, message: ListEntries, ctx: Context) -> Entries:
        return await self.store.entries(ctx.user.subject, message.cursor, message.limit)

    # For rides: requests hold, events settle

    @handles(allow=services("rides"), once=True, raises=(InsufficientFunds,))
    async def hold(self, message: Hold, ctx: Context, tx: Transaction) -> HoldPlaced:
        return await self.store.hold(tx, ctx.user.subject, message.cents, self.settings.hold_seconds)

    @handles(allow=services("rides"), idempotent=True)
    async def release_hold(self, message: ReleaseHold, ctx: Context, tx: Transaction) -> None:
        await self.store.release(tx, message.hold_id)

    @subscribes
    async def on_ride_started(self, event: RideStarted, ctx: Context, tx: Transaction) -> None:
        await self.store.confirm(tx, event.hold_id, event.ride_id)

    @subscribes
    async def on_ride_ended(self, event: RideEnded, ctx: Context, tx: Transaction) -> None:
        """Charge the ride, even if its hold has expired. So a balance may become negative."""
        await self.store.release_of_ride(tx, event.ride_id)
        await self.store.add_entry(tx, event.user_id, "ride", -event.cents, event.ride_id)
        balance = await self.store.balance(event.user_id, tx)
        if balance.balance_cents < self.settings.low_cents:
            await tx.publish(BalanceLow(event.user_id, balance.balance_cents))

    @subscribes
    async def on_ride_aborted(self, event: RideAborted, ctx: Context, tx: Transaction) -> None:
        await self.store.release_of_ride(tx, event.ride_id)

    @every(seconds=1)
    async def expire_holds(self, ctx: Context) -> None:
        """Release the holds that have expired.

        It waits until this service has caught up with rides, because the event that confirms a hold may not have been applied.
        """
        expired = await self.store.expired_holds(self.settings.hold_seconds)
        if expired and await ctx.caught_up(rides):
            async with self.db.transaction() as tx:
                for hold_id in expired:
                    await self.store.release(tx, hold_id)
