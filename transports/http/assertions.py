"""Assertions: how one service proves to another who it is.

An assertion is a short-lived JWT (RFC 7519), signed by the asking service's own Ed25519 key, for one callee alone. The
public halves of all keys are configuration: there is nobody whom both sides would have to ask.
"""

import base64
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from runtime import Clock, StartError

if TYPE_CHECKING:
    from jwt import PyJWK

TYPE = "callboard-peer+jwt"
LIFETIME = 60
"""Seconds that an assertion is valid."""
_RENEWED = 30
_LEEWAY = 10
"""Seconds by which two machines' clocks may differ."""
_LAST = 2**40
_LONGEST = 2048
_CACHED = 4096
NODE = "runtime"
"""The name under which every node asks for keys and revocations, whichever services it hosts."""


class Refused(Exception):
    """An assertion proves nothing here; the message says why."""


def owner(kid: str) -> str:
    """The service whose key has that id: `wallet`, or, while keys are changed, `wallet.2`."""
    return kid.partition(".")[0]


class _Jwk(msgspec.Struct, kw_only=True, omit_defaults=True):
    kty: str
    crv: str
    kid: str
    x: str
    d: str = ""


class _Jwks(msgspec.Struct):
    keys: tuple[_Jwk, ...]


def _read(text: str, setting: str, *, private: bool) -> dict[str, "PyJWK"]:
    """The keys of a JWK set (RFC 7517, section 5), by their ids.

    Raises:
        StartError: it is none, or has other keys than Ed25519's.
    """
    from jwt import PyJWK, PyJWTError

    try:
        found = msgspec.json.decode(text, type=_Jwks)
        if not private and any(key.d for key in found.keys):
            raise StartError(f"{setting}: it has private keys: only their public halves belong there")
        if private and not all(key.d for key in found.keys):
            raise StartError(f"{setting}: expected private keys (with `d`)")
        if not found.keys:
            raise StartError(f"{setting}: it has no key")
        return {key.kid: PyJWK(msgspec.to_builtins(key), algorithm="EdDSA") for key in found.keys}
    except (msgspec.DecodeError, PyJWTError, ValueError):  # what they say may quote the key
        raise StartError(f"{setting}: expected a JWK set of Ed25519 keys, each with `kid`, the service's name") from None


class Signer:
    """Makes the assertions of the services on one node.

    Args:
        keys: their private keys, as a JWK set.

    Raises:
        StartError: those are no keys.
    """

    def __init__(self, keys: str, clock: Clock) -> None:
        self._keys = _read(keys, "transport.http.key", private=True)
        self._clock = clock
        self._made: dict[tuple[str, str], tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f"<Signer for {', '.join(self._keys)}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The services that it can speak for."""
        return tuple(owner(kid) for kid in self._keys)

    def assertion(self, speaker: str, audience: str) -> str:
        """What proves to the service `audience` that `speaker` speaks: the same for half a minute.

        Raises:
            ValueError: there is no key to say so.
        """
        made = self._made.get((speaker, audience))
        now = self._clock.timestamp()
        if made is not None and made[1] - _RENEWED <= now < made[1]:
            return made[0]
        import jwt

        able = [kid for kid in self._keys if owner(kid) == speaker] or (list(self._keys) if speaker == NODE else [])
        if not able:
            raise ValueError(f"this node has no key of {speaker} (transport.http.key has those of {', '.join(self.names)})")
        kid = able[-1]
        claims = {"iss": owner(kid), "sub": speaker, "aud": audience, "iat": int(now), "exp": int(now) + LIFETIME}
        text = jwt.encode(claims, self._keys[kid].key, algorithm="EdDSA", headers={"kid": kid, "typ": TYPE})
        self._made[speaker, audience] = (text, now + _RENEWED)
        return text


class Verifier:
    """Says who an assertion proves to be speaking.

    Args:
        keys: the public keys of all who may, as a JWK set.

    Raises:
        StartError: those are no keys.
    """

    def __init__(self, keys: str, clock: Clock) -> None:
        self._keys = _read(keys, "transport.http.peer_keys", private=False)
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[str, str, float]] = OrderedDict()

    def caller(self, assertion: str | None, audience: str) -> str:
        """The service that speaks.

        Raises:
            Refused: nobody has proven to speak to `audience`.
        """
        if not assertion:
            raise Refused("no assertion came: expected one in Callboard-Assertion")
        if len(assertion) > _LONGEST:
            raise Refused("the assertion is too large")
        digest = hashlib.sha256(assertion.encode("utf-8", "replace")).digest()
        known = self._known.get(digest)
        if known is None:
            known = self._known[digest] = self._verified(assertion)
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        speaker, meant_for, expires = known
        if expires + _LEEWAY <= self._clock.timestamp():
            raise Refused("the assertion has expired: do the clocks differ?")
        if meant_for != audience:
            raise Refused("the assertion is for somebody else")
        return speaker

    def _verified(self, assertion: str) -> tuple[str, str, float]:
        import jwt

        kid = _kid(assertion)
        key = self._keys.get(kid)
        if key is None:
            raise Refused("the assertion was signed with a key that is not known here (transport.http.peer_keys)")
        try:
            claims = jwt.decode(
                assertion, key, algorithms=["EdDSA"],
                options={"require": ["iss", "sub", "aud", "iat", "exp"], "verify_exp": False, "verify_iat": False, "verify_aud": False},
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise Refused(f"the assertion is not valid: {error}") from None
        issuer, speaker, audience, issued, expires = (claims[name] for name in ("iss", "sub", "aud", "iat", "exp"))
        if not isinstance(issued, int) or not isinstance(expires, int) or not isinstance(audience, str):
            raise Refused("the assertion's claims have the wrong types")
        if not 0 < issued < _LAST or not 0 < expires < _LAST:
            raise Refused("the assertion's times are none")
        now = self._clock.timestamp()
        if issued > now + _LEEWAY or expires - issued > LIFETIME:
            raise Refused("the assertion is from the future, or lives too long: do the clocks differ?")
        if issuer != owner(kid) or speaker not in (issuer, NODE):
            raise Refused("the assertion speaks for somebody whose key it was not signed with")
        return speaker, audience, float(expires)


class _Header(msgspec.Struct):
    typ: str
    alg: str
    kid: str


def _kid(token: str) -> str:
    """The key that an assertion says it was signed with."""
    part = token.partition(".")[0]
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=_Header)
    except (ValueError, RecursionError):
        found = _Header("", "", "")
    if found.typ != TYPE or found.alg != "EdDSA":
        raise Refused(f"expected an EdDSA assertion ({TYPE})")
    return found.kid
