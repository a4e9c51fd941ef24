"""The wallet service: a ledger of signed entries, and holds on what is in it."""

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
    """How the wallet behaves."""

    hold_seconds: Annotated[float, Meta(gt=0)] = 60
    """How long a hold stands that no ride confirms, in seconds."""
    low_cents: Annotated[int, Meta(ge=0)] = 500
    """A balance below this, once a ride is paid, is told of: it is what the next ride would hold."""


class Wallet(Service):
    """Keeps the users' money. It moves exactly once, however often a request or an event comes."""

    contract = wallet

    def __init__(self, settings: WalletSettings | None = None) -> None:
        self.settings = settings or WalletSettings()

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
        return await self.store.enter(tx, ctx.user.subject, "top-up", message.amount_cents)

    @handles(http="GET /wallet/entries", allow=roles(*ROLES))
    async def list_entries(self, message: ListEntries, ctx: Context) -> Entries:
        return await self.store.entries(ctx.user.subject, message.cursor, message.limit)

    # For rides: held by request, settled by event

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
        """The ride is charged whether or not its hold still stands; so a balance may become negative."""
        await self.store.release_of_ride(tx, event.ride_id)
        await self.store.enter(tx, event.user_id, "ride", -event.cents, event.ride_id)
        balance = await self.store.balance(event.user_id, tx)
        if balance.balance_cents < self.settings.low_cents:
            await tx.publish(BalanceLow(event.user_id, balance.balance_cents))

    @subscribes
    async def on_ride_aborted(self, event: RideAborted, ctx: Context, tx: Transaction) -> None:
        await self.store.release_of_ride(tx, event.ride_id)

    @every(seconds=1)
    async def expire_holds(self, ctx: Context) -> None:
        """Releases what was held and never ridden. Only now: before, the ride that confirms it may be on its way."""
        overdue = await self.store.overdue(self.settings.hold_seconds)
        if overdue and await ctx.caught_up(rides):
            async with self.db.transaction() as tx:
                for hold_id in overdue:
                    await self.store.release(tx, hold_id)
