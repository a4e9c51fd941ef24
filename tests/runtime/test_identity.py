"""Tokens: each has one spelling, and each claim one meaning, whatever parser reads it."""

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime import Clock, ManualClock, Unauthenticated
from runtime.identity import Key, Keys, KeySet, Revocations, RevokedSessions, TokenSettings, Verifier
from runtime.issuers import Identity
from runtime.metrics import Metrics

KEY = Ed25519PrivateKey.generate()
NOW = int(time.time())
HEADER: dict[str, Any] = {"alg": "EdDSA", "typ": "at+jwt", "kid": "k"}
CLAIMS: dict[str, Any] = {
    "iss": "callboard", "aud": "callboard", "sub": "u", "role": "rider", "sid": "s", "jti": "j", "iat": NOW, "exp": NOW + 600,
}  # fmt: skip
TEXT = json.dumps(CLAIMS).encode()[:-1]
"""The claims as JSON, without the closing brace."""


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def sign(header: bytes | dict[str, Any] = HEADER, claims: bytes | dict[str, Any] = CLAIMS, *, padding: str = "") -> str:
    """Return a token whose signature is right, whatever its parts contain."""
    parts = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in (header, claims)]
    signed = ".".join(base64url(part) + padding for part in parts)
    return f"{signed}.{base64url(KEY.sign(signed.encode()))}"


async def ask(request: Any) -> Any:
    """Answer the requests of a verifier, as the auth service does."""
    if isinstance(request, KeySet):
        public = base64url(KEY.public_key().public_bytes_raw())
        return Keys((Key("k", public),))
    assert isinstance(request, Revocations)
    return RevokedSessions(0, ())


async def verify(token: str) -> Identity:
    return await Verifier(TokenSettings(), Clock(), Metrics(), ask).verify(token)


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt", "application/AT+jwt"])
async def test_both_spellings_of_the_type_are_accepted(kind: str) -> None:
    assert (await verify(sign({**HEADER, "typ": kind}))).subject == "u"


def one_bit_more(token: str) -> str:
    """Return the token with an unused bit of its last character set. A lenient decoder reads the same signature."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + letters[letters.index(token[-1]) + 1]


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        pytest.param(sign() + "==", "characters", id="padding"),
        pytest.param(sign(padding="="), "characters", id="padding in the signed text"),
        pytest.param(sign() + "\n", "characters", id="line break"),
        pytest.param("\ud800" + sign(), "characters", id="surrogate in the text"),
        pytest.param("", "characters", id="empty"),
        pytest.param(one_bit_more(sign()), "unused bits", id="unused bits"),
        pytest.param(sign() + "AAA", "base64url", id="impossible length"),
        pytest.param(sign() + ".e30", "three parts", id="fourth part"),
        pytest.param(sign({**HEADER, "typ": "text/at+jwt"}), "expected an EdDSA", id="other media type"),
        pytest.param(sign({**HEADER, "crit": ["b64"], "b64": True}), "critical", id="critical extension"),
        pytest.param(sign(json.dumps(HEADER).encode()[:-1] + b',"kid":"k"}'), "header gives a name twice", id="kid twice"),
        pytest.param(sign(b"[]"), "not an object", id="header is a list"),
        pytest.param(sign(claims=TEXT + b',"role":"admin"}'), "claims gives a name twice", id="role twice"),
        pytest.param(sign(claims=TEXT + b',"act":{"sub":"a","sub":"b"}}'), "claims gives a name twice", id="nested twice"),
        pytest.param(sign(claims=TEXT + b',"r\\u006fle":"admin"}'), "claims gives a name twice", id="role escaped"),
        pytest.param(sign(claims={**CLAIMS, "sub": "\ud800"}), "claims cannot be read", id="surrogate"),
        pytest.param(sign(claims={**CLAIMS, "name": "a\udfff"}), "claims cannot be read", id="surrogate in another claim"),
        pytest.param(sign(claims=TEXT + b',"name":"\xe9"}'), "claims cannot be read", id="Latin-1"),
        pytest.param(sign(claims=b"\xef\xbb\xbf" + TEXT + b"}"), "claims cannot be read", id="byte order mark"),
        pytest.param(sign(claims=(TEXT + b"}").decode().encode("utf-16")), "claims cannot be read", id="UTF-16"),
        pytest.param(sign(claims=TEXT + b',"nbf":1e999}'), "claims cannot be read", id="infinite time"),
        pytest.param(sign(claims=TEXT + b',"nbf":NaN}'), "claims cannot be read", id="NaN"),
        pytest.param(sign(claims=b"[" * 5000), "claims cannot be read", id="deep nesting"),
        pytest.param(sign(claims=b'["sub"]'), "not an object", id="claims are a list"),
    ],
)
async def test_a_token_with_a_lenient_encoding_is_refused_though_its_signature_is_right(token: str, reason: str) -> None:
    with pytest.raises(Unauthenticated, match=reason):
        await verify(token)


async def test_a_token_in_use_does_not_outlive_its_lifetime_however_the_clock_is_set() -> None:
    clock = ManualClock(datetime.fromtimestamp(NOW, UTC))
    verifier = Verifier(TokenSettings(), clock, Metrics(), ask)
    token = sign()
    await verifier.verify(token)
    clock.leap(timedelta(hours=-1))
    for _ in range(9):
        clock.advance(timedelta(seconds=66))
        assert verifier.cached(token) is not None, "its ten minutes are not over"
    clock.advance(timedelta(seconds=66))
    assert verifier.cached(token) is None
    clock.advance(timedelta(minutes=7))
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)
