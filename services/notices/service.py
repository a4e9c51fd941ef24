"""The notices service: it turns the events of rides and the wallet into notices for users, and signals each new one."""

from runtime import Context, Service, Transaction, handles, roles, subscribes
from services.auth.messages import ROLES
from services.notices.messages import Following, Kind, ListNotices, Noticed, NoticePage, NoticesAfter, notices
from services.notices.store import Store
from services.rides.messages import RideAborted, RideEnded, RideStarted
from services.wallet.messages import BalanceLow


class Notices(Service):
    """Stores and lists notices. It subscribes to the events of other services and calls none of them."""

    contract = notices

    async def on_start(self, ctx: Context) -> None:
        self.store = Store(self.db, self.clock, self.random)

    @handles(http="GET /notices", allow=roles(*ROLES))
    async def list_notices(self, message: ListNotices, ctx: Context) -> NoticePage:
        return await self.store.page(ctx.user.subject, message.cursor, message.limit)

    @handles(allow=roles(*ROLES), idempotent=True)  # no route: the gateway calls it for /live with the user's token
    async def notices_after(self, message: NoticesAfter, ctx: Context) -> Following:
        return await self.store.notices_after(ctx.user.subject, message.after, message.after_id, message.limit)

    @subscribes
    async def on_ride_started(self, event: RideStarted, ctx: Context, tx: Transaction) -> None:
        await self._notify(ctx, tx, event.user_id, "ride-started", "Your ride has begun.", ride_id=event.ride_id)

    @subscribes
    async def on_ride_ended(self, event: RideEnded, ctx: Context, tx: Transaction) -> None:
        text = f"Your ride has ended. It costs {_money(event.cents)}."
        await self._notify(ctx, tx, event.user_id, "ride-ended", text, ride_id=event.ride_id, cents=event.cents)

    @subscribes
    async def on_ride_aborted(self, event: RideAborted, ctx: Context, tx: Transaction) -> None:
        match event.reason:
            case "scooter-lost":
                why = "we lost contact with the scooter"
            case "reservation-lapsed":
                why = "the scooter was no longer free"
        text = f"Your ride was broken off: {why}. It costs nothing."
        await self._notify(ctx, tx, event.user_id, "ride-aborted", text, ride_id=event.ride_id, cents=0)

    @subscribes
    async def on_balance_low(self, event: BalanceLow, ctx: Context, tx: Transaction) -> None:
        text = f"Your balance is {_money(event.balance_cents)}: top up before your next ride."
        await self._notify(ctx, tx, event.user_id, "balance-low", text, cents=event.balance_cents)

    async def _notify(
        self,
        ctx: Context,
        tx: Transaction,
        user_id: str,
        kind: Kind,
        text: str,
        *,
        ride_id: str | None = None,
        cents: int | None = None,
    ) -> None:
        await self.store.add(tx, user_id, kind, text, ride_id=ride_id, cents=cents)
        await ctx.publish(Noticed(user_id))  # sent after the commit


def _money(cents: int) -> str:
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02}"
