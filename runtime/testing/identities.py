"""Fake identities: an auth service that signs a token for any user that a test names."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from runtime.contract.access import ANYONE
from runtime.contract.messages import Contract
from runtime.identity import Key, Keys, KeySet, Revocations, RevokedSessions, identity
from runtime.service.context import Context
from runtime.service.handlers import handles
from runtime.service.service import Service

_AGE = 60
"""How many seconds ago the tokens were issued. So a node accepts them whose manual clock has stood still for that long."""


class FakeAuth(Service):
    """Replaces the auth service: `Node([FakeAuth, Mine], …)`, then `token=FakeAuth.token("u1", "rider")`.

    The tokens are real: every service verifies them as in production.
    """

    contract: ClassVar[Contract] = identity
    _key: Any = None

    @classmethod
    def _signing_key(cls) -> Any:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if FakeAuth._key is None:
            FakeAuth._key = Ed25519PrivateKey.generate()
        return FakeAuth._key

    @classmethod
    def token(
        cls, subject: str, role: str, *others: str, scopes: Sequence[str] = (), session: str = "test", seconds: int = 600
    ) -> str:
        """Return an access token of a user.

        Args:
            subject: the user's id.
            role: the user's role.
            others: further roles.
            scopes: the scopes of the token.
            session: the id of the login session.
            seconds: the time from now until it expires, at most 14 minutes.
        """
        import jwt

        now = datetime.now(UTC)
        claims = {
            "iss": "callboard", "aud": "callboard", "sub": subject, "role": role, "roles": [role, *others], "scope": " ".join(scopes), "sid": session, "jti": f"{subject}-{now.timestamp()}",
            "iat": int(now.timestamp()) - _AGE, "exp": int((now + timedelta(seconds=seconds)).timestamp()),
        }  # fmt: skip
        return jwt.encode(claims, cls._signing_key(), algorithm="EdDSA", headers={"typ": "at+jwt", "kid": "fake"})

    @handles(allow=ANYONE, idempotent=True)
    async def key_set(self, message: KeySet, ctx: Context) -> Keys:
        """Return the public key."""
        public = base64.urlsafe_b64encode(self._signing_key().public_key().public_bytes_raw()).decode().rstrip("=")
        return Keys((Key("fake", public),))

    @handles(allow=ANYONE, idempotent=True)
    async def revocations(self, message: Revocations, ctx: Context) -> RevokedSessions:
        """Return no revocations."""
        return RevokedSessions(message.version, ())
