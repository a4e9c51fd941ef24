"""Users' identities: the verifier of access tokens, and the system contract that the auth service implements.

Whoever receives a token verifies it by itself, with keys that come only from the auth service's key set. Auth being
down stops logins and nothing else: keys once learnt stay.
"""

import asyncio
import base64
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from runtime.clock import Clock
from runtime.contract.errors import ServiceError, Unauthenticated
from runtime.contract.messages import Contract, Request, Signal, Struct
from runtime.telemetry import Metrics

if TYPE_CHECKING:
    from jwt import PyJWK

identity = Contract("auth")
"""What the runtime itself asks of the auth service; `services/auth/messages.py` adds what other services may ask."""

MAX_TOKEN = 8 * 1024
"""Bytes that a token may have; a longer one is refused unread."""

MAX_LIFETIME = 15 * 60
"""Seconds that an access token may live."""

_LEEWAY = 5
_CACHED = 10_000
_RELEARN = 5.0


class Key(Struct):
    """A public Ed25519 key as a JWK (RFC 8037)."""

    kid: str
    x: str
    kty: str = "OKP"
    crv: str = "Ed25519"
    alg: str = "EdDSA"
    use: str = "sig"


class Keys(Struct):
    """A JWK set (RFC 7517, section 5)."""

    keys: tuple[Key, ...]


@identity.message
class KeySet(Request[Keys]):
    """The public keys that access tokens are signed with."""


class RevokedSession(Struct):
    """A session whose tokens are refused, and when the last of them expires."""

    sid: str
    until: datetime


class RevokedSessions(Struct):
    """What was revoked after the version asked about, and the version that this leads to."""

    version: int
    sessions: tuple[RevokedSession, ...]


@identity.message
class Revocations(Request[RevokedSessions]):
    """The sessions that were revoked since `version`; 0 asks for all that still matter."""

    version: int = 0


@identity.message
class SessionsRevoked(Signal):
    """A nudge: there is something new to ask `Revocations` for."""


class Identity(Struct):
    """The user whose token a message carries."""

    subject: str
    role: str
    session: str
    token_id: str
    expires: datetime
    kid: str


class TokenSettings(Struct):
    """What a token must say of itself."""

    issuer: str = "callboard"
    audience: str = "callboard"
    refresh_seconds: Annotated[float, Meta(gt=0)] = 2.0
    """How often each node asks for new revocations."""
    keys_seconds: Annotated[float, Meta(gt=0)] = 30.0
    """How often each node asks for new keys; shorter than the time between a key's publication and its use."""


class Verifier:
    """Verifies access tokens (JWT, RFC 7519; `at+jwt`, RFC 9068) for one node."""

    def __init__(self, settings: TokenSettings, clock: Clock, metrics: Metrics, ask: Callable[[Any], Awaitable[Any]]) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._ask = ask
        self._keys: dict[str, PyJWK] = {}
        self._learnt_at = float("-inf")
        self._revoked: dict[str, float] = {}
        self._version = 0
        self._confirmed_at = float("-inf")
        self._cache: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()
        self._used = False
        self._beginning = asyncio.Lock()
        metrics.gauge("revocations_age_seconds", self._age)

    @property
    def used(self) -> bool:
        """Whether a token was ever verified here; before that there is nothing to keep fresh."""
        return self._used

    def cached(self, token: str) -> Identity | None:
        """The identity of a token that was verified before and still holds, or None. Never waits."""
        digest = hashlib.sha256(token.encode()).digest()
        entry = self._cache.get(digest)
        if entry is None:
            return None
        found, expires = entry
        if expires <= self._clock.timestamp() or found.kid not in self._keys or found.session in self._revoked:
            del self._cache[digest]
            return None
        return found

    async def verify(self, token: str) -> Identity:
        """The identity that a token proves.

        Raises:
            Unauthenticated: it is no valid token, has expired, or its session was revoked.
            ServiceError: the keys are not known yet and auth cannot be asked (retryable).
        """
        if len(token) > MAX_TOKEN:
            raise Unauthenticated("the token is too large")
        found = self.cached(token)
        if found is not None:
            return found
        if not self._used:
            async with self._beginning:  # nobody is let in before the first answer, or its failure
                if not self._used:
                    await self.learn_revocations()
                    self._used = True
        found = self._decode(token, await self._key_for(token))
        if found.session in self._revoked:
            raise Unauthenticated("the session has ended")
        self._cache[hashlib.sha256(token.encode()).digest()] = (found, found.expires.timestamp())
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return found

    async def learn_keys(self) -> None:
        """Asks auth for its key set; a key that is no longer there is no longer accepted."""
        from jwt import PyJWK

        answer: Keys = await self._ask(KeySet())
        self._keys = {key.kid: PyJWK(_jwk(key), algorithm="EdDSA") for key in answer.keys}
        self._learnt_at = self._clock.monotonic()

    async def learn_revocations(self) -> None:
        """Asks auth for what was revoked since the last time. If auth cannot be asked, tokens hold until they expire."""
        try:
            answer: RevokedSessions = await self._ask(Revocations(self._version))
        except ServiceError:
            self._metrics.count("revocation_polls_failed_total")
            return
        self._version = answer.version
        self._confirmed_at = self._clock.monotonic()
        now = self._clock.timestamp()
        self._revoked = {sid: until for sid, until in self._revoked.items() if until > now}
        self._revoked |= {session.sid: session.until.timestamp() for session in answer.sessions}

    def _age(self) -> float:
        return 0.0 if not self._used else self._clock.monotonic() - self._confirmed_at

    async def _key_for(self, token: str) -> "PyJWK":
        kid = _header(token).get("kid")
        if not isinstance(kid, str):
            raise Unauthenticated("the token names no key")
        if kid not in self._keys and self._clock.monotonic() - self._learnt_at >= (_RELEARN if self._keys else 0):
            await self.learn_keys()
        if kid not in self._keys:
            raise Unauthenticated("the token was signed with an unknown key")
        return self._keys[kid]

    def _decode(self, token: str, key: "PyJWK") -> Identity:
        import jwt

        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=_LEEWAY,
                options={
                    "require": ["exp", "iat", "iss", "aud", "sub", "jti", "sid", "role"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token is not valid: {error}") from None
        expires, issued, now = claims["exp"], claims["iat"], self._clock.timestamp()
        if not isinstance(expires, int) or not isinstance(issued, int):
            raise Unauthenticated("the token's times are no integers")
        if expires <= now:
            raise Unauthenticated("the token has expired")
        if issued > now + _LEEWAY or expires - issued > MAX_LIFETIME:
            raise Unauthenticated("the token's lifetime is not acceptable")
        texts = [claims[name] for name in ("sub", "role", "sid", "jti")]
        if not all(isinstance(text, str) and text for text in texts):
            raise Unauthenticated("the token's claims are no strings")
        subject, role, session, token_id = texts
        return Identity(subject, role, session, token_id, datetime.fromtimestamp(expires, UTC), str(key.key_id))


def _jwk(key: Key) -> dict[str, str]:
    return {"kty": key.kty, "crv": key.crv, "alg": key.alg, "use": key.use, "kid": key.kid, "x": key.x}


def _header(token: str) -> dict[str, Any]:
    """The token's header, with the checks that PyJWT leaves out: `typ`, and no name given twice."""
    import json

    part = token.partition(".")[0]
    try:
        pairs = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), object_pairs_hook=list)
        header = dict(pairs)
    except (ValueError, TypeError, RecursionError):
        raise Unauthenticated("the token is not valid: its header cannot be read") from None
    if len(header) != len(pairs):
        raise Unauthenticated("the token is not valid: its header gives a name twice")
    if str(header.get("typ", "")).lower() != "at+jwt" or header.get("alg") != "EdDSA":
        raise Unauthenticated("the token is not valid: expected an EdDSA access token (at+jwt)")
    return header
