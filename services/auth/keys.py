"""The keys that sign access tokens.

A key is published before it signs, and it retires after the longest lifetime of a token. So keys rotate without a refused request.
"""

import base64
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime import Clock, Database, Transaction
from runtime.identity import MAX_LIFETIME, Key, Keys
from services.auth.messages import SigningKey

_RETIRES_AFTER = MAX_LIFETIME + 60
"""Seconds from the first use of the next key until a key retires."""


_Entry = tuple[str, Ed25519PrivateKey, int, int | None]
"""A key with its id, when it begins to sign, and when it retires."""


class SigningKeys:
    """The signing keys in auth's database.

    Args:
        db: the database of the auth service.
        clock: the clock of the node.
        lead: the time between the publication of a key and its first use, in seconds. Within it every node fetches the key.
    """

    def __init__(self, db: Database, clock: Clock, lead: float) -> None:
        self._db = db
        self._clock = clock
        self._lead = lead
        self._keys: list[_Entry] = []

    async def load(self) -> None:
        """Read the keys. In a new database, create the first key, which signs immediately."""
        await self._correct()
        async with self._db.transaction() as tx:
            await self._create_if_none_signs(tx)
        await self.refresh()

    async def refresh(self) -> None:
        """Read the keys again: another instance may have published or retired one."""
        rows = await self._db.fetch(
            "SELECT kid, private, signs_from, retires FROM signing_keys ORDER BY signs_from, retires IS NULL"
        )
        self._keys = [
            (
                row["kid"],
                Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(row["private"])),
                row["signs_from"],
                row["retires"],
            )
            for row in rows
        ]

    async def rotate(self) -> None:
        """Publish a new key, which signs after `lead` seconds. The previous keys retire when all tokens that they signed have expired."""
        async with self._db.transaction() as tx:
            await self._create(tx, int(self._clock.steady() + self._lead))
        await self.refresh()

    async def retire(self, kid: str) -> bool:
        """Retire a key at once: tokens that it signed are refused as soon as the verifiers have read the keys again.

        If no other key is left to sign, a new one is created, which signs immediately. Return whether there was such a key.
        """
        now = int(self._clock.steady())
        async with self._db.transaction() as tx:
            if not await tx.execute(
                "UPDATE signing_keys SET retires = $2 WHERE kid = $1 AND (retires IS NULL OR retires > $2)", kid, now
            ):
                return False
            await tx.execute(  # the one before it goes on, if it was about to take over
                "UPDATE signing_keys SET retires = NULL WHERE NOT EXISTS (SELECT 1 FROM signing_keys WHERE retires IS NULL) "
                "AND kid = (SELECT kid FROM signing_keys WHERE retires > $1 ORDER BY signs_from DESC LIMIT 1)",
                now,
            )
            await self._create_if_none_signs(tx)
        await self.refresh()
        return True

    async def rotate_if_older(self, seconds: float) -> None:
        """Delete retired keys, and rotate if the newest key has signed for longer than `seconds`."""
        now = self._clock.steady()
        await self._db.execute("DELETE FROM signing_keys WHERE retires < $1", int(now))
        await self._correct()
        await self.refresh()
        if max(signs_from for _, _, signs_from, _ in self._keys) < now - seconds:
            await self.rotate()

    def published(self) -> Keys:
        """Return the public keys of all signing keys that have not retired."""
        return Keys(tuple(Key(kid, _public(key)) for kid, key, _, _ in self._current()))

    def shown(self) -> tuple[SigningKey, ...]:
        """Return all signing keys that have not retired, for people."""
        signer = self._signer()[0]
        return tuple(
            SigningKey(
                kid,
                "signs" if kid == signer else "published" if retires is None else "retiring",
                datetime.fromtimestamp(signs_from, UTC),
                None if retires is None else datetime.fromtimestamp(retires, UTC),
            )
            for kid, _, signs_from, retires in self._current()
        )

    def _current(self) -> list[_Entry]:
        now = self._clock.steady()
        return [entry for entry in self._keys if entry[3] is None or entry[3] > now]

    def _signer(self) -> _Entry:
        now, current = self._clock.steady(), self._current()
        return next((entry for entry in reversed(current) if entry[2] <= now), current[0])

    def sign(self, claims: dict[str, Any]) -> str:
        """Return a token with these claims, signed with the newest key that has passed its lead time, or else with the oldest."""
        kid, key, _, _ = self._signer()
        return jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": "at+jwt", "kid": kid})

    async def _create_if_none_signs(self, tx: Transaction) -> None:
        if await tx.fetch_one("SELECT 1 FROM signing_keys WHERE retires IS NULL") is None:
            await self._create(tx, int(self._clock.steady()))

    async def _create(self, tx: Transaction, signs_from: int) -> None:
        key = Ed25519PrivateKey.generate()
        kid = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode()[:16]
        seed = base64.urlsafe_b64encode(key.private_bytes_raw()).decode()
        await tx.execute("UPDATE signing_keys SET retires = $1 WHERE retires IS NULL", signs_from + _RETIRES_AFTER)
        await tx.execute("INSERT INTO signing_keys (kid, private, signs_from) VALUES ($1, $2, $3)", kid, seed, signs_from)

    async def _correct(self) -> None:
        """Let a time beyond the lead, which was stored while the clock was ahead, count as now."""
        now, latest = int(self._clock.steady()), int(self._clock.steady() + self._lead)
        async with self._db.transaction() as tx:
            await tx.execute("UPDATE signing_keys SET signs_from = $1 WHERE signs_from > $2", now, latest)
            await tx.execute(
                "UPDATE signing_keys SET retires = $1 WHERE retires > $2", now + _RETIRES_AFTER, latest + _RETIRES_AFTER
            )


def _public(key: Ed25519PrivateKey) -> str:
    return base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
