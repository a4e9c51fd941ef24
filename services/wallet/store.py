"""The wallet's ledger. Every change of a balance is an entry, and both are written by one transaction."""

from datetime import datetime, timedelta
from uuid import UUID

from runtime import Clock, Database, Random, Row, Transaction
from services.wallet.messages import Balance, Entries, Entry, HoldPlaced, InsufficientFunds, Kind

_LAST = UUID(int=2**128 - 1)


class Store:
    """Reads through `db`; everything that changes takes the transaction that it belongs to."""

    def __init__(self, db: Database, clock: Clock, random: Random) -> None:
        self._db = db
        self._clock = clock
        self._random = random

    async def open_account(self, tx: Transaction, user_id: str) -> None:
        await tx.execute(
            "INSERT INTO accounts (user_id, balance_cents, held_cents) VALUES ($1, 0, 0) ON CONFLICT DO NOTHING", user_id
        )

    async def balance(self, user_id: str, tx: Transaction | None = None) -> Balance:
        row = await (tx or self._db).fetch_one("SELECT balance_cents, held_cents FROM accounts WHERE user_id = $1", user_id)
        return Balance(0, 0) if row is None else Balance(**row)

    async def enter(self, tx: Transaction, user_id: str, kind: Kind, cents: int, ride_id: str | None = None) -> Entry:
        """Adds an entry to the ledger, and its signed cents to the balance."""
        entry = Entry(self._random.uuid7(), kind, cents, ride_id, self._clock.now())
        await self.open_account(tx, user_id)
        await tx.execute(
            "INSERT INTO entries (id, user_id, kind, cents, ride_id, at) VALUES ($1, $2, $3, $4, $5, $6)",
            entry.id, user_id, entry.kind, entry.cents, entry.ride_id, entry.at,
        )  # fmt: skip
        await tx.execute("UPDATE accounts SET balance_cents = balance_cents + $2 WHERE user_id = $1", user_id, cents)
        return entry

    async def entries(self, user_id: str, cursor: UUID | None, limit: int) -> Entries:
        """A page of a user's entries, the newest first."""
        rows = await self._db.fetch(
            "SELECT * FROM entries WHERE user_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
            user_id,
            cursor or _LAST,
            limit + 1,
        )
        more = str(rows[limit - 1]["id"]) if len(rows) > limit else None
        return Entries(tuple(_entry(row) for row in rows[:limit]), more)

    # Holds: placed by request, confirmed and ended by what becomes of the ride

    async def hold(self, tx: Transaction, user_id: str, cents: int, seconds: float) -> HoldPlaced:
        """Sets money aside, if there is enough that is not held."""
        held = await tx.execute(
            "UPDATE accounts SET held_cents = held_cents + $2 WHERE user_id = $1 AND balance_cents - held_cents >= $2",
            user_id,
            cents,
        )
        if not held:
            balance = await self.balance(user_id, tx)
            raise InsufficientFunds(balance.balance_cents - balance.held_cents)
        now = self._clock.now()
        placed = HoldPlaced(str(self._random.uuid7()), now + timedelta(seconds=seconds))
        await tx.execute("INSERT INTO holds (id, user_id, cents, at) VALUES ($1, $2, $3, $4)", placed.id, user_id, cents, now)
        return placed

    async def confirm(self, tx: Transaction, hold_id: str, ride_id: str) -> None:
        """Lets a hold stand until its ride is over. One that has expired is no matter: the ride is charged all the same."""
        await tx.execute("UPDATE holds SET ride_id = $2 WHERE id = $1", hold_id, ride_id)

    async def release(self, tx: Transaction, hold_id: str) -> None:
        """Ends a hold, unless a ride has confirmed it."""
        await self._end(tx, "id = $1 AND ride_id IS NULL", hold_id)

    async def release_of_ride(self, tx: Transaction, ride_id: str) -> None:
        """Ends the hold that a ride has confirmed."""
        await self._end(tx, "ride_id = $1", ride_id)

    async def _end(self, tx: Transaction, which: str, value: str) -> None:
        for row in await tx.fetch(f"DELETE FROM holds WHERE {which} RETURNING user_id, cents", value):
            await tx.execute("UPDATE accounts SET held_cents = held_cents - $2 WHERE user_id = $1", row["user_id"], row["cents"])

    async def overdue(self, seconds: float) -> list[str]:
        """The holds that no ride has confirmed within their time."""
        rows = await self._db.fetch(
            "SELECT id FROM holds WHERE ride_id IS NULL AND at < $1", self._clock.now() - timedelta(seconds=seconds)
        )
        return [row["id"] for row in rows]


def _entry(row: Row) -> Entry:
    return Entry(UUID(row["id"]), row["kind"], row["cents"], row["ride_id"], datetime.fromisoformat(row["at"]))
