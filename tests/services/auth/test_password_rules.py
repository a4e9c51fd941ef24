"""New passwords that an attacker would try first."""

from pathlib import Path

import pytest

from runtime import StartError
from services.auth.password_rules import weakness
from services.auth.service import Auth, AuthSettings, SeedUser
from tests.system_under_test import PASSWORD, open_system, settings

WEAK = (
    "password", "Password1", "PASSWORD123!", "P@ssw0rd", "passw0rd2024", "qwerty123", "letmein123", "iloveyou", "12345678", "987654321", "abcdefgh",
    "00000000", "12341234", "adminadmin", "abcabcabca", "administrator", "Callboard1", "rider@example.com", "Rider@Example.com",
)  # fmt: skip
STRONG = (
    PASSWORD,
    "long enough",
    "tr0ub4dor&3x",
    "p4ssw0rdless-keys",
    "häßlicher Pinguin",
    "rider@example.org",
    "🦆🐎🔋📎 und mehr",
    "zq7!vK2m",
)


@pytest.mark.parametrize("password", WEAK)
def test_common_passwords_and_the_own_address_are_weak(password: str) -> None:
    assert weakness(password, "rider@example.com") is not None


@pytest.mark.parametrize("password", STRONG)
def test_other_passwords_are_not(password: str) -> None:
    assert weakness(password, "rider@example.com") is None


def test_the_name_before_the_at_sign_is_weak_too() -> None:
    assert weakness("Ada.Lovelace", "ada.lovelace@example.com") == "the password is the e-mail address"
    assert weakness("Ada.Lovelace", "rider@example.com") is None


async def test_a_weak_password_is_refused_at_registration_and_when_it_is_changed(tmp_path: Path) -> None:
    async with open_system(settings(tmp_path)) as system:
        for password in ("password1", "ada.long@example.com"):
            answer = await system.client.post(
                "/users", json={"email": "ada.long@example.com", "password": password, "name": "Ada"}
            )
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/password")
        headers = await system.bearer()
        for password in ("password1", "rider@example.com"):
            answer = await system.client.post("/users/me/password", json={"old": PASSWORD, "new": password}, headers=headers)
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/new")
        await system.log_in()


@pytest.mark.parametrize("password", ["password1", "rider@example.com"])
def test_a_weak_password_of_a_user_in_the_settings_stops_the_start(password: str) -> None:
    with pytest.raises(StartError, match=r"auth\.users: rider@example\.com: the password is") as refused:
        Auth(AuthSettings(users=(SeedUser("rider@example.com", "rider", password),)))
    assert "password1" not in str(refused.value)
