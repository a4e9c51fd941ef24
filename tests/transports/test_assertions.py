"""Who has proven to speak for a service over HTTP, and who has not."""

import base64
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config.provision import peer_keys
from runtime import Clock, ManualClock, StartError
from transports.http.assertions import Refused, Signer, Verifier
from transports.http.settings import HttpSettings
from transports.http.transport import HttpTransport

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
GOOD = {"iss": "asker", "sub": "asker", "aud": "echo", "iat": 1_000_000, "exp": 1_000_060}
HEAD = {"kid": "asker", "typ": "callboard-peer+jwt"}


def _public(kid: str, key: Ed25519PrivateKey) -> dict[str, str]:
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}


class _Clock(Clock):
    def timestamp(self) -> float:
        return 1_000_000.0


VERIFIER = Verifier(json.dumps({"keys": [_public("asker", KEY), _public("asker.2", OTHER), _public("wallet", OTHER)]}), _Clock())


def _signed(key: Any = KEY, algorithm: str = "EdDSA", head: dict[str, Any] | None = None, **claims: Any) -> str:
    said = {name: value for name, value in (GOOD | claims).items() if value is not None}
    return jwt.encode(said, key, algorithm=algorithm, headers=HEAD | (head or {}))


def test_who_has_proven_to_speak() -> None:
    assert VERIFIER.caller(_signed(), "echo") == "asker"
    assert VERIFIER.caller(_signed(sub="runtime"), "echo") == "runtime"
    assert VERIFIER.caller(_signed(OTHER, head={"kid": "asker.2"}), "echo") == "asker", "the key that comes next"


@pytest.mark.parametrize(
    "assertion",
    [
        None, "", "x", "x.y.z", "a" * 5000,
        _signed(OTHER), _signed(head={"kid": "nobody"}), _signed(head={"typ": "JWT"}), _signed(head={"typ": "at+jwt"}),
        _signed("secret" * 8, "HS256"), jwt.encode(GOOD, "", algorithm="none", headers=HEAD),
        _signed(iss="wallet"), _signed(sub="wallet"), _signed(sub="wallet", iss="wallet"), _signed(OTHER, head={"kid": "wallet"}),
        _signed(exp=999_000, iat=998_990), _signed(iat=1_000_100, exp=1_000_160), _signed(exp=1_000_900), _signed(exp=2**60, iat=2**60 - 1),
        _signed(aud="wallet"), _signed(aud=["echo", "wallet"]), _signed(aud=None), _signed(exp=None), _signed(iat=None), _signed(sub=None),
        _signed(exp="soon"), _signed(iat=1.5),
    ],
)  # fmt: skip
def test_who_has_not(assertion: str | None) -> None:
    with pytest.raises(Refused):
        VERIFIER.caller(assertion, "echo")


def test_an_assertion_is_made_anew_before_it_ends_and_for_one_callee() -> None:
    clock = ManualClock()
    private, public = peer_keys(("asker",))
    signer, verifier = Signer(private["asker"], clock), Verifier(public, clock)
    first = signer.assertion("asker", "echo")
    assert signer.assertion("asker", "echo") == first
    for _ in range(5):
        clock.advance(timedelta(seconds=29))
        assert verifier.caller(signer.assertion("asker", "echo"), "echo") == "asker"
    with pytest.raises(Refused, match="expired"):
        verifier.caller(first, "echo")
    with pytest.raises(Refused, match="somebody else"):
        verifier.caller(signer.assertion("asker", "wallet"), "echo")
    with pytest.raises(ValueError, match="no key of wallet"):
        signer.assertion("wallet", "echo")
    assert private["asker"].split('"d":"')[1][:20] not in repr(signer)


@pytest.mark.parametrize(
    ("key", "theirs"),
    [
        (None, None),
        ("x", None),
        ("not json", "public"),
        ('{"keys":[]}', "public"),
        ("public", "public"),
        ("private", "private"),
        ("private", "{}"),
    ],
)
def test_keys_that_are_none_are_refused_without_being_said(key: str | None, theirs: str | None) -> None:
    private, public = peer_keys(("asker",))
    named = {"private": private["asker"], "public": public}
    with pytest.raises(StartError, match=r"transport\.http\.(key|peer_keys)") as refused:
        HttpTransport(HttpSettings(key=named.get(str(key), key), peer_keys=named.get(str(theirs), theirs)))
    assert '"d"' not in str(refused.value)
