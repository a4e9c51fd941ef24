"""Access tokens: every service verifies the signature and the claims itself."""

import base64
import hmac
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime import ManualClock
from services.auth.service import Auth
from tests.system_under_test import System, open_system, settings


async def test_the_published_keys_verify_tokens(system: System) -> None:
    tokens = await system.log_in()
    answer = await system.client.get("/.well-known/jwks.json")
    assert answer.headers["content-type"] == "application/jwk-set+json"
    keys = jwt.PyJWKSet.from_dict(answer.json())
    header = jwt.get_unverified_header(tokens["access_token"])
    assert (header["typ"], header["alg"]) == ("at+jwt", "EdDSA")
    claims = jwt.decode(
        tokens["access_token"], keys[header["kid"]], algorithms=["EdDSA"], audience="callboard", issuer="callboard"
    )
    assert set(claims) == {"iss", "aud", "sub", "role", "sid", "jti", "iat", "exp"}
    assert claims["exp"] - claims["iat"] <= 900


def sign_with_new_key(claims: dict[str, Any], header: dict[str, Any], key: Ed25519PrivateKey | None = None) -> str:
    return jwt.encode(claims, key or Ed25519PrivateKey.generate(), algorithm="EdDSA", headers=header)


def encode_token(header: object, claims: object, signature: bytes = b"x") -> str:
    def part(value: object) -> str:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(text).decode().rstrip("=")

    return f"{part(header)}.{part(claims)}.{part(signature)}"


def sign_with_hmac(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    signing_input = encode_token(header, claims).rpartition(".")[0]
    return f"{signing_input}.{encode_token(b'', b'', hmac.digest(secret, signing_input.encode(), 'sha256')).rpartition('.')[2]}"


async def test_tokens_that_auth_did_not_sign_are_refused(system: System) -> None:
    tokens = await system.log_in()
    good = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    header = jwt.get_unverified_header(tokens["access_token"])
    public = (await system.client.get("/.well-known/jwks.json")).json()["keys"][0]["x"]
    body = tokens["access_token"].split(".")
    wrong = {
        "another key": sign_with_new_key(good, header),
        "an unknown key": sign_with_new_key(good, {**header, "kid": "unknown"}),
        "a key by URL": sign_with_new_key(good, {**header, "kid": "u", "jku": "http://127.0.0.1:1/keys"}),
        "alg none": encode_token({**header, "alg": "none"}, good, b""),
        "HMAC with the public key": sign_with_hmac({**header, "alg": "HS256"}, good, base64.urlsafe_b64decode(public + "=")),
        "another type": sign_with_new_key(good, {**header, "typ": "JWT"}),
        "no kid": encode_token({"alg": "EdDSA", "typ": "at+jwt"}, good),
        "a kid twice": encode_token(b'{"alg":"EdDSA","typ":"at+jwt","kid":"a","kid":"' + header["kid"].encode() + b'"}', good),
        "a changed claim": f"{body[0]}.{encode_token({}, {**good, 'role': 'admin'}).split('.')[1]}.{body[2]}",
        "no signature": f"{body[0]}.{body[1]}.",
        "two parts": f"{body[0]}.{body[1]}",
        "rubbish": "rubbish",
        "too large": "x" * 9000,
    }
    for name, token in wrong.items():
        answer = await system.client.get("/wallet", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401, name
        assert answer.headers["www-authenticate"] == "Bearer", name
    for value in ("", "Bearer", "Basic cmlkZXI6eA==", "Bearer x y", tokens["access_token"]):
        answer = await system.client.get("/wallet", headers={"Authorization": value})
        assert answer.status_code == 401, value


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"exp": -10}, "expired"),
        ({"iat": 1000}, "lifetime"),
        ({"exp": 10_000}, "lifetime"),
        ({"iss": "somebody"}, "issuer"),
        ({"aud": "somebody"}, "udience"),
        ({"role": None}, "role"),
        ({"sid": None}, "sid"),
        ({"jti": None}, "jti"),
        ({"sub": None}, "sub"),
        ({"exp": None}, "exp"),
        ({"role": 5}, "strings"),
    ],
)
async def test_every_claim_of_a_token_is_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], detail: str
) -> None:
    async with open_system(settings(tmp_path)) as system:
        auth = system.service(Auth)
        assert auth is not None
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": "callboard", "aud": "callboard", "sub": "u", "role": "rider", "sid": "s", "jti": "j", "iat": now, "exp": now + 60,
        }  # fmt: skip
        ok = await system.client.get("/wallet", headers={"Authorization": f"Bearer {auth.keys.sign(claims)}"})
        assert ok.status_code == 200
        for name, value in change.items():
            if value is None:
                del claims[name]
            else:
                claims[name] = now + value if name in ("exp", "iat") else value
        with caplog.at_level("INFO", "callboard.security"):
            answer = await system.client.get("/wallet", headers={"Authorization": f"Bearer {auth.keys.sign(claims)}"})
        assert answer.status_code == 401
        refusals = [record for record in caplog.records if 'service="gateway"' in record.getMessage()]
        (line,) = [record.getMessage() for record in refusals if answer.json()["request_id"] in record.getMessage()]
        assert detail in line, "the reason is in the log"
        missing = await system.client.get("/wallet")
        assert {**answer.json(), "request_id": ""} == {**missing.json(), "request_id": ""}, "the reason is not in the answer"


async def test_a_cached_token_still_expires(tmp_path: Path) -> None:
    clock = ManualClock()
    async with open_system(settings(tmp_path, auth={"access_seconds": 60}), clock=clock) as system:
        headers = await system.bearer()
        for seconds, status in ((0, 200), (59, 200), (2, 401)):
            clock.advance(timedelta(seconds=seconds))
            assert (await system.client.get("/wallet", headers=headers)).status_code == status
