"""Passwords and e-mail addresses that another keyboard types in another form."""

import unicodedata
from pathlib import Path

import pytest

from services.auth.normal_forms import canonical_email
from services.auth.passwords import Passwords
from services.auth.service import Auth, SeedUser
from tests.system_under_test import FAST_HASHING, System, open_system, settings

TYPED = "Crème brûlée ②"


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


FORMS = {
    "one character": unicodedata.normalize("NFC", TYPED),
    "two characters": nfd(TYPED),
    "compatibility": unicodedata.normalize("NFKC", TYPED),
}


@pytest.mark.parametrize("typed", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("hashed", FORMS.values(), ids=FORMS)
async def test_a_password_matches_in_every_form_of_unicode(hashed: str, typed: str) -> None:
    passwords = Passwords(FAST_HASHING)
    assert await passwords.matches(await passwords.hash(hashed), typed)
    assert not await passwords.matches(await passwords.hash(hashed), typed.replace("è", "e").replace("e\u0300", "e"))
    assert not await passwords.matches(None, typed)


@pytest.mark.parametrize("typed", [FORMS["one character"], FORMS["two characters"]], ids=["one character", "two characters"])
async def test_a_hash_of_an_earlier_version_still_matches(typed: str) -> None:
    passwords = Passwords(FAST_HASHING)
    as_typed = passwords._hasher.hash(typed)  # pyright: ignore[reportPrivateUsage]
    assert await passwords.matches(as_typed, typed)
    as_nfd = passwords._hasher.hash(nfd("Crème brûlée"))  # pyright: ignore[reportPrivateUsage]
    assert await passwords.matches(as_nfd, "Crème brûlée"), "also from another keyboard"


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("Ann@Example.COM", "ann@example.com"), (nfd("José@example.com"), "josé@example.com"), (nfd("ann@bücher.example"), "ann@bücher.example"),
        ("ann@xn--bcher-kva.example", "ann@bücher.example"), ("ann@BÜCHER.example", "ann@bücher.example"), ("ann@straße.example", "ann@straße.example"),
        ("ann@ｅｘａｍｐｌｅ.com", "ann@example.com"), ("ann@exa_mple.com", "ann@exa_mple.com"), ("ann@xn--a.example", "ann@xn--a.example"),
        ("ann@\u0301x.example", "ann@\u0301x.example"), ("no address", "no address"), ("", ""),
    ],
)  # fmt: skip
def test_an_address_has_one_form(typed: str, stored: str) -> None:
    assert canonical_email(typed) == unicodedata.normalize("NFC", stored)
    assert canonical_email(canonical_email(typed)) == canonical_email(typed)


async def test_a_user_logs_in_from_another_keyboard(system: System) -> None:
    new = {"email": nfd("José@Bücher.example"), "password": FORMS["two characters"], "name": "José"}
    registered = await system.client.post("/users", json=new)
    assert (registered.status_code, registered.json()["email"]) == (201, "josé@bücher.example")
    for email in ("josé@bücher.example", nfd("josé@bücher.example"), "JOSÉ@xn--bcher-kva.EXAMPLE"):
        again = await system.client.post("/users", json={**new, "email": email})
        assert (again.status_code, again.json()["code"]) == (409, "email-taken")
        for password in FORMS.values():
            await system.log_in(email, password)
    tokens = await system.log_in("josé@bücher.example", TYPED)
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    change = {"old": FORMS["one character"], "new": nfd("naïve façade")}
    assert (await system.client.post("/users/me/password", json=change, headers=headers)).status_code == 204
    await system.log_in("josé@bücher.example", "naïve façade")


async def test_a_user_of_an_earlier_version_keeps_the_account(system: System) -> None:
    db = system.service(Auth).db
    old = nfd("josé@example.com")
    await db.execute("UPDATE users SET email = $1 WHERE email = 'rider@example.com'", old)
    await system.log_in(old)
    new = {"email": old, "password": "long enough one", "name": "Another"}
    assert (await system.client.post("/users", json=new)).status_code == 409


async def test_an_address_of_an_earlier_version_cannot_be_taken_in_its_other_form(system: System) -> None:
    auth = system.service(Auth)
    for old in (nfd("josé@example.com"), "josé@xn--bcher-kva.example"):
        await auth.db.execute("UPDATE users SET email = $1 WHERE id = (SELECT min(id) FROM users)", old)
        assert await auth.store.canonicalize_emails() == [], "as at the start of this version"
        new = {"email": canonical_email(old), "password": "long enough one", "name": "Thief"}
        assert (await system.client.post("/users", json=new)).status_code == 409
    await auth.db.execute("UPDATE users SET email = $1 WHERE id = (SELECT max(id) FROM users)", nfd(canonical_email(old)))
    [clash] = await auth.db.fetch("SELECT max(id) AS id FROM users")
    assert await auth.store.canonicalize_emails() == [clash["id"]]


@pytest.mark.parametrize("password", ["e\u0301" * 4 + "abc", "ｐａｓｓｗｏｒｄ", "ＲｉｄｅｒＸ@ｅｘａｍｐｌｅ.com"])
async def test_a_new_password_is_judged_in_its_stored_form(system: System, password: str) -> None:
    new = {"email": "riderx@example.com", "password": password, "name": "X"}
    assert (await system.client.post("/users", json=new)).status_code == 422


async def test_seed_users_are_found_in_every_form(tmp_path: Path) -> None:
    for email, password in (("josé@example.com", FORMS["one character"]), (nfd("josé@example.com"), FORMS["two characters"])):
        async with open_system(settings(tmp_path, auth={"users": (SeedUser(email, "rider", password),)})) as opened:
            await opened.log_in("josé@example.com", TYPED)
            [row] = await opened.service(Auth).db.fetch("SELECT count(*) AS n FROM users")
            assert row["n"] == 1
