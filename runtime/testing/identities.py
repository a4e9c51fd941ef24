"""Users to test with: an auth service that signs whatever identity a test asks for."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

from runtime.contract.access import ANYONE
from runtime.identity import Key, Keys, KeySet, Revocations, RevokedSessions, identity
from runtime.service.context import Context
from runtime.service.handlers import handles
from runtime.service.service import Service


class FakeAuth(Service):
    """Stands where the auth service would: `Node([FakeAuth, Mine], …)`, then `token=FakeAuth.token("u1", "rider")`.

    The tokens are real ones: every service verifies them as it would in production.
    """

    contract = identity
    _key: Any = None

    @classmethod
    def _signing_key(cls) -> Any:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if FakeAuth._key is None:
            FakeAuth._key = Ed25519PrivateKey.generate()
        return FakeAuth._key

    @classmethod
    def token(cls, subject: str, role: str, *, session: str = "test", seconds: int = 600) -> str:
        """An access token of a user."""
        import jwt

        now = datetime.now(UTC)
        claims = {
            "iss": "callboard", "aud": "callboard", "sub": subject, "role": role, "sid": session, "jti": f"{subject}-{now.timestamp()}",
            "iat": int(now.timestamp()), "exp": int((now + timedelta(seconds=seconds)).timestamp()),
        }  # fmt: skip
        return jwt.encode(claims, cls._signing_key(), algorithm="EdDSA", headers={"typ": "at+jwt", "kid": "fake"})

    @handles(allow=ANYONE, idempotent=True)
    async def key_set(self, message: KeySet, ctx: Context) -> Keys:
        public = base64.urlsafe_b64encode(self._signing_key().public_key().public_bytes_raw()).decode().rstrip("=")
        return Keys((Key("fake", public),))

    @handles(allow=ANYONE, idempotent=True)
    async def revocations(self, message: Revocations, ctx: Context) -> RevokedSessions:
        return RevokedSessions(message.version, ())
