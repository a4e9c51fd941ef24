"""The ledger of the wallet. Every change of a balance is an entry, and one transaction writes both."""

from datetime import datetime, timedelta
from uuid import UUID

from runtime import Clock, Database, Random, Row, Transaction
from services.wallet.messages import Balance, Entries, Entry, HoldPlaced, InsufficientFunds, Kind

_MAX_NUMBER = 2**62


class Store:
    """Reads and writes accounts, entries, and holds. Methods that write take the transaction of the caller."""

    def __init__(self, db: Database, clock: Clock, random: Random) -> None:
        self._db = db
        self._clock = clock
        self._random = random

    async def open_account(self, tx: Transaction, user_id: str) -> None:
        """Create an empty account, unless the user has one."""
        await tx.execute(
            "INSERT INTO accounts (user_id, balance_cents, held_cents) VALUES ($1, 0, 0) ON CONFLICT DO NOTHING", user_id
        )

    async def balance(self, user_id: str, tx: Transaction | None = None) -> Balance:
        row = await (tx or self._db).fetch_one("SELECT balance_cents, held_cents FROM accounts WHERE user_id = $1", user_id)
        return Balance(0, 0) if row is None else Balance(**row)

    async def add_entry(self, tx: Transaction, user_id: str, kind: Kind, cents: int, ride_id: str | None = None) -> Entry:
        """Add an entry to the ledger and its cents, which may be negative, to the balance."""
        entry = Entry(self._random.uuid7(), kind, cents, ride_id, self._clock.now())
        await self.open_account(tx, user_id)
        await tx.execute(
            "INSERT INTO entries (id, number, user_id, kind, cents, ride_id, at) "
            "VALUES ($1, (SELECT COALESCE(MAX(number), 0) + 1 FROM entries), $2, $3, $4, $5, $6)",
            entry.id, user_id, entry.kind, entry.cents, entry.ride_id, entry.at,
        )  # fmt: skip
        await tx.execute("UPDATE accounts SET balance_cents = balance_cents + $2 WHERE user_id = $1", user_id, cents)
        return entry

    async def entries(self, user_id: str, cursor: UUID | None, limit: int) -> Entries:
        """Return a page of a user's entries, the newest first."""
        rows = await self._db.fetch(
            "SELECT * FROM entries WHERE user_id = $1 AND number < COALESCE((SELECT number FROM entries WHERE id = $2 AND user_id = $1), $3) "
            "ORDER BY number DESC LIMIT $4",
            user_id,
            cursor,
            _MAX_NUMBER if cursor is None else 0,
            limit + 1,
        )
        more = str(rows[limit - 1]["id"]) if len(rows) > limit else None
        return Entries(tuple(_entry(row) for row in rows[:limit]), more)

    # Holds: requests place them, the events of rides confirm and end them

    async def hold(self, tx: Transaction, user_id: str, cents: int, seconds: float) -> HoldPlaced:
        """Hold money of a user for a number of seconds.

        Raises:
            InsufficientFunds: if too little of the balance is not yet held.
        """
        held = await tx.execute(
            "UPDATE accounts SET held_cents = held_cents + $2 WHERE user_id = $1 AND balance_cents - held_cents >= $2",
            user_id,
            cents,
        )
        if not held:
            balance = await self.balance(user_id, tx)
            raise InsufficientFunds(balance.balance_cents - balance.held_cents)
        placed = HoldPlaced(str(self._random.uuid7()), self._clock.now() + timedelta(seconds=seconds))
        await tx.execute(
            "INSERT INTO holds (id, user_id, cents, at) VALUES ($1, $2, $3, $4)",
            placed.id,
            user_id,
            cents,
            self._clock.steady_now(),
        )
        return placed

    async def confirm(self, tx: Transaction, hold_id: str, ride_id: str) -> None:
        """Keep a hold until its ride is over. A hold that has expired is ignored, because the ride is charged without it."""
        await tx.execute("UPDATE holds SET ride_id = $2 WHERE id = $1", hold_id, ride_id)

    async def release(self, tx: Transaction, hold_id: str) -> None:
        """Delete a hold, unless a ride has confirmed it."""
        await self._delete_holds(tx, "id = $1 AND ride_id IS NULL", hold_id)

    async def release_of_ride(self, tx: Transaction, ride_id: str) -> None:
        """Delete the hold that a ride has confirmed."""
        await self._delete_holds(tx, "ride_id = $1", ride_id)

    async def _delete_holds(self, tx: Transaction, condition: str, value: str) -> None:
        for row in await tx.fetch(f"DELETE FROM holds WHERE {condition} RETURNING user_id, cents", value):
            await tx.execute("UPDATE accounts SET held_cents = held_cents - $2 WHERE user_id = $1", row["user_id"], row["cents"])

    async def expired_holds(self, seconds: float) -> list[str]:
        """Return the ids of up to 500 holds that are older than `seconds` and that no ride has confirmed, the oldest first."""
        now = self._clock.steady_now()
        rows = await self._db.fetch(
            "SELECT * FROM (SELECT id, 0 AS ahead FROM holds WHERE ride_id IS NULL AND at < $1 ORDER BY at LIMIT 500) AS old "
            "UNION ALL SELECT * FROM (SELECT id, 1 FROM holds WHERE ride_id IS NULL AND at > $2 LIMIT 1) AS ahead",
            now - timedelta(seconds=seconds),
            now,
        )
        if any(row["ahead"] for row in rows):  # stored before a restart, while the clock was ahead: they are placed now
            await self._db.execute("UPDATE holds SET at = $1 WHERE ride_id IS NULL AND at > $1", now)
        return [row["id"] for row in rows if not row["ahead"]]


def _entry(row: Row) -> Entry:
    return Entry(UUID(row["id"]), row["kind"], row["cents"], row["ride_id"], datetime.fromisoformat(row["at"]))
