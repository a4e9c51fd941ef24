"""Peer assertions over HTTP: which of them prove that a caller acts for a service, and which are refused."""

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config.provision import peer_keys
from runtime import Clock, ManualClock, StartError
from runtime.files import reread
from transports.http.assertions import Refused, Signer, Verifier
from transports.http.settings import HttpSettings
from transports.http.transport import HttpTransport

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
GOOD = {"iss": "client", "sub": "client", "aud": "echo", "iat": 1_000_000, "exp": 1_000_060}
HEAD = {"kid": "client", "typ": "callboard-peer+jwt"}


def _public(kid: str, key: Ed25519PrivateKey) -> dict[str, str]:
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}


class _Clock(Clock):
    def timestamp(self) -> float:
        return 1_000_000.0


VERIFIER = Verifier(
    json.dumps({"keys": [_public("client", KEY), _public("client.2", OTHER), _public("wallet", OTHER)]}), _Clock()
)


def _signed(key: Any = KEY, algorithm: str = "EdDSA", head: dict[str, Any] | None = None, **changes: Any) -> str:
    claims = {name: value for name, value in (GOOD | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers=HEAD | (head or {}))


def test_a_valid_assertion_identifies_the_caller() -> None:
    assert VERIFIER.caller(_signed(), "echo") == "client"
    assert VERIFIER.caller(_signed(sub="runtime"), "echo") == "runtime"
    assert VERIFIER.caller(_signed(OTHER, head={"kid": "client.2"}), "echo") == "client", (
        "the service's next key is accepted, too"
    )


def test_keys_that_are_rotated_in_their_files_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(path: Path, text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(path)

    clock = ManualClock()
    private, public = tmp_path / "key", tmp_path / "peer-keys"
    (one, both), (other, others) = peer_keys(["client"]), peer_keys(["client"])
    private.write_text(one["client"])
    public.write_text(both)
    signer = Signer(reread(private, one["client"]), clock)
    verifier = Verifier(reread(public, both), clock)
    first = signer.assertion("client", "echo")
    assert verifier.caller(first, "echo") == "client"
    write(private, other["client"])
    write(public, others)
    clock.advance(timedelta(seconds=31))
    second = signer.assertion("client", "echo")
    assert verifier.caller(second, "echo") == "client"
    with pytest.raises(Refused):
        verifier.caller(first, "echo")
    write(public, "no keys")
    clock.advance(timedelta(seconds=31))
    assert verifier.caller(signer.assertion("client", "echo"), "echo") == "client", "the last usable keys stay in use"
    assert "the new keys cannot be used" in caplog.text


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
def test_an_invalid_assertion_is_refused(assertion: str | None) -> None:
    with pytest.raises(Refused):
        VERIFIER.caller(assertion, "echo")


def test_an_assertion_is_renewed_before_it_expires_and_is_valid_for_one_callee() -> None:
    clock = ManualClock()
    private, public = peer_keys(("client",))
    signer, verifier = Signer(private["client"], clock), Verifier(public, clock)
    first = signer.assertion("client", "echo")
    assert signer.assertion("client", "echo") == first
    for _ in range(5):
        clock.advance(timedelta(seconds=29))
        assert verifier.caller(signer.assertion("client", "echo"), "echo") == "client"
    with pytest.raises(Refused, match="expired"):
        verifier.caller(first, "echo")
    with pytest.raises(Refused, match="somebody else"):
        verifier.caller(signer.assertion("client", "wallet"), "echo")
    with pytest.raises(ValueError, match="no key of wallet"):
        signer.assertion("wallet", "echo")
    assert private["client"].split('"d":"')[1][:20] not in repr(signer)


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
def test_invalid_keys_are_refused_without_being_printed(key: str | None, theirs: str | None) -> None:
    private, public = peer_keys(("client",))
    named = {"private": private["client"], "public": public}
    with pytest.raises(StartError, match=r"transport\.http\.(key|peer_keys)") as refused:
        HttpTransport(HttpSettings(key=named.get(str(key), key), peer_keys=named.get(str(theirs), theirs)))
    assert '"d"' not in str(refused.value)
