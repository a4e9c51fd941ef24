"""Issuers of access tokens beside the auth service, such as an OpenID Connect provider."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from runtime.clock import Clock
from runtime.contract.errors import Unauthenticated
from runtime.contract.messages import Struct
from runtime.keys import KeyRing
from runtime.tokens import LEEWAY, read_token, seconds_left

if TYPE_CHECKING:
    from jwt import PyJWK

Algorithm = Literal["RS256", "ES256", "EdDSA"]

ISSUED_TYPES = ("at+jwt", "jwt", "")
"""The accepted values of `typ` (RFC 9068, section 2.1): many providers write `JWT`, or nothing."""
TRUSTED_URL = re.compile(r"^(https://[^/?#@]+([/?].*)?$|http://(localhost|127\.0\.0\.1|\[::1\])([:/][^@]*)?$)")
"""URLs from which keys may come: over TLS, or from this machine. None has credentials in it."""
_KEY_TYPES = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
_CURVES = {"ES256": "P-256", "EdDSA": "Ed25519"}
_LEAST_RSA_BITS = 2048


class Identity(Struct):
    """The user whose token came with a message.

    Attributes:
        subject: the user's id. Ids of different issuers may be equal.
        role: the user's role; the first one of several, and empty without any.
        session: the id of the login session.
        token_id: the id of the token.
        expires: when the token expires.
        kid: the id of the key that signed it.
        roles: all roles of the user.
        scopes: what the token may be used for.
        issuer: who issued the token, of `identity.issuers`; empty for the auth service.
    """

    subject: str
    role: str
    session: str
    token_id: str
    expires: datetime
    kid: str
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    issuer: str = ""

    @property
    def key(self) -> str:
        """What no other user has: the id, or a JSON array of issuer and id."""
        return self.subject if not self.issuer else msgspec.json.encode((self.issuer, self.subject)).decode()


class IssuerSettings(Struct):
    """An issuer of access tokens whose users are accepted, and where its tokens say who they are."""

    issuer: Annotated[str, Meta(min_length=1)]
    """The claim `iss` of its tokens, such as `https://login.example.com/realms/rides`."""
    audience: Annotated[str, Meta(min_length=1)]
    """What their claim `aud` has to contain."""
    jwks_url: Annotated[str, Meta(pattern=TRUSTED_URL.pattern)] | None = None
    """The URL of its key set (RFC 7517). By default it is the one that `<issuer>/.well-known/openid-configuration` names."""
    jwks_file: str | None = None
    """A file with its key set, instead of a URL. It is read again when it changes."""
    ca_file: str | None = None
    """A file of certificates that the URL is trusted by, instead of those of the operating system."""
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1)] = ("RS256", "ES256", "EdDSA")
    """The signature algorithms that are accepted."""
    subject_claim: Annotated[str, Meta(min_length=1)] = "sub"
    """The claim with the user's id. A dot leads into an object."""
    role_claim: Annotated[str, Meta(min_length=1)] = "roles"
    """The claim with the user's role or list of roles, such as `realm_access.roles`. Without it, the user has none."""
    scope_claim: Annotated[str, Meta(min_length=1)] = "scope"
    """The claim with the scopes, as a list or separated by spaces."""
    max_lifetime: Annotated[int, Meta(ge=1)] = 24 * 3600
    """The longest lifetime of a token that is accepted, in seconds. It cannot be revoked meanwhile."""


FetchKeys = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
"""Returns the keys of an issuer as JWKs (RFC 7517). Raises ServiceError."""


class Issuer:
    """An issuer as a node is given it: its settings, and what fetches its keys."""

    def __init__(self, settings: IssuerSettings, fetch: FetchKeys) -> None:
        self.settings: IssuerSettings = settings
        self.fetch: FetchKeys = fetch

    def __repr__(self) -> str:
        return f"<Issuer {self.settings.issuer}>"


class IssuerVerifier:
    """Verifies the access tokens of one issuer for one node.

    Attributes:
        keys: its public keys.
    """

    def __init__(self, issuer: Issuer, clock: Clock) -> None:
        self._settings = issuer.settings
        self._fetch = issuer.fetch
        self._clock = clock
        self.keys: KeyRing = KeyRing(clock, issuer.settings.issuer, self._usable_keys)

    async def _usable_keys(self) -> dict[str, "PyJWK"]:
        """Fetch the keys, and return those that can sign tokens here. Others, such as keys for encryption, are left out."""
        found: dict[str, PyJWK] = {}
        for jwk in await self._fetch():
            key = _usable(jwk, self._settings.algorithms)
            if key is not None:
                found[_ring_key(str(jwk.get("kid", "")), key.algorithm_name)] = key
        return found

    async def verify(self, token: str) -> tuple[Identity, float, "PyJWK"]:
        """Return the identity in a token, for how many seconds it is valid, and the key that signed it.

        Raises:
            Unauthenticated: if it is not a valid token, or has expired.
            ServiceError: if the keys are not known yet and cannot be fetched (retryable).
        """
        import jwt

        settings = self._settings
        try:
            header, _ = read_token(token, ISSUED_TYPES, settings.algorithms)
        except ValueError as error:
            raise Unauthenticated(f"the token is not valid: {error}") from None
        kid, algorithm = header.get("kid", ""), str(header["alg"])
        key = await self.keys.key(_ring_key(kid, algorithm)) if isinstance(kid, str) else None
        if key is None and kid == "":  # OpenID Connect Core 1.0, section 10.1
            fitting = [key for key in self.keys.keys.values() if key.algorithm_name == algorithm]
            key = fitting[0] if len(fitting) == 1 else None
        if key is None:
            raise Unauthenticated("the token was signed with an unknown key")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=settings.issuer,
                audience=settings.audience,
                leeway=LEEWAY,
                options={"require": ["exp", "iat", "iss", "aud"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token is not valid: {error}") from None
        left = seconds_left(claims, self._clock, settings.max_lifetime)
        subject = _claim(claims, settings.subject_claim)
        if not isinstance(subject, str) or not subject:
            raise Unauthenticated(f"the token's claim {settings.subject_claim} is not a text")
        roles = _texts(claims, settings.role_claim, separator=None)
        scopes = _texts(claims, settings.scope_claim, separator=" ")
        session, token_id = (str(claims.get(name) or "") for name in ("sid", "jti"))
        expires = datetime.fromtimestamp(claims["exp"], UTC)
        role = roles[0] if roles else ""
        return Identity(subject, role, session, token_id, expires, str(kid), roles, scopes, settings.issuer), left, key


def _ring_key(kid: str, algorithm: str) -> str:
    """Return what a key is found by: keys of different types may have one id (RFC 7517, section 4.5)."""
    return f"{algorithm} {kid}"


def _usable(jwk: Mapping[str, Any], algorithms: Sequence[Algorithm]) -> "PyJWK | None":
    """Return a public key with which one of the algorithms is verified, or None if a JWK is not one."""
    import jwt

    if jwk.get("use", "sig") != "sig":
        return None
    for algorithm in algorithms:
        named = jwk.get("alg", algorithm) in (algorithm, "Ed25519" if algorithm == "EdDSA" else algorithm)  # RFC 9864
        if not named or jwk.get("kty") != _KEY_TYPES[algorithm] or jwk.get("crv") != _CURVES.get(algorithm):
            continue
        try:
            key = jwt.PyJWK({name: value for name, value in jwk.items() if name != "d"}, algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        return None if algorithm == "RS256" and key.key.key_size < _LEAST_RSA_BITS else key
    return None


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return the claim of a name, or one inside of objects if the name has dots; None if there is none."""
    if path in claims:
        return claims[path]  # a name may itself contain dots, as a URL does
    found: Any = claims
    for name in path.split("."):
        found = cast(Mapping[str, Any], found).get(name) if isinstance(found, dict) else None
    return found


def _texts(claims: Mapping[str, Any], path: str, separator: str | None) -> tuple[str, ...]:
    found = _claim(claims, path)
    if isinstance(found, str):
        found = found.split(separator) if separator else [found]
    listed = cast(list[Any], [] if found is None else found if isinstance(found, list) else [found])
    if not all(isinstance(text, str) for text in listed):
        raise Unauthenticated(f"the token's claim {path} is neither a text nor a list of texts")
    return tuple(filter(None, cast(list[str], listed)))
