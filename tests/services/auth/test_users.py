"""Users: registration, roles, and the users that the settings name."""

from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest

from tests.services.auth.sessions import refresh, wait_until_refused
from tests.system_under_test import PASSWORD, USERS, System, open_system, settings

NEW = {"email": "New.User@example.com", "password": "long enough", "name": "New"}


async def test_a_new_user_can_register_log_in_and_read_their_profile(system: System) -> None:
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


async def test_an_email_address_can_be_registered_only_once(system: System) -> None:
    assert (await system.client.post("/users", json=NEW)).status_code == 201
    again = await system.client.post("/users", json={**NEW, "email": "NEW.user@example.com"})
    assert (again.status_code, again.json()["code"]) == (409, "email-taken")


async def test_changing_the_password_ends_all_sessions(system: System) -> None:
    one, two = await system.log_in(), await system.log_in()
    headers = {"Authorization": f"Bearer {one['access_token']}"}
    wrong = await system.client.post("/users/me/password", json={"old": "wrong", "new": "another one"}, headers=headers)
    assert (wrong.status_code, wrong.json()["code"]) == (403, "wrong-password")
    changed = await system.client.post("/users/me/password", json={"old": PASSWORD, "new": "another one"}, headers=headers)
    assert changed.status_code == 204
    for tokens in (one, two):
        await wait_until_refused(system, tokens["access_token"])
        assert (await refresh(system, tokens["refresh_token"])).status_code == 401
    await system.log_in(password="another one")
    old = await system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD})
    assert old.status_code == 401


async def test_changing_a_role_ends_all_sessions_and_applies_at_the_next_login(system: System) -> None:
    admin = await system.bearer("admin@example.com")
    rider = await system.log_in()
    user_id = jwt.decode(rider["access_token"], options={"verify_signature": False})["sub"]
    answer = await system.client.patch(f"/users/{user_id}", json={"role": "operator"}, headers=admin)
    assert (answer.status_code, answer.json()["role"]) == (200, "operator")
    await wait_until_refused(system, rider["access_token"])
    again = await system.log_in()
    assert jwt.decode(again["access_token"], options={"verify_signature": False})["role"] == "operator"


async def test_a_disabled_user_is_refused_until_enabled_again(system: System) -> None:
    admin = await system.bearer("admin@example.com")
    rider = await system.log_in()
    user_id = jwt.decode(rider["access_token"], options={"verify_signature": False})["sub"]
    assert (await system.client.patch(f"/users/{user_id}", json={"disabled": True}, headers=admin)).json()["disabled"] is True
    await wait_until_refused(system, rider["access_token"])
    assert (await refresh(system, rider["refresh_token"])).status_code == 401
    login = await system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD})
    assert login.status_code == 401
    await system.client.patch(f"/users/{user_id}", json={"disabled": False}, headers=admin)
    await system.log_in()


async def test_only_an_admin_may_change_users(system: System) -> None:
    for email in ("rider@example.com", "operator@example.com"):
        headers = await system.bearer(email)
        assert (await system.client.patch("/users/unknown", json={"role": "admin"}, headers=headers)).status_code == 403
    admin = await system.bearer("admin@example.com")
    assert (await system.client.patch("/users/unknown", json={"role": "admin"}, headers=admin)).status_code == 404


async def test_a_password_changed_by_its_user_survives_a_restart(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        change = {"old": PASSWORD, "new": "another password"}
        answer = await system.client.post("/users/me/password", json=change, headers=await system.bearer())
        assert answer.status_code == 204
    async with open_system(settings(tmp_path)) as system:
        for password, status in ((PASSWORD, 401), ("another password", 201)):
            answer = await system.client.post("/sessions", json={"email": "rider@example.com", "password": password})
            assert answer.status_code == status


async def test_a_new_password_in_the_settings_replaces_the_old_one_and_ends_all_sessions(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        answer = await system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD})
        refresh = {"refresh_token": answer.json()["refresh_token"]}
    users = tuple(msgspec.structs.replace(user, password="from outside") for user in USERS)
    async with open_system(settings(tmp_path, auth={"users": users})) as system:
        for password, status in ((PASSWORD, 401), ("from outside", 201)):
            answer = await system.client.post("/sessions", json={"email": "rider@example.com", "password": password})
            assert answer.status_code == status
        assert (await system.client.post("/sessions/refresh", json=refresh)).status_code == 401


@pytest.mark.parametrize(
    "change",
    [
        {"email": "no at"}, {"email": "a@b"}, {"email": "a@b.c\n"}, {"email": "a\u0000@b.cd"}, {"email": "x" * 250 + "@b.cd"}, {"password": "short"},
        {"password": "x" * 257}, {"name": ""}, {"name": "a\nb"}, {"name": "x" * 101}, {"name": None}, {"role": "admin"},
    ],
)  # fmt: skip
async def test_invalid_registrations_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    async with open_system(settings(tmp_path)) as system:
        answer = await system.client.post("/users", json={**NEW, **change})
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{next(iter(change))}"]
