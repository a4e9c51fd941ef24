"""The keys that sign access tokens.

A key is published before it signs, and it retires after the longest lifetime of a token. So keys rotate without a refused request.
"""

import base64
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime import Clock, Database
from runtime.identity import MAX_LIFETIME, Key, Keys

_RETIRES_AFTER = MAX_LIFETIME + 60
"""Seconds from the first use of the next key until a key retires."""


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
        self._keys: list[tuple[str, Ed25519PrivateKey, int, int | None]] = []

    async def load(self) -> None:
        """Read the keys. In a new database, create the first key, which signs immediately."""
        await self._read()
        if not self._keys:
            await self._create(int(self._clock.steady()))

    async def rotate(self) -> None:
        """Publish a new key, which signs after `lead` seconds. The previous keys retire when all tokens that they signed have expired."""
        signs_from = int(self._clock.steady() + self._lead)
        await self._create(signs_from)

    async def rotate_if_older(self, seconds: float) -> None:
        """Delete retired keys, and rotate if the newest key has signed for longer than `seconds`."""
        now = self._clock.steady()
        await self._db.execute("DELETE FROM signing_keys WHERE retires < $1", int(now))
        await self._read()
        if max(signs_from for _, _, signs_from, _ in self._keys) < now - seconds:
            await self.rotate()

    def published(self) -> Keys:
        """Return the public keys of all signing keys that have not retired."""
        now = self._clock.steady()
        return Keys(tuple(Key(kid, _public(key)) for kid, key, _, retires in self._keys if retires is None or retires > now))

    def sign(self, claims: dict[str, Any]) -> str:
        """Return a token with these claims, signed with the newest key that has passed its lead time, or else with the oldest."""
        now = self._clock.steady()
        kid, key, _, _ = next((entry for entry in reversed(self._keys) if entry[2] <= now), self._keys[0])
        return jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": "at+jwt", "kid": kid})

    async def _create(self, signs_from: int) -> None:
        key = Ed25519PrivateKey.generate()
        kid = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode()[:16]
        seed = base64.urlsafe_b64encode(key.private_bytes_raw()).decode()
        async with self._db.transaction() as tx:
            await tx.execute("UPDATE signing_keys SET retires = $1 WHERE retires IS NULL", signs_from + _RETIRES_AFTER)
            await tx.execute("INSERT INTO signing_keys (kid, private, signs_from) VALUES ($1, $2, $3)", kid, seed, signs_from)
        await self._read()

    async def _read(self) -> None:
        """Read the keys. A time beyond the lead was stored while the clock was ahead, and counts as now."""
        now, latest = int(self._clock.steady()), int(self._clock.steady() + self._lead)
        async with self._db.transaction() as tx:
            await tx.execute("UPDATE signing_keys SET signs_from = $1 WHERE signs_from > $2", now, latest)
            await tx.execute(
                "UPDATE signing_keys SET retires = $1 WHERE retires > $2", now + _RETIRES_AFTER, latest + _RETIRES_AFTER
            )
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


def _public(key: Ed25519PrivateKey) -> str:
    return base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
