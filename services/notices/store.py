"""The notices of each user, numbered in commit order."""

from datetime import datetime

from runtime import Clock, Database, Random, Row, Transaction
from services.notices.messages import Following, Kind, Notice, NoticePage

_MAX_NUMBER = 2**62


class Store:
    """Reads and writes the notices. Methods that write take the transaction of the caller."""

    def __init__(self, db: Database, clock: Clock, random: Random) -> None:
        self._db = db
        self._clock = clock
        self._random = random

    async def add(
        self, tx: Transaction, user_id: str, kind: Kind, text: str, *, ride_id: str | None = None, cents: int | None = None
    ) -> None:
        """Add a notice with the user's next number."""
        row = await tx.fetch_one(
            "INSERT INTO numbers (user_id, last) VALUES ($1, 1) ON CONFLICT (user_id) DO UPDATE SET last = numbers.last + 1 RETURNING last",
            user_id,
        )
        assert row is not None, "RETURNING gives the row"
        await tx.execute(
            "INSERT INTO notices (id, user_id, number, kind, text, ride_id, cents, at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            self._random.uuid7(), user_id, row["last"], kind, text, ride_id, cents, self._clock.now(),
        )  # fmt: skip

    async def page(self, user_id: str, cursor: int | None, limit: int) -> NoticePage:
        """Return a page of a user's notices, the newest first."""
        rows = await self._db.fetch(
            "SELECT * FROM notices WHERE user_id = $1 AND number < $2 ORDER BY number DESC LIMIT $3",
            user_id,
            _MAX_NUMBER if cursor is None else cursor,
            limit + 1,
        )
        more = str(rows[limit - 1]["number"]) if len(rows) > limit else None
        return NoticePage(tuple(_notice(row) for row in rows[:limit]), more)

    async def notices_after(self, user_id: str, after: int | None, after_id: str | None, limit: int) -> Following:
        """Return up to `limit` notices after a number, the oldest first. Without a number, return none of them.

        Args:
            after_id: the id that the notice with this number has to have. If it has another one, or does not exist, then this
                database was restored from a backup, and its older notices are those that the caller has seen, too.
        """
        newest = await self._db.fetch_one(
            "SELECT numbers.last, notices.id FROM numbers JOIN notices ON notices.user_id = $1 AND notices.number = numbers.last "
            "WHERE numbers.user_id = $1",
            user_id,
        )
        last, last_id = (0, "") if newest is None else (newest["last"], newest["id"])
        if after is None or (after == last and after_id in (None, last_id)) or (after > last and after_id is None):
            return Following((), last, last_id)
        rows = await self._from(user_id, after if after_id is not None else after + 1, limit + 1)
        if after_id is None:
            return Following(tuple(_notice(row) for row in rows[:limit]), last, last_id)
        if rows and (rows[0]["number"], rows[0]["id"]) == (after, after_id):
            return Following(tuple(_notice(row) for row in rows[1:]), last, last_id)
        fork = await self._db.fetch_one(
            "SELECT coalesce(max(number), 0) AS number FROM notices WHERE user_id = $1 AND number < $2 AND id < $3",
            user_id, after, after_id,
        )  # fmt: skip
        assert fork is not None, "an aggregate gives a row"
        forked_at: int = fork["number"]
        rows = await self._from(user_id, forked_at + 1, limit)
        return Following(tuple(_notice(row) for row in rows), last, last_id, forked_at)

    async def _from(self, user_id: str, number: int, limit: int) -> list[Row]:
        return await self._db.fetch(
            "SELECT * FROM notices WHERE user_id = $1 AND number >= $2 ORDER BY number LIMIT $3", user_id, number, limit
        )


def _notice(row: Row) -> Notice:
    return Notice(
        row["id"], row["number"], row["kind"], row["text"], row["ride_id"], row["cents"], datetime.fromisoformat(row["at"])
    )  # fmt: skip
