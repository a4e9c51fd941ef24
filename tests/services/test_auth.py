"""Users, sessions and tokens, as a REST client sees them."""

import asyncio
import base64
import hmac
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime import ManualClock, NodeSettings, TokenSettings
from runtime.storage.migrations import migrate
from runtime.storage.sqlite import SqliteDatabase
from services.auth.keys import SigningKeys
from services.auth.service import Auth
from tests.system_under_test import PASSWORD, USERS, System, open_system, settings

NEW = {"email": "New.User@example.com", "password": "long enough", "name": "New"}


async def test_register_log_in_and_look(system: System) -> None:
    user = (await system.client.post("/users", json=NEW)).json()
    assert {**user, "id": None, "created_at": None} == {
        "id": None, "email": "new.user@example.com", "name": "New", "role": "rider", "disabled": False, "created_at": None,
    }  # fmt: skip
    assert user["created_at"].endswith("Z")
    assert user["id"][14] == "7", "ids are UUIDv7"
    tokens = await system.log_in("new.user@EXAMPLE.com", "long enough")
    assert set(tokens) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 600)
    me = await system.client.get("/users/me", headers={"Authorization": f"bearer {tokens['access_token']}"})
    assert me.json() == user


async def test_an_address_is_registered_once(system: System) -> None:
    assert (await system.client.post("/users", json=NEW)).status_code == 201
    again = await system.client.post("/users", json={**NEW, "email": "NEW.user@example.com"})
    assert (again.status_code, again.json()["code"]) == (409, "email-taken")


async def test_wrong_password_and_unknown_user_look_alike(system: System) -> None:
    wrong = await system.client.post("/sessions", json={"email": "rider@example.com", "password": "wrong"})
    unknown = await system.client.post("/sessions", json={"email": "nobody@example.com", "password": "wrong"})
    assert wrong.status_code == unknown.status_code == 401
    strip = {"request_id": None}
    assert {**wrong.json(), **strip} == {**unknown.json(), **strip}
    assert wrong.headers["www-authenticate"] == "Bearer"


async def test_guessing_is_slowed_down(system: System) -> None:
    guess = {"email": "rider@example.com", "password": "wrong"}
    statuses = [(await system.client.post("/sessions", json=guess)).status_code for _ in range(10)]
    assert statuses == [401] * 10
    refused = await system.client.post("/sessions", json=guess)
    assert (refused.status_code, refused.json()["code"]) == (429, "too-many-attempts")
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert (await system.client.post("/sessions", json={"email": "admin@example.com", "password": PASSWORD})).status_code == 201


# Refresh tokens


async def refresh(system: System, token: str) -> httpx.Response:
    return await system.client.post("/sessions/refresh", json={"refresh_token": token})


async def test_a_refresh_token_is_exchanged_for_a_new_one(system: System) -> None:
    first = await system.log_in()
    second = (await refresh(system, first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    third = await refresh(system, second["refresh_token"])
    assert third.status_code == 201
    ok = await system.client.get("/wallet", headers={"Authorization": f"Bearer {third.json()['access_token']}"})
    assert ok.status_code == 200


async def test_two_at_once_get_the_same_successor(system: System) -> None:
    first = await system.log_in()
    answers = await asyncio.gather(*(refresh(system, first["refresh_token"]) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1
    assert (await refresh(system, answers[0].json()["refresh_token"])).status_code == 201


async def test_an_old_refresh_token_ends_the_session(system: System) -> None:
    first = await system.log_in()
    second = (await refresh(system, first["refresh_token"])).json()
    third = (await refresh(system, second["refresh_token"])).json()
    stolen = await refresh(system, first["refresh_token"])
    assert (stolen.status_code, stolen.json()["code"]) == (401, "session-ended")
    assert (await refresh(system, third["refresh_token"])).status_code == 401
    await until_refused(system, third["access_token"])


async def test_a_made_up_refresh_token(system: System) -> None:
    assert (await refresh(system, "made-up")).status_code == 401


async def test_refresh_tokens_and_passwords_are_stored_as_hashes(system: System, tmp_path: Path) -> None:
    tokens = await system.log_in()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("auth.sqlite*"))
    assert tokens["refresh_token"].encode() not in stored
    assert PASSWORD.encode() not in stored


# Revocation: every node refuses within five seconds


async def until_refused(system: System, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with asyncio.timeout(5):
        while (await system.client.get("/wallet", headers=headers)).status_code != 401:
            await asyncio.sleep(0.02)


async def test_logout_ends_this_session_and_no_other(system: System) -> None:
    one, two = await system.log_in(), await system.log_in()
    headers = {"Authorization": f"Bearer {one['access_token']}"}
    assert (await system.client.get("/wallet", headers=headers)).status_code == 200
    gone = await system.client.delete("/sessions/current", headers=headers)
    assert (gone.status_code, gone.content) == (204, b"")
    await until_refused(system, one["access_token"])
    assert (await refresh(system, one["refresh_token"])).status_code == 401
    assert (await system.client.get("/wallet", headers={"Authorization": f"Bearer {two['access_token']}"})).status_code == 200


async def test_another_password_ends_all_sessions(system: System) -> None:
    one, two = await system.log_in(), await system.log_in()
    headers = {"Authorization": f"Bearer {one['access_token']}"}
    wrong = await system.client.post("/users/me/password", json={"old": "wrong", "new": "another one"}, headers=headers)
    assert (wrong.status_code, wrong.json()["code"]) == (403, "wrong-password")
    changed = await system.client.post("/users/me/password", json={"old": PASSWORD, "new": "another one"}, headers=headers)
    assert changed.status_code == 204
    for tokens in (one, two):
        await until_refused(system, tokens["access_token"])
        assert (await refresh(system, tokens["refresh_token"])).status_code == 401
    await system.log_in(password="another one")
    old = await system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD})
    assert old.status_code == 401


async def test_another_role_ends_all_sessions_and_counts_at_the_next_login(system: System) -> None:
    admin = await system.bearer("admin@example.com")
    rider = await system.log_in()
    user_id = jwt.decode(rider["access_token"], options={"verify_signature": False})["sub"]
    answer = await system.client.patch(f"/users/{user_id}", json={"role": "operator"}, headers=admin)
    assert (answer.status_code, answer.json()["role"]) == (200, "operator")
    await until_refused(system, rider["access_token"])
    again = await system.log_in()
    assert jwt.decode(again["access_token"], options={"verify_signature": False})["role"] == "operator"


async def test_a_disabled_user_is_out(system: System) -> None:
    admin = await system.bearer("admin@example.com")
    rider = await system.log_in()
    user_id = jwt.decode(rider["access_token"], options={"verify_signature": False})["sub"]
    assert (await system.client.patch(f"/users/{user_id}", json={"disabled": True}, headers=admin)).json()["disabled"] is True
    await until_refused(system, rider["access_token"])
    assert (await refresh(system, rider["refresh_token"])).status_code == 401
    login = await system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD})
    assert login.status_code == 401
    await system.client.patch(f"/users/{user_id}", json={"disabled": False}, headers=admin)
    await system.log_in()


async def test_only_an_admin_may_change_users(system: System) -> None:
    for email in ("rider@example.com", "operator@example.com"):
        headers = await system.bearer(email)
        assert (await system.client.patch("/users/whoever", json={"role": "admin"}, headers=headers)).status_code == 403
    admin = await system.bearer("admin@example.com")
    assert (await system.client.patch("/users/whoever", json={"role": "admin"}, headers=admin)).status_code == 404


# Tokens


async def test_the_key_set_verifies_tokens(system: System) -> None:
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


def forged(claims: dict[str, Any], header: dict[str, Any], key: Ed25519PrivateKey | None = None) -> str:
    return jwt.encode(claims, key or Ed25519PrivateKey.generate(), algorithm="EdDSA", headers=header)


def raw(header: object, claims: object, signature: bytes = b"x") -> str:
    def part(value: object) -> str:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(text).decode().rstrip("=")

    return f"{part(header)}.{part(claims)}.{part(signature)}"


def hmac_signed(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    unsigned = raw(header, claims).rpartition(".")[0]
    return f"{unsigned}.{raw(b'', b'', hmac.digest(secret, unsigned.encode(), 'sha256')).rpartition('.')[2]}"


async def test_tokens_that_auth_did_not_sign_are_refused(system: System) -> None:
    tokens = await system.log_in()
    good = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    header = jwt.get_unverified_header(tokens["access_token"])
    public = (await system.client.get("/.well-known/jwks.json")).json()["keys"][0]["x"]
    body = tokens["access_token"].split(".")
    wrong = {
        "another key": forged(good, header),
        "an unknown key": forged(good, {**header, "kid": "unknown"}),
        "a key by URL": forged(good, {**header, "kid": "u", "jku": "http://127.0.0.1:1/keys"}),
        "alg none": raw({**header, "alg": "none"}, good, b""),
        "HMAC with the public key": hmac_signed({**header, "alg": "HS256"}, good, base64.urlsafe_b64decode(public + "=")),
        "another type": forged(good, {**header, "typ": "JWT"}),
        "no kid": raw({"alg": "EdDSA", "typ": "at+jwt"}, good),
        "a kid twice": raw(b'{"alg":"EdDSA","typ":"at+jwt","kid":"a","kid":"' + header["kid"].encode() + b'"}', good),
        "a changed claim": f"{body[0]}.{raw({}, {**good, 'role': 'admin'}).split('.')[1]}.{body[2]}",
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
async def test_every_claim_is_looked_at(tmp_path: Path, change: dict[str, Any], detail: str) -> None:
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
        answer = await system.client.get("/wallet", headers={"Authorization": f"Bearer {auth.keys.sign(claims)}"})
        assert answer.status_code == 401
        assert detail in answer.json()["detail"]


async def test_a_token_expires_also_where_it_is_cached(tmp_path: Path) -> None:
    clock = ManualClock()
    async with open_system(settings(tmp_path, auth={"access_seconds": 60}), clock=clock) as system:
        headers = await system.bearer()
        for seconds, status in ((0, 200), (59, 200), (2, 401)):
            clock.advance(timedelta(seconds=seconds))
            assert (await system.client.get("/wallet", headers=headers)).status_code == status


# Users of the settings


async def test_a_password_that_a_user_has_changed_stays(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        change = {"old": PASSWORD, "new": "another password"}
        answer = await system.client.post("/users/me/password", json=change, headers=await system.bearer())
        assert answer.status_code == 204
    async with open_system(settings(tmp_path)) as system:
        for password, status in ((PASSWORD, 401), ("another password", 201)):
            answer = await system.client.post("/sessions", json={"email": "rider@example.com", "password": password})
            assert answer.status_code == status


async def test_a_password_that_is_another_in_the_settings_is_taken_and_ends_the_sessions(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        answer = await system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD})
        refresh = {"refresh_token": answer.json()["refresh_token"]}
    users = tuple(msgspec.structs.replace(user, password="from outside") for user in USERS)
    async with open_system(settings(tmp_path, auth={"users": users})) as system:
        for password, status in ((PASSWORD, 401), ("from outside", 201)):
            answer = await system.client.post("/sessions", json={"email": "rider@example.com", "password": password})
            assert answer.status_code == status
        assert (await system.client.post("/sessions/refresh", json=refresh)).status_code == 401


# Keys


async def test_keys_rotate_without_a_refused_request(tmp_path: Path) -> None:
    chosen = settings(tmp_path, auth={"publish_lead_seconds": 2.0})
    chosen = msgspec.structs.replace(chosen, node=NodeSettings(tokens=TokenSettings(keys_seconds=0.2)))
    async with open_system(chosen) as system:
        old = await system.bearer()
        auth = system.service(Auth)
        assert auth is not None
        before = jwt.get_unverified_header(old["Authorization"].split()[1])["kid"]
        statuses: list[int] = []

        async def ride() -> None:
            while len(kids) < 2 or len(statuses) < 60:
                statuses.append((await system.client.get("/wallet", headers=old)).status_code)
                fresh = await system.bearer()
                statuses.append((await system.client.get("/wallet", headers=fresh)).status_code)
                kids.add(jwt.get_unverified_header(fresh["Authorization"].split()[1])["kid"])

        kids = {before}
        riding = asyncio.create_task(ride())
        await auth.keys.rotate()
        async with asyncio.timeout(20):
            await riding
        assert set(statuses) == {200}
        published = [key["kid"] for key in (await system.client.get("/.well-known/jwks.json")).json()["keys"]]
        assert sorted(published) == sorted(kids)


async def test_a_new_key_is_published_before_it_signs_and_an_old_one_retires(tmp_path: Path) -> None:
    clock = ManualClock()
    database = SqliteDatabase(tmp_path / "keys.sqlite", durable=False)
    await database.open()
    try:
        assert Auth.definition.migrations is not None
        await migrate(database, Path(Auth.definition.migrations), "auth")
        keys = SigningKeys(database, clock, lead=60)
        await keys.load()

        def signer() -> str:
            kid: str = jwt.get_unverified_header(keys.sign({}))["kid"]
            return kid

        first = signer()
        await keys.rotate_if_older(3600)
        assert len(keys.published().keys) == 1
        clock.advance(timedelta(hours=2))
        await keys.rotate_if_older(3600)
        assert len(keys.published().keys) == 2
        assert signer() == first, "published first, used later"
        clock.advance(timedelta(seconds=61))
        second = signer()
        assert second != first
        assert len(keys.published().keys) == 2, "tokens of the first are still about"
        clock.advance(timedelta(minutes=20))
        await keys.rotate_if_older(3600)
        assert [key.kid for key in keys.published().keys] == [second]
    finally:
        await database.close()


async def test_auth_being_down_stops_logins_and_nothing_else(system: System) -> None:
    headers = await system.bearer()
    assert (await system.client.get("/wallet", headers=headers)).status_code == 200
    supervised = next(one for one in system.node.supervised if one.name == "auth")
    supervised.stop()
    async with asyncio.timeout(5):
        while system.node.registry.members("auth"):
            await asyncio.sleep(0.01)
    assert (await system.client.get("/wallet", headers=headers)).status_code == 200
    login = await system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD})
    assert login.status_code in (404, 503)


async def test_many_wrong_guesses_at_once_count_too(system: System) -> None:
    guess = {"email": "rider@example.com", "password": "wrong"}
    answers = await asyncio.gather(*(system.client.post("/sessions", json=guess) for _ in range(30)))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [401] * 10 + [429] * 20


async def test_a_login_that_races_with_being_disabled_does_not_outlive_it(system: System) -> None:
    auth = system.service(Auth)
    assert auth is not None
    admin = await system.bearer("admin@example.com")
    user_id = (await system.client.get("/users/me", headers=await system.bearer())).json()["id"]
    looked, go_on = asyncio.Event(), asyncio.Event()
    matches = auth.passwords.matches

    async def slow(password_hash: str | None, password: str) -> bool:
        found = await matches(password_hash, password)
        looked.set()
        await go_on.wait()
        return found

    for change in ({"disabled": True}, {"disabled": False, "role": "operator"}):
        auth.passwords.matches = slow  # type: ignore[method-assign]
        login = asyncio.create_task(system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD}))
        await looked.wait()
        assert (await system.client.patch(f"/users/{user_id}", json=change, headers=admin)).status_code == 200
        go_on.set()
        assert (await login).status_code == 401
        auth.passwords.matches = matches  # type: ignore[method-assign]
        looked.clear()
        go_on.clear()
    await system.log_in()


async def test_a_revoked_token_is_refused_right_after_a_restart(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        headers = await system.bearer()
        assert (await system.client.delete("/sessions/current", headers=headers)).status_code == 204
    async with open_system(settings(tmp_path)) as system:
        answers = await asyncio.gather(*(system.client.get("/wallet", headers=headers) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {401}


@pytest.mark.parametrize(
    "change",
    [
        {"email": "no at"}, {"email": "a@b"}, {"email": "a@b.c\n"}, {"email": "a\u0000@b.cd"}, {"email": "x" * 250 + "@b.cd"}, {"password": "short"},
        {"password": "x" * 257}, {"name": ""}, {"name": "a\nb"}, {"name": "x" * 101}, {"name": None}, {"role": "admin"},
    ],
)  # fmt: skip
async def test_what_cannot_be_registered(tmp_path: Path, change: dict[str, Any]) -> None:
    async with open_system(settings(tmp_path)) as system:
        answer = await system.client.post("/users", json={**NEW, **change})
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{next(iter(change))}"]
