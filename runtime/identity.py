"""Identities of users: the verifier of access tokens, and the system contract that the auth service implements.

Each receiver of a token verifies it, with keys that come only from the auth service's key set. If the auth service is down,
only logins stop: the keys that a node has learned remain valid.
"""

import asyncio
import base64
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
from msgspec import Meta

from runtime.clock import Clock
from runtime.contract.errors import ServiceError, Unauthenticated, Unreachable
from runtime.contract.messages import Contract, Request, Signal, Struct
from runtime.telemetry import Metrics

if TYPE_CHECKING:
    from jwt import PyJWK

identity: Contract = Contract("auth")
"""The requests that the runtime makes to the auth service. `services/auth/messages.py` extends it for other services."""

MAX_TOKEN = 8 * 1024
"""The largest size of a token, in bytes. A larger one is rejected before it is parsed."""

MAX_LIFETIME = 15 * 60
"""The longest lifetime of an access token, in seconds."""

TOKEN_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
"""What a token consists of. Any other text is rejected before it is sent anywhere."""

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_LEEWAY = 5
_CACHED = 10_000
_PAUSE = 5.0
"""The seconds after an answer in which tokens with unknown keys cause no further request for the key set."""
_PAUSE_WITHOUT_KEYS = 2.0
"""The same, while no key is known."""


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


class Identity(Struct):
    """The user whose token came with a message.

    Attributes:
        subject: the user's id.
        role: the user's role; the first one of several, and empty without any.
        session: the id of the login session.
        token_id: the id of the token.
        expires: when the token expires.
        kid: the id of the key that signed it.
        roles: all roles of the user.
        scopes: what the token may be used for.
    """

    subject: str
    role: str
    session: str
    token_id: str
    expires: datetime
    kid: str
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


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
    """

    def __init__(self, settings: TokenSettings, clock: Clock, metrics: Metrics, ask: Callable[[Any], Awaitable[Any]]) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._ask = ask
        self._keys: dict[str, PyJWK] = {}
        self._keys_asked_at = float("-inf")
        self._keys_failure: ServiceError | None = None
        self._learning = asyncio.Lock()
        self._revoked: dict[str, tuple[float, float]] = {}
        self._version = 0
        self._confirmed_at = float("-inf")
        self._cache: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()
        self._used = False
        self._beginning = asyncio.Lock()
        metrics.gauge("revocations_age_seconds", self._age)

    @property
    def keys_asked_at(self) -> float:
        """When the key set was last requested, on the clock's `monotonic` scale."""
        return self._keys_asked_at

    @property
    def used(self) -> bool:
        """Whether a token was ever verified on this node. Before that, nothing has to be kept fresh."""
        return self._used

    def cached(self, token: str) -> Identity | None:
        """Return the identity of a token that was verified before and is still valid, or None. Never waits."""
        digest = _digest(token)
        entry = self._cache.get(digest)
        if entry is None:
            return None
        found, until = entry
        if self._clock.steady() >= until:
            return None  # it stays here, so that it does not become valid again by a clock that was set back
        if found.kid not in self._keys or found.session in self._revoked:
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
        if not self._used:
            async with self._beginning:  # no token is accepted before the first answer, or its failure
                if not self._used:
                    await self.learn_revocations()
                    self._used = True
        found, left = self._decode(token, await self._key_for(token))
        if found.session in self._revoked:
            raise Unauthenticated("the session has ended")
        self._cache[digest] = (found, self._clock.steady() + left)
        if len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return found

    async def learn_keys(self) -> None:
        """Fetch the key set from the auth service. A key that is missing from it is no longer accepted."""
        from jwt import PyJWK

        self._keys_failure = Unreachable(identity.name)  # if this is cancelled
        try:
            answer: Keys = await self._ask(KeySet())
            self._keys = {key.kid: PyJWK(_jwk(key), algorithm="EdDSA") for key in answer.keys}
            self._keys_failure = None
        except ServiceError as error:
            self._keys_failure = error
            raise
        finally:
            self._keys_asked_at = self._clock.monotonic()

    async def _learn_key(self, kid: str) -> None:
        """Fetch the key set because a token names an unknown key, one request at a time and with a pause after each.

        So many forged tokens cost auth one request, and a new key is still known within seconds.

        Raises:
            ServiceError: if the last request failed.
        """
        async with self._learning:
            if kid in self._keys:
                return
            pause = _PAUSE if self._keys else _PAUSE_WITHOUT_KEYS
            if self._clock.monotonic() - self._keys_asked_at >= pause:
                await self.learn_keys()
            elif self._keys_failure is not None:
                raise self._keys_failure.with_traceback(None)

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
        if kid not in self._keys:
            await self._learn_key(kid)
        if kid not in self._keys:
            raise Unauthenticated("the token was signed with an unknown key")
        return self._keys[kid]

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
                leeway=_LEEWAY,
                options={
                    "require": ["exp", "iat", "iss", "aud", "sub", "jti", "sid"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token is not valid: {error}") from None
        expires, issued = claims["exp"], claims["iat"]
        earliest, latest = self._clock.possible()
        if not isinstance(expires, int) or not isinstance(issued, int):
            raise Unauthenticated("the token's times are not integers")
        if expires <= earliest:
            raise Unauthenticated("the token has expired")
        if issued > latest + _LEEWAY or expires - issued > MAX_LIFETIME:
            raise Unauthenticated("the token's lifetime is not acceptable")
        given, scope = claims.get("roles", [claims["role"]] if "role" in claims else []), claims.get("scope", "")
        if not isinstance(given, list) or not isinstance(scope, str):
            raise Unauthenticated("the token's roles are not a list, or its scope is not a string")
        roles, texts = cast(list[Any], given), [claims[name] for name in ("sub", "sid", "jti")]
        if not all(isinstance(text, str) and text for text in (*texts, *roles)):
            raise Unauthenticated("the token's claims are not strings")
        if not roles and not scope:
            raise Unauthenticated("the token has neither a role nor a scope")
        subject, session, token_id = texts
        left = expires - latest if issued > earliest + _LEEWAY else expires - earliest
        if left <= 0:  # it was stamped by a time of day between these two
            left = min(expires - earliest, MAX_LIFETIME)
        identity = Identity(
            subject, roles[0] if roles else "", session, token_id, datetime.fromtimestamp(expires, UTC), str(key.key_id),
            tuple(roles), tuple(filter(None, scope.split(" "))),
        )  # fmt: skip
        return identity, left


@lru_cache(maxsize=1024)
def _digest(token: str) -> bytes:
    """Return what a token is cached by. The digests of tokens that come often are remembered."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _jwk(key: Key) -> dict[str, str]:
    return {"kty": key.kty, "crv": key.crv, "alg": key.alg, "use": key.use, "kid": key.kid, "x": key.x}


def token_header(token: str, types: tuple[str, ...]) -> dict[str, Any]:
    """Return the header of a JWT, after the checks that PyJWT omits.

    The three parts are strict base64url (RFC 7515, section 2). Header and claims are JSON objects in UTF-8 in which no name
    occurs twice, and they contain no unpaired surrogates. `typ` and `alg` are as expected, and nothing is critical (`crit`).

    Args:
        types: the accepted values of `typ`, in lower case. The prefix `application/` may precede them (RFC 7515, section 4.1.9).

    Raises:
        ValueError: if the token cannot be read or its header is not acceptable.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("expected three parts")
    header, _ = _json_object(parts[0], "header"), _json_object(parts[1], "claims")
    _base64url(parts[2], "signature")
    if str(header.get("typ", "")).lower().removeprefix("application/") not in types or header.get("alg") != "EdDSA":
        raise ValueError(f"expected an EdDSA token ({' or '.join(types)})")
    if "crit" in header:
        raise ValueError("its header has a critical extension")
    return header


def _base64url(part: str, what: str) -> bytes:
    """Decode base64url without padding. Each value has exactly one accepted spelling."""
    if _BASE64URL.fullmatch(part) is None or len(part) % 4 == 1:
        raise ValueError(f"its {what} cannot be read: expected base64url without padding")
    decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():
        raise ValueError(f"its {what} cannot be read: its last character has unused bits")
    return decoded


def _json_object(part: str, what: str) -> dict[str, Any]:
    import json

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise _Twice
        return dict(pairs)

    text = _base64url(part, what)
    try:
        msgspec.json.decode(text)  # stricter than json: UTF-8, no unpaired surrogates, finite numbers
        found = json.loads(text, object_pairs_hook=unique)
    except _Twice:
        raise ValueError(f"its {what} gives a name twice") from None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ValueError(f"its {what} cannot be read") from None
    if not isinstance(found, dict):
        raise ValueError(f"its {what} is not an object")
    return cast(dict[str, Any], found)


class _Twice(Exception):
    """A name occurs twice in a JSON object."""
