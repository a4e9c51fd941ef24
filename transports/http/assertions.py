"""Assertions: how one service proves its identity to another.

An assertion is a short-lived JWT (RFC 7519) for a single callee, signed with the calling service's own Ed25519 key. All public
keys are configuration, so that neither side depends on a third party.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from runtime import Clock, StartError
from runtime.telemetry import log_key_change, logger
from runtime.tokens import token_header

if TYPE_CHECKING:
    from jwt import PyJWK

TYPE = "callboard-peer+jwt"
LIFETIME = 60
"""Seconds for which an assertion is valid."""
_RENEWED = 30
"""Seconds for which an assertion is used before a new one is made."""
_LEEWAY = 10
"""Seconds by which the clocks of two machines may differ."""
_LAST = 2**40
"""The first timestamp, in seconds since the epoch, that is too large."""
_LONGEST = 2048
"""Characters of an assertion, at most."""
_CACHED = 4096
"""Verified assertions that are remembered, by their text: a digest of it would cost more than the rest of the look-up."""
NODE = "runtime"
"""The name under which every node asks for keys and revocations, regardless of the services that it hosts."""


class Refused(Exception):
    """Raised if an assertion does not prove who the caller is, with the reason as its message."""


def owner(kid: str) -> str:
    """Return the service that a key id belongs to: `wallet` and, during a key rotation, `wallet.2` both belong to `wallet`."""
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
    """Return the keys of a JWK set (RFC 7517, section 5) by their ids.

    Raises:
        StartError: if the text is not a JWK set, or has keys other than Ed25519 keys.
    """
    from jwt import PyJWK, PyJWTError

    try:
        found = msgspec.json.decode(text, type=_Jwks)
        if not private and any(key.d for key in found.keys):
            raise StartError(f"{setting}: it has private keys, but only public keys belong there")
        if private and not all(key.d for key in found.keys):
            raise StartError(f"{setting}: expected private keys (with `d`)")
        if not found.keys:
            raise StartError(f"{setting}: it has no key")
        return {key.kid: PyJWK(msgspec.to_builtins(key), algorithm="EdDSA") for key in found.keys}
    except (msgspec.DecodeError, PyJWTError, ValueError):  # the original message may quote the key
        raise StartError(f"{setting}: expected a JWK set of Ed25519 keys, each with `kid`, the service's name") from None


class _Keys:
    """Keys that may be replaced while the node runs. Unusable ones are logged, and the last usable ones stay in use.

    Args:
        latest: Returns the present JWK set.
        setting: The name of the setting that it comes from.

    Raises:
        StartError: if the keys cannot be used.
    """

    def __init__(self, latest: Callable[[], str], setting: str, *, private: bool) -> None:
        self._latest = latest
        self._setting = setting
        self._private = private
        self._text = latest()
        self.by_id: dict[str, PyJWK] = _read(self._text, setting, private=private)

    def renew(self) -> bool:
        """Use the present keys. Return whether they have changed."""
        text = self._latest()
        if text == self._text:
            return False
        self._text = text
        try:
            self.by_id = _read(text, self._setting, private=self._private)
        except StartError as error:
            logger("http").error("the new keys cannot be used, so the last ones stay in use: %s", error)
            return False
        log_key_change("replaced", setting=self._setting)
        return True


def _function(keys: str | Callable[[], str]) -> Callable[[], str]:
    return (lambda: keys) if isinstance(keys, str) else keys


class Signer:
    """Makes the assertions of the services on one node.

    Args:
        keys: The private keys of the services, as a JWK set, or a function that returns the present one.

    Raises:
        StartError: if the keys cannot be used.
    """

    def __init__(self, keys: str | Callable[[], str], clock: Clock) -> None:
        self._rotating = _Keys(_function(keys), "transport.http.key", private=True)
        self._clock = clock
        self._made: dict[tuple[str, str], tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f"<Signer for {', '.join(self._keys)}>"

    @property
    def _keys(self) -> dict[str, "PyJWK"]:
        return self._rotating.by_id

    @property
    def names(self) -> tuple[str, ...]:
        """The services that the keys belong to."""
        return tuple(owner(kid) for kid in self._keys)

    def assertion(self, speaker: str, audience: str) -> str:
        """Return an assertion that proves to `audience` that `speaker` is calling. It stays the same for half a minute.

        Raises:
            ValueError: if there is no key for `speaker`.
        """
        made = self._made.get((speaker, audience))
        now = self._clock.timestamp()
        if made is not None and made[1] - _RENEWED <= now < made[1]:
            return made[0]
        import jwt

        self._rotating.renew()
        candidates = [kid for kid in self._keys if owner(kid) == speaker] or (list(self._keys) if speaker == NODE else [])
        if not candidates:
            raise ValueError(f"this node has no key of {speaker} (transport.http.key has those of {', '.join(self.names)})")
        kid = candidates[-1]
        claims = {"iss": owner(kid), "sub": speaker, "aud": audience, "iat": int(now), "exp": int(now) + LIFETIME}
        text = jwt.encode(claims, self._keys[kid].key, algorithm="EdDSA", headers={"kid": kid, "typ": TYPE})
        self._made[speaker, audience] = (text, now + _RENEWED)
        return text


class Verifier:
    """Verifies the assertions of callers.

    Args:
        keys: The public keys of every service that may call, as a JWK set, or a function that returns the present one.

    Raises:
        StartError: if the keys cannot be used.
    """

    def __init__(self, keys: str | Callable[[], str], clock: Clock) -> None:
        self._rotating = _Keys(_function(keys), "transport.http.peer_keys", private=False)
        self._clock = clock
        self._known: OrderedDict[str, tuple[str, str, float]] = OrderedDict()

    def caller(self, assertion: str | None, audience: str) -> str:
        """Return the service that an assertion identifies as the caller of `audience`.

        Raises:
            Refused: if the assertion does not prove it.
        """
        if not assertion:
            raise Refused("the request has no assertion: expected one in Callboard-Assertion")
        if len(assertion) > _LONGEST:
            raise Refused("the assertion is too large")
        known = self._known.get(assertion)
        if known is None:
            known = self._known[assertion] = self._verified(assertion)
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
        if self._rotating.renew():
            self._known.clear()  # they may have been signed with a key that is gone
        key = self._rotating.by_id.get(kid)
        if key is None:
            raise Refused("the assertion was signed with an unknown key (transport.http.peer_keys)")
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
            raise Refused("the assertion's times are not valid")
        now = self._clock.timestamp()
        if issued > now + _LEEWAY or expires - issued > LIFETIME:
            raise Refused("the assertion is from the future, or lives too long: do the clocks differ?")
        if issuer != owner(kid) or speaker not in (issuer, NODE):
            raise Refused("the assertion speaks for somebody whose key it was not signed with")
        return speaker, audience, float(expires)


def _kid(token: str) -> str:
    """Return the id of the key that an assertion claims to be signed with."""
    try:
        kid = token_header(token, (TYPE,)).get("kid")
    except ValueError as error:
        raise Refused(f"the assertion is not valid: {error}") from None
    if not isinstance(kid, str):
        raise Refused("the assertion names no key")
    return kid
