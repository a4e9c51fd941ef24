"""The keys that access tokens are signed with: published first, used later, retired after the longest lifetime."""

import base64
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime import Clock, Database
from runtime.identity import MAX_LIFETIME, Key, Keys


class SigningKeys:
    """The signing keys in auth's database.

    Args:
        lead: seconds between a key's publication and its first use; every node has learnt it by then.
    """

    def __init__(self, db: Database, clock: Clock, lead: float) -> None:
        self._db = db
        self._clock = clock
        self._lead = lead
        self._loaded: list[tuple[str, Ed25519PrivateKey, int, int | None]] = []

    async def load(self) -> None:
        """Reads the keys, and makes the first one in a new database, for use at once."""
        await self._read()
        if not self._loaded:
            await self._make(int(self._clock.timestamp()))

    async def rotate(self) -> None:
        """Publishes a new key, to be used from `lead` seconds on; the ones before retire when no token of theirs is left."""
        signs_from = int(self._clock.timestamp() + self._lead)
        await self._make(signs_from)

    async def rotate_if_older(self, seconds: float) -> None:
        """Rotates when the newest key has served long enough, and deletes what has retired."""
        now = self._clock.timestamp()
        await self._db.execute("DELETE FROM signing_keys WHERE retires < $1", int(now))
        await self._read()
        if max(signs_from for _, _, signs_from, _ in self._loaded) < now - seconds:
            await self.rotate()

    def published(self) -> Keys:
        """The public halves of all keys that are not retired."""
        now = self._clock.timestamp()
        return Keys(tuple(Key(kid, _public(key)) for kid, key, _, retires in self._loaded if retires is None or retires > now))

    def sign(self, claims: dict[str, Any]) -> str:
        """A token with these claims, signed with the newest key that may be used."""
        now = self._clock.timestamp()
        kid, key, _, _ = next(entry for entry in reversed(self._loaded) if entry[2] <= now)
        return jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": "at+jwt", "kid": kid})

    async def _make(self, signs_from: int) -> None:
        key = Ed25519PrivateKey.generate()
        kid = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode()[:16]
        seed = base64.urlsafe_b64encode(key.private_bytes_raw()).decode()
        async with self._db.transaction() as tx:
            await tx.execute("UPDATE signing_keys SET retires = $1 WHERE retires IS NULL", signs_from + MAX_LIFETIME + 60)
            await tx.execute("INSERT INTO signing_keys (kid, private, signs_from) VALUES ($1, $2, $3)", kid, seed, signs_from)
        await self._read()

    async def _read(self) -> None:
        rows = await self._db.fetch(
            "SELECT kid, private, signs_from, retires FROM signing_keys ORDER BY signs_from, retires IS NULL"
        )
        self._loaded = [
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
