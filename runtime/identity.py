"""Identities of users: the verifier of access tokens, and the system contract that the auth service implements.

Each receiver of a token verifies it, with keys that come only from the auth service's key set. If the auth service is down,
only logins stop: the keys that a node has learned remain valid.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

from msgspec import Meta

from runtime.clock import Clock
from runtime.contract.errors import ServiceError, Unauthenticated
from runtime.contract.messages import Contract, Request, Signal, Struct
from runtime.issuers import ISSUED_TYPES, Algorithm, Identity, Issuer, IssuerVerifier
from runtime.keys import KeyRing, fingerprint
from runtime.metrics import Metrics
from runtime.tokens import LEEWAY, MAX_TOKEN, TOKEN_CHARACTERS, read_token, seconds_left, token_header

if TYPE_CHECKING:
    from jwt import PyJWK

identity: Contract = Contract("auth")
"""The requests that the runtime makes to the auth service. `services/auth/messages.py` extends it for other services."""

MAX_LIFETIME = 15 * 60
"""The longest lifetime of an access token, in seconds."""

_ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
_CACHED = 10_000


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
    """A session whose tokens are rejected, and when the last of them expires."""

    sid: str
    until: datetime


class RevokedSessions(Struct):
    """The sessions that were revoked after the requested version, and the current version."""

    version: int
    sessions: tuple[RevokedSession, ...]


@identity.message
class Revocations(Request[RevokedSessions]):
    """The sessions that were revoked since `version`; 0 requests all whose tokens have not expired."""

    version: int = 0


@identity.message
class SessionsRevoked(Signal):
    """A hint that `Revocations` has news."""


class TokenSettings(Struct):
    """What tokens have to contain, and how often keys and revocations are refreshed."""

    issuer: str = "callboard"
    audience: str = "callboard"
    refresh_seconds: Annotated[float, Meta(gt=0)] = 2.0
    """The seconds between two requests of a node for new revocations."""
    keys_seconds: Annotated[float, Meta(gt=0)] = 30.0
    """The seconds between two requests of a node for the key set. Shorter than the time from a key's publication to its use."""


class Verifier:
    """Verifies access tokens (JWT, RFC 7519; `at+jwt`, RFC 9068) for one node.

    Args:
        ask: makes a request to the auth service.
        issuers: who else issues tokens that are accepted.

    Attributes:
        own_keys: the public keys of the auth service.
    """

    def __init__(
        self,
        settings: TokenSettings,
        clock: Clock,
        metrics: Metrics,
        ask: Callable[[Any], Awaitable[Any]],
        issuers: Sequence[Issuer] = (),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._ask = ask
        self.own_keys: KeyRing = KeyRing(clock, identity.name, self._own_keys)
        self._issuers = {issuer.settings.issuer: IssuerVerifier(issuer, clock) for issuer in issuers}
        self._revoked: dict[str, tuple[float, float]] = {}
        self._version = 0
        self._confirmed_at = float("-inf")
        self._cache: OrderedDict[bytes, tuple[Identity, float, KeyRing, bytes]] = OrderedDict()
        self._used = False
        self._beginning = asyncio.Lock()
        metrics.gauge("revocations_age_seconds", self._age)

    def other_keys(self) -> list[KeyRing]:
        """Return the keys of the other issuers, as far as tokens of theirs have come."""
        return [issuer.keys for issuer in self._issuers.values() if issuer.keys.keys]

    @property
    def used(self) -> bool:
        """Whether a token of the auth service was ever verified on this node. Before that, no revocation has to be known."""
        return self._used

    def cached(self, token: str) -> Identity | None:
        """Return the identity of a token that was verified before and is still valid, or None. Never waits."""
        digest = _digest(token)
        entry = self._cache.get(digest)
        if entry is None:
            return None
        found, until, ring, signer = entry
        if self._clock.steady() >= until:
            return None  # it stays here, so that it does not become valid again by a clock that was set back
        if not ring.accepts(signer) or found.session in self._revoked:
            del self._cache[digest]
            return None
        return found

    async def verify(self, token: str) -> Identity:
        """Verify a token, and return its identity.

        Raises:
            Unauthenticated: if it is not a valid token, has expired, or its session was revoked.
            ServiceError: if the keys are not known yet and the auth service cannot be reached (retryable).
        """
        if len(token) > MAX_TOKEN:
            raise Unauthenticated("the token is too large")
        if not token or token.encode("utf-8", "replace").translate(None, TOKEN_CHARACTERS):
            raise Unauthenticated("the token contains characters that no token has")
        found, digest = self.cached(token), _digest(token)
        if found is not None:
            return found
        if digest in self._cache:
            raise Unauthenticated("the token has expired")
        issuer = self._issuer_of(token)
        if issuer is None:
            found, left, key = await self._verify_own(token)
        else:
            found, left, key = await issuer.verify(token)
        ring = self.own_keys if issuer is None else issuer.keys
        self._cache[digest] = (found, self._clock.steady() + left, ring, fingerprint(key))
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return found

    def _issuer_of(self, token: str) -> IssuerVerifier | None:
        """Return the issuer that a token names, or None if that is the auth service, or cannot be read.

        Raises:
            Unauthenticated: if it is neither the auth service nor one of the other issuers.
        """
        try:
            _, claims = read_token(token, ISSUED_TYPES, _ALGORITHMS)
        except ValueError:
            return None
        issuer = claims.get("iss", self._settings.issuer)
        if issuer == self._settings.issuer:
            return None
        found = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if found is None:
            raise Unauthenticated("the token is not valid: Invalid issuer")
        return found

    async def _verify_own(self, token: str) -> tuple[Identity, float, "PyJWK"]:
        """Verify a token of the auth service. Raises like `verify`."""
        key = await self._key_for(token)
        if not self._used:
            async with self._beginning:  # no token is accepted before the first answer, or its failure
                if not self._used:
                    await self.learn_revocations()
                    self._used = True
        found, left = self._decode(token, key)
        if found.session in self._revoked:
            raise Unauthenticated("the session has ended")
        return found, left, key

    async def _own_keys(self) -> dict[str, "PyJWK"]:
        from jwt import PyJWK

        answer: Keys = await self._ask(KeySet())
        return {key.kid: PyJWK(_jwk(key), algorithm="EdDSA") for key in answer.keys}

    async def learn_revocations(self) -> None:
        """Fetch new revocations from the auth service. If it cannot be reached, tokens remain valid until they expire."""
        try:
            answer: RevokedSessions = await self._ask(Revocations(self._version))
        except ServiceError:
            self._metrics.count("revocation_polls_failed_total")
            return
        self._version = answer.version
        self._confirmed_at = now = self._clock.monotonic()
        today = self._clock.timestamp()
        # Forgotten only when both clocks say so: one that was set must not let a revoked token in again
        self._revoked = {sid: end for sid, end in self._revoked.items() if end[0] > today or end[1] > now}
        self._revoked |= {session.sid: (session.until.timestamp(), now + MAX_LIFETIME) for session in answer.sessions}

    def _age(self) -> float:
        return 0.0 if not self._used else self._clock.monotonic() - self._confirmed_at

    async def _key_for(self, token: str) -> "PyJWK":
        try:
            kid = token_header(token, ("at+jwt",)).get("kid")
        except ValueError as error:
            raise Unauthenticated(f"the token is not valid: {error}") from None
        if not isinstance(kid, str):
            raise Unauthenticated("the token names no key")
        key = await self.own_keys.key(kid)
        if key is None:
            raise Unauthenticated("the token was signed with an unknown key")
        return key

    def _decode(self, token: str, key: "PyJWK") -> tuple[Identity, float]:
        """Return the identity in a token, and for how many seconds it is valid, however the clock is set meanwhile."""
        import jwt

        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=LEEWAY,
                options={
                    "require": ["exp", "iat", "iss", "aud", "sub", "jti", "sid"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token is not valid: {error}") from None
        left = seconds_left(claims, self._clock, MAX_LIFETIME)
        given, scope = claims.get("roles", [claims["role"]] if "role" in claims else []), claims.get("scope", "")
        if not isinstance(given, list) or not isinstance(scope, str):
            raise Unauthenticated("the token's roles are not a list, or its scope is not a string")
        roles, texts = cast(list[Any], given), [claims[name] for name in ("sub", "sid", "jti")]
        if not all(isinstance(text, str) and text for text in (*texts, *roles)):
            raise Unauthenticated("the token's claims are not strings")
        if not roles and not scope:
            raise Unauthenticated("the token has neither a role nor a scope")
        subject, session, token_id = texts
        identity = Identity(
            subject, roles[0] if roles else "", session, token_id, datetime.fromtimestamp(claims["exp"], UTC), str(key.key_id),
            tuple(roles), tuple(filter(None, scope.split(" "))),
        )  # fmt: skip
        return identity, left


@lru_cache(maxsize=1024)
def _digest(token: str) -> bytes:
    """Return what a token is cached by. The digests of tokens that come often are remembered."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _jwk(key: Key) -> dict[str, str]:
    return {"kty": key.kty, "crv": key.crv, "alg": key.alg, "use": key.use, "kid": key.kid, "x": key.x}
