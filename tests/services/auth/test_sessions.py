"""Sessions: login, refresh tokens, logout, and revocation."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from runtime import ManualClock
from services.auth.service import Auth
from tests.services.auth.sessions import refresh, wait_until_refused
from tests.system_under_test import PASSWORD, System, open_system, settings


async def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(system: System) -> None:
    wrong = await system.client.post("/sessions", json={"email": "rider@example.com", "password": "wrong"})
    unknown = await system.client.post("/sessions", json={"email": "nobody@example.com", "password": "wrong"})
    assert wrong.status_code == unknown.status_code == 401
    strip = {"request_id": None}
    assert {**wrong.json(), **strip} == {**unknown.json(), **strip}
    assert wrong.headers["www-authenticate"] == "Bearer"


async def test_a_refresh_token_is_exchanged_for_a_new_one(system: System) -> None:
    first = await system.log_in()
    second = (await refresh(system, first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    third = await refresh(system, second["refresh_token"])
    assert third.status_code == 201
    ok = await system.client.get("/wallet", headers={"Authorization": f"Bearer {third.json()['access_token']}"})
    assert ok.status_code == 200


async def test_concurrent_refreshes_of_one_token_get_the_same_new_token(system: System) -> None:
    first = await system.log_in()
    answers = await asyncio.gather(*(refresh(system, first["refresh_token"]) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1
    assert (await refresh(system, answers[0].json()["refresh_token"])).status_code == 201


@pytest.mark.parametrize("passed", [timedelta(0), timedelta(seconds=30), timedelta(days=3)], ids=str)
async def test_after_a_lost_reply_the_old_token_has_the_same_successor_until_that_is_used(
    tmp_path: Path, passed: timedelta
) -> None:
    clock = ManualClock()
    async with open_system(settings(tmp_path), clock=clock) as system:
        first = await system.log_in()
        lost = (await refresh(system, first["refresh_token"])).json()
        clock.advance(passed)
        second = await refresh(system, first["refresh_token"])
        assert (second.status_code, second.json()["refresh_token"]) == (201, lost["refresh_token"])
        third = await refresh(system, lost["refresh_token"])
        assert third.status_code == 201
        again = await refresh(system, lost["refresh_token"])
        assert again.json()["refresh_token"] == third.json()["refresh_token"], "the same holds for the successor"
        stolen = await refresh(system, first["refresh_token"])
        assert (stolen.status_code, stolen.json()["code"]) == (401, "session-ended"), "its successor was used"
        assert (await refresh(system, third.json()["refresh_token"])).status_code == 401, "the whole session has ended"


async def test_reusing_an_old_refresh_token_ends_the_session(system: System) -> None:
    first = await system.log_in()
    second = (await refresh(system, first["refresh_token"])).json()
    third = (await refresh(system, second["refresh_token"])).json()
    stolen = await refresh(system, first["refresh_token"])
    assert (stolen.status_code, stolen.json()["code"]) == (401, "session-ended")
    assert (await refresh(system, third["refresh_token"])).status_code == 401
    await wait_until_refused(system, third["access_token"])


async def test_an_unknown_refresh_token_is_refused(system: System) -> None:
    assert (await refresh(system, "made-up")).status_code == 401


async def test_refresh_tokens_and_passwords_are_stored_as_hashes(system: System, tmp_path: Path) -> None:
    tokens = await system.log_in()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("auth.sqlite*"))
    assert tokens["refresh_token"].encode() not in stored
    assert PASSWORD.encode() not in stored


async def test_logout_ends_only_its_own_session(system: System) -> None:
    one, two = await system.log_in(), await system.log_in()
    headers = {"Authorization": f"Bearer {one['access_token']}"}
    assert (await system.client.get("/wallet", headers=headers)).status_code == 200
    logout = await system.client.delete("/sessions/current", headers=headers)
    assert (logout.status_code, logout.content) == (204, b"")
    await wait_until_refused(system, one["access_token"])
    assert (await refresh(system, one["refresh_token"])).status_code == 401
    assert (await system.client.get("/wallet", headers={"Authorization": f"Bearer {two['access_token']}"})).status_code == 200


async def test_only_logins_fail_while_auth_is_down(system: System) -> None:
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


async def test_a_login_that_races_with_a_change_of_the_user_is_refused(system: System) -> None:
    auth = system.service(Auth)
    assert auth is not None
    admin = await system.bearer("admin@example.com")
    user_id = (await system.client.get("/users/me", headers=await system.bearer())).json()["id"]
    password_checked, resume = asyncio.Event(), asyncio.Event()
    matches = auth.passwords.matches

    async def slow(password_hash: str | None, password: str) -> bool:
        found = await matches(password_hash, password)
        password_checked.set()
        await resume.wait()
        return found

    for change in ({"disabled": True}, {"disabled": False, "role": "operator"}):
        auth.passwords.matches = slow  # type: ignore[method-assign]
        login = asyncio.create_task(system.client.post("/sessions", json={"email": "rider@example.com", "password": PASSWORD}))
        await password_checked.wait()
        assert (await system.client.patch(f"/users/{user_id}", json=change, headers=admin)).status_code == 200
        resume.set()
        assert (await login).status_code == 401
        auth.passwords.matches = matches  # type: ignore[method-assign]
        password_checked.clear()
        resume.clear()
    await system.log_in()


async def test_a_revoked_token_is_refused_right_after_a_restart(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        headers = await system.bearer()
        assert (await system.client.delete("/sessions/current", headers=headers)).status_code == 204
    async with open_system(settings(tmp_path)) as system:
        answers = await asyncio.gather(*(system.client.get("/wallet", headers=headers) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {401}
