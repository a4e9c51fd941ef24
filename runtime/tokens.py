"""Tokens as text: what the checks of JWTs demand that PyJWT omits."""

import base64
import re
from collections.abc import Collection
from typing import Any, cast

import msgspec

from runtime.clock import Clock
from runtime.contract.errors import Unauthenticated

LEEWAY = 5
"""The seconds by which the clocks of an issuer and a receiver may differ."""
MAX_TOKEN = 8 * 1024
"""The largest size of a token, in bytes. A larger one is rejected before it is parsed."""

TOKEN_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
"""What a token consists of. Any other text is rejected before it is sent anywhere."""

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


def token_header(token: str, types: tuple[str, ...]) -> dict[str, Any]:
    """Return the header of an EdDSA token, checked as by `read_token`. Raises ValueError."""
    return read_token(token, types, ("EdDSA",))[0]


def read_token(token: str, types: tuple[str, ...], algorithms: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the claims of a JWT, after the checks that PyJWT omits. The signature is not checked.

    The three parts are strict base64url (RFC 7515, section 2). Header and claims are JSON objects in UTF-8 in which no name
    occurs twice, and they contain no unpaired surrogates. `typ` and `alg` are as expected, and nothing is critical (`crit`).

    Args:
        types: the accepted values of `typ`, in lower case; "" if it may be missing. The prefix `application/` may precede them
            (RFC 7515, section 4.1.9).
        algorithms: the accepted values of `alg`.

    Raises:
        ValueError: if the token cannot be read or its header is not acceptable.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("expected three parts")
    header, claims = _json_object(parts[0], "header"), _json_object(parts[1], "claims")
    _base64url(parts[2], "signature")
    if str(header.get("typ", "")).lower().removeprefix("application/") not in types or header.get("alg") not in algorithms:
        raise ValueError(f"expected an {' or '.join(algorithms)} token ({' or '.join(filter(None, types))})")
    if "crit" in header:
        raise ValueError("its header has a critical extension")
    return header, claims


def seconds_left(claims: dict[str, Any], clock: Clock, longest: int) -> float:
    """Return for how many seconds a token is valid, however the clock is set meanwhile.

    Args:
        claims: its claims, with `exp` and `iat`.
        longest: the longest lifetime that is accepted, in seconds.

    Raises:
        Unauthenticated: if it has expired, was issued in the future, or lives too long.
    """
    expires, issued = claims["exp"], claims["iat"]
    earliest, latest = clock.possible()
    if not isinstance(expires, int) or not isinstance(issued, int):
        raise Unauthenticated("the token's times are not integers")
    if expires <= earliest:
        raise Unauthenticated("the token has expired")
    if issued > latest + LEEWAY or expires - issued > longest:
        raise Unauthenticated("the token's lifetime is not acceptable")
    left = expires - latest if issued > earliest + LEEWAY else expires - earliest
    if left <= 0:  # it was stamped by a time of day between these two
        left = min(expires - earliest, longest)
    return left


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
