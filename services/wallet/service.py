"""The wallet service: a ledger of signed entries, and holds on what is in it."""

from runtime import Context, Service, Transaction, handles, roles, services, subscribes
from services.auth.messages import ROLES, UserRegistered
from services.wallet.messages import (
    Balance,
    Entries,
    Entry,
    GetWallet,
    Hold,
    HoldPlaced,
    InsufficientFunds,
    ListEntries,
    ReleaseHold,
    Settle,
    TopUp,
    wallet,
)
from services.wallet.store import Store


class Wallet(Service):
    """Keeps the users' money. It moves exactly once, however often a request or an event comes."""

    contract = wallet

    async def on_start(self, ctx: Context) -> None:
        self.store = Store(self.db, self.clock, self.chance)

    @subscribes
    async def on_user_registered(self, event: UserRegistered, ctx: Context, tx: Transaction) -> None:
        await self.store.open_account(tx, event.user_id)

    @handles(http="GET /wallet", allow=roles(*ROLES))
    async def get_wallet(self, message: GetWallet, ctx: Context) -> Balance:
        return await self.store.balance(ctx.user.subject)

    @handles(http="POST /wallet/top-ups", status=201, allow=roles(*ROLES), once=True)
    async def top_up(self, message: TopUp, ctx: Context, tx: Transaction) -> Entry:
        return await self.store.enter(tx, ctx.user.subject, "top-up", message.amount_cents)

    @handles(http="GET /wallet/entries", allow=roles(*ROLES))
    async def list_entries(self, message: ListEntries, ctx: Context) -> Entries:
        return await self.store.entries(ctx.user.subject, message.cursor, message.limit)

    @handles(allow=services("rides"), once=True, raises=(InsufficientFunds,))
    async def hold(self, message: Hold, ctx: Context, tx: Transaction) -> HoldPlaced:
        return HoldPlaced(await self.store.hold(tx, ctx.user.subject, message.cents))

    @handles(allow=services("rides"), idempotent=True)
    async def release_hold(self, message: ReleaseHold, ctx: Context, tx: Transaction) -> None:
        await self.store.release(tx, message.hold_id)

    @handles(allow=services("rides"), once=True)
    async def settle(self, message: Settle, ctx: Context, tx: Transaction) -> Entry:
        await self.store.release(tx, message.hold_id)
        charged = await self.store.entry_of_ride(tx, message.ride_id)
        return charged or await self.store.enter(tx, message.user_id, "ride", -message.cents, message.ride_id)
