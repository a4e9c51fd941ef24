"""Signing keys: publication, rotation, and retirement."""

import asyncio
from datetime import timedelta
from pathlib import Path

import jwt
import msgspec

from runtime import ManualClock, NodeSettings, TokenSettings
from runtime.storage.migrations import migrate
from runtime.storage.sqlite import SqliteDatabase
from services.auth.keys import SigningKeys
from services.auth.service import Auth
from tests.system_under_test import open_system, settings


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
