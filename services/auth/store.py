"""The tables of the auth service: users, seeded passwords, sessions, refresh tokens, and revocations."""

import hashlib
import hmac
from datetime import UTC, datetime

from runtime import Clock, ConstraintError, Database, Random, Row, Struct, Transaction
from runtime.identity import MAX_LIFETIME, RevokedSession, RevokedSessions
from services.auth.messages import EmailTaken, Role, User
from services.auth.normal_forms import canonical_email

_WITH_EMAIL = "WHERE u.email IN ($1, $2) ORDER BY u.email = $1 DESC"
"""The user with an e-mail address in its canonical form, or else as an earlier version stored it: only in lower case."""
_REMEMBERED = 180 * 24 * 3600
"""Seconds for which an account remembers where its owner logged in."""


class Session(Struct):
    """A session, which a login starts and which lasts until it is revoked or expires."""

    sid: str
    user: User


class Store:
    """Reads and writes the tables. Methods that write take the transaction of the caller, except `prune`."""

    def __init__(self, db: Database, clock: Clock, random: Random) -> None:
        self._db = db
        self._clock = clock
        self._random = random

    # Users

    async def add_user(self, tx: Transaction, email: str, password_hash: str, name: str, role: Role) -> User:
        """Add a user and return it.

        Raises:
            EmailTaken: if the e-mail address is already registered.
        """
        user = User(str(self._random.uuid7()), canonical_email(email), name, role, False, self._clock.now())
        if await tx.fetch_one("SELECT 1 FROM users WHERE email = $1", email.lower()) is not None:
            raise EmailTaken  # perhaps as an earlier version stored it
        try:
            await tx.execute(
                "INSERT INTO users (id, email, name, role, disabled, password_hash, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
                user.id, user.email, user.name, user.role, user.disabled, password_hash, user.created_at,
            )  # fmt: skip
        except ConstraintError:
            raise EmailTaken from None
        return user

    async def canonicalize_emails(self) -> list[str]:
        """Bring the addresses that an earlier version stored into their canonical form.

        Otherwise somebody else could register that form, and the user could no longer log in.

        Returns:
            The ids of users whose canonical address belongs to another user already.
        """
        clashing: list[str] = []
        rows: list[Row] = []

        def note(row: Row) -> bool:
            if not row["email"].isascii() or "xn--" in row["email"]:
                rows.append(row)
            return True

        await self._db.scan(note, "SELECT id, email FROM users")
        async with self._db.transaction() as tx:
            for row in rows:
                canonical = canonical_email(row["email"])
                if canonical != row["email"] and not await tx.execute(
                    "UPDATE users SET email = $2 WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM users WHERE email = $2)",
                    row["id"], canonical,
                ):  # fmt: skip
                    clashing.append(row["id"])
        return clashing

    async def user(self, user_id: str) -> User | None:
        row = await self._db.fetch_one("SELECT * FROM users WHERE id = $1", user_id)
        return None if row is None else _user(row)

    async def user_by_email(self, email: str) -> tuple[User, str] | None:
        """Return a user and the hash of the password, or None if the user is unknown."""
        row = await self._db.fetch_one(f"SELECT u.* FROM users u {_WITH_EMAIL}", canonical_email(email), email.lower())
        return None if row is None else (_user(row), row["password_hash"])

    async def user_at(self, email: str, source: str) -> tuple[tuple[User, str] | None, bool]:
        """Return what `user_by_email` returns, and whether this source has logged in to the account before."""
        row = await self._db.fetch_one(
            "SELECT u.*, EXISTS (SELECT 1 FROM login_sources s WHERE s.user_id = u.id AND s.source = $3) AS familiar "
            f"FROM users u {_WITH_EMAIL}",
            canonical_email(email),
            email.lower(),
            source,
        )
        return (None, False) if row is None else ((_user(row), row["password_hash"]), bool(row["familiar"]))

    async def is_familiar(self, user_id: str, source: str) -> bool:
        """Return whether a source has logged in to an account before."""
        query = "SELECT 1 FROM login_sources WHERE user_id = $1 AND source = $2"
        return await self._db.fetch_one(query, user_id, source) is not None

    async def record_source(self, tx: Transaction, user_id: str, source: str) -> None:
        """Record that a source has logged in to an account. The last ten of each account are kept."""
        await tx.execute(
            "INSERT INTO login_sources (user_id, source, at) VALUES ($1, $2, $3) "
            "ON CONFLICT (user_id, source) DO UPDATE SET at = excluded.at",
            user_id,
            source,
            self._clock.steady(),
        )
        await tx.execute(
            "DELETE FROM login_sources WHERE user_id = $1 AND source <> $2 AND source NOT IN "
            "(SELECT source FROM login_sources WHERE user_id = $1 AND source <> $2 ORDER BY at DESC LIMIT 9)",
            user_id,
            source,
        )

    async def password_hash(self, user_id: str) -> str | None:
        row = await self._db.fetch_one("SELECT password_hash FROM users WHERE id = $1", user_id)
        return None if row is None else row["password_hash"]

    async def change_password(self, tx: Transaction, user_id: str, old_hash: str, new_hash: str) -> bool:
        """Set a new password, unless the old one has changed since it was verified. Return whether it was set."""
        return bool(
            await tx.execute(
                "UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2", user_id, old_hash, new_hash
            )
        )

    async def seed_hash(self, email: str) -> str | None:
        """Return the hash of the password that the settings last gave a user, or None."""
        row = await self._db.fetch_one("SELECT password_hash FROM seeds WHERE email = $1", canonical_email(email))
        return None if row is None else row["password_hash"]

    async def record_seed(self, tx: Transaction, email: str, password_hash: str) -> None:
        """Record the hash of the password that the settings gave a user."""
        await tx.execute(
            "INSERT INTO seeds (email, password_hash) VALUES ($1, $2) "
            "ON CONFLICT (email) DO UPDATE SET password_hash = excluded.password_hash",
            canonical_email(email),
            password_hash,
        )

    async def update_user(self, tx: Transaction, user_id: str, role: Role | None, disabled: bool | None) -> User | None:
        rows = await tx.fetch(
            "UPDATE users SET role = COALESCE($2, role), disabled = COALESCE($3, disabled) WHERE id = $1 RETURNING *",
            user_id,
            role,
            disabled,
        )
        return _user(rows[0]) if rows else None

    # Sessions and refresh tokens

    async def begin_session(self, tx: Transaction, user: User, password_hash: str, lifetime: float) -> tuple[str, str] | None:
        """Start a session and return its id and its first refresh token.

        Return None if the user's password or role has changed since it was read, or the user has been disabled.
        """
        sid, token = str(self._random.uuid7()), self._random.token()
        expires = int(self._clock.steady() + lifetime)
        inserted = await tx.execute(
            "INSERT INTO sessions (sid, user_id, secret, expires, revoked) SELECT $1, id, $2, $3, $4 FROM users "
            "WHERE id = $5 AND password_hash = $6 AND role = $7 AND NOT disabled",
            sid, self._random.token(), expires, False, user.id, password_hash, user.role,
        )  # fmt: skip
        if not inserted:
            return None
        await tx.execute("INSERT INTO refresh_tokens (hash, sid) VALUES ($1, $2)", _hash(token), sid)
        return sid, token

    async def rotate(self, tx: Transaction, token: str) -> tuple[Session, str] | None:
        """Return the session of a refresh token and the successor of the token, or None if the token is no longer valid.

        Until the successor is used, the token has the same one: two tabs may share a token, and a reply may be lost. If the
        token is presented after that, two parties have it and one of them stole it, so the session ends.
        """
        row = await tx.fetch_one(
            "SELECT s.sid, s.secret, s.expires, s.revoked, t.used_at, u.* FROM refresh_tokens t "
            "JOIN sessions s ON s.sid = t.sid JOIN users u ON u.id = s.user_id WHERE t.hash = $1",
            _hash(token),
        )
        now = self._clock.steady()
        if row is None or row["revoked"] or row["disabled"] or row["expires"] <= now:
            return None
        successor = hmac.new(row["secret"].encode(), token.encode(), hashlib.sha256).hexdigest()
        if row["used_at"] is None:
            await tx.execute("UPDATE refresh_tokens SET used_at = $2 WHERE hash = $1", _hash(token), now)
            await tx.execute("INSERT INTO refresh_tokens (hash, sid) VALUES ($1, $2)", _hash(successor), row["sid"])
        else:
            next_row = await tx.fetch_one("SELECT used_at FROM refresh_tokens WHERE hash = $1", _hash(successor))
            if next_row is None or next_row["used_at"] is not None:
                await self.revoke_session(tx, row["sid"])
                return None
        return Session(row["sid"], _user(row)), successor

    # Revocations

    async def revoke_session(self, tx: Transaction, sid: str) -> None:
        """End a session. Its access tokens and refresh tokens are refused from then on."""
        if not await tx.execute("UPDATE sessions SET revoked = $2 WHERE sid = $1 AND NOT revoked", sid, True):
            return
        until = int(self._clock.possible()[1]) + MAX_LIFETIME
        await tx.execute(
            "INSERT INTO revocations (version, sid, until) VALUES ((SELECT COALESCE(MAX(version), 0) + 1 FROM revocations), $1, $2)",
            sid,
            until,
        )

    async def revoke_user(self, tx: Transaction, user_id: str) -> None:
        """End all sessions of a user."""
        for row in await tx.fetch("SELECT sid FROM sessions WHERE user_id = $1 AND NOT revoked", user_id):
            await self.revoke_session(tx, row["sid"])

    async def revoked_since(self, version: int) -> RevokedSessions:
        """Return the sessions that were revoked after a version and that may still have unexpired access tokens."""
        rows = await self._db.fetch("SELECT version, sid, until FROM revocations WHERE version > $1 ORDER BY version", version)
        now = self._clock.possible()[0]
        sessions = tuple(
            RevokedSession(row["sid"], datetime.fromtimestamp(row["until"], UTC)) for row in rows if row["until"] > now
        )
        return RevokedSessions(rows[-1]["version"] if rows else version, sessions)

    async def prune(self, lifetime: float) -> None:
        """Delete expired sessions and revocations. The latest revocation stays, because it holds the current version.

        Args:
            lifetime: how long a session lasts. One that would last longer began while the clock was ahead, and begins now.
        """
        now, today = int(self._clock.steady()), int(self._clock.possible()[0])
        async with self._db.transaction() as tx:
            await tx.execute("UPDATE sessions SET expires = $1 WHERE expires > $1", now + int(lifetime) + 1)
            await tx.execute("UPDATE login_sources SET at = $1 WHERE at > $1", self._clock.steady())
        await self._db.delete_in_steps(
            "revocations", "version", "until < $1 AND version < (SELECT MAX(version) FROM revocations)", today
        )
        await self._db.delete_in_steps("refresh_tokens", "hash", "sid IN (SELECT sid FROM sessions WHERE expires < $1)", now)
        await self._db.delete_in_steps("sessions", "sid", "expires < $1", now)
        await self._db.delete_in_steps("login_sources", "user_id, source", "at < $1", now - _REMEMBERED)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _user(row: Row) -> User:
    return User(
        row["id"], row["email"], row["name"], row["role"], bool(row["disabled"]), datetime.fromisoformat(row["created_at"])
    )
