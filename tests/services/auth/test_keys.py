"""Signing keys: publication, rotation, and retirement."""

import asyncio
from datetime import timedelta
from pathlib import Path

import jwt
import msgspec

from runtime import ManualClock, NodeSettings, TokenSettings
from runtime.storage.migrations import migrate
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import eventually
from services.auth.keys import SigningKeys
from services.auth.service import Auth
from tests.system_under_test import System, on_postgres, open_system, settings


async def test_keys_rotate_without_a_refused_request(tmp_path: Path) -> None:
    chosen = settings(tmp_path, auth={"publish_lead_seconds": 2.0})
    chosen = msgspec.structs.replace(chosen, node=NodeSettings(tokens=TokenSettings(keys_seconds=0.2)))
    async with open_system(chosen) as system:
        old = await system.bearer()
        auth = system.service(Auth)
        assert auth is not None
        before = jwt.get_unverified_header(old["Authorization"].split()[1])["kid"]
        statuses: list[int] = []

        async def keep_requesting() -> None:
            while len(kids) < 2 or len(statuses) < 60:
                statuses.append((await system.client.get("/wallet", headers=old)).status_code)
                fresh = await system.bearer()
                statuses.append((await system.client.get("/wallet", headers=fresh)).status_code)
                kids.add(jwt.get_unverified_header(fresh["Authorization"].split()[1])["kid"])

        kids = {before}
        requesting = asyncio.create_task(keep_requesting())
        await auth.keys.rotate()
        async with asyncio.timeout(20):
            await requesting
        assert set(statuses) == {200}
        published = [key["kid"] for key in (await system.client.get("/.well-known/jwks.json")).json()["keys"]]
        assert sorted(published) == sorted(kids)


async def test_a_new_key_is_published_before_it_signs_and_an_old_one_is_retired(tmp_path: Path) -> None:
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
        assert signer() == first, "the new key is published before it signs"
        clock.advance(timedelta(seconds=61))
        second = signer()
        assert second != first
        assert len(keys.published().keys) == 2, "tokens signed by the first key are still valid"
        clock.advance(timedelta(minutes=20))
        await keys.rotate_if_older(3600)
        assert [key.kid for key in keys.published().keys] == [second]
    finally:
        await database.close()


def kid_of(headers: dict[str, str]) -> str:
    kid: str = jwt.get_unverified_header(headers["Authorization"].split()[1])["kid"]
    return kid


async def test_a_key_that_has_become_known_is_retired_at_once(tmp_path: Path) -> None:
    chosen = msgspec.structs.replace(settings(tmp_path), node=NodeSettings(tokens=TokenSettings(keys_seconds=0.1)))
    async with open_system(chosen) as system:
        old, admin = await system.bearer(), await system.bearer("admin@example.com")
        [key] = (await system.client.get("/console/keys", headers=admin)).json()["items"]
        assert (key["kid"], key["state"], key["retires"]) == (kid_of(old), "signs", None)
        published = (await system.client.post("/console/keys", headers=admin)).json()["items"]
        assert [one["state"] for one in published] == ["signs", "published"]
        assert (await system.client.delete(f"/console/keys/{key['kid']}", headers=admin)).status_code == 200
        new = await system.bearer()
        assert kid_of(new) == published[1]["kid"], "the one that was published signs at once"

        async def refused() -> bool:
            return (await system.client.get("/wallet", headers=old)).status_code == 401

        await eventually(refused, "tokens of the retired key are refused")
        assert (await system.client.get("/wallet", headers=new)).status_code == 200
        again = await system.client.delete(f"/console/keys/{key['kid']}", headers=await system.bearer("admin@example.com"))
        assert (again.status_code, again.json()["code"]) == (404, "unknown-signing-key")


async def test_the_last_key_is_replaced_when_it_is_retired(system: System) -> None:
    admin = await system.bearer("admin@example.com")
    assert (await system.client.delete(f"/console/keys/{kid_of(admin)}", headers=admin)).status_code == 200
    assert kid_of(await system.bearer()) != kid_of(admin)


async def test_only_admins_see_and_change_the_keys(system: System) -> None:
    for who in ("rider@example.com", "operator@example.com"):
        headers = await system.bearer(who)
        assert (await system.client.get("/console/keys", headers=headers)).status_code == 403
        assert (await system.client.post("/console/keys", headers=headers)).status_code == 403
        assert (await system.client.delete("/console/keys/x", headers=headers)).status_code == 403


async def test_replicas_of_auth_share_their_keys(tmp_path: Path) -> None:
    chosen = msgspec.structs.replace(settings(tmp_path), database=on_postgres(tmp_path))
    async with open_system(chosen, separate_nodes=True, replicas=2) as system:
        admin = await system.bearer("admin@example.com")
        kids = {kid_of(await system.bearer()) for _ in range(8)}
        assert kids == {kid_of(admin)}, "both instances have started with the same key"
        assert (await system.client.delete(f"/console/keys/{kid_of(admin)}", headers=admin)).status_code == 200
        after = {kid_of(await system.bearer()) for _ in range(8)}
        assert len(after) == 1, "each signs with the key that the other one has created"
        assert after.isdisjoint(kids)
        for _ in range(8):
            published = [key["kid"] for key in (await system.client.get("/.well-known/jwks.json")).json()["keys"]]
            assert published == list(after)
