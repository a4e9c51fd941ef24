"""Helpers that refresh sessions and wait for their end."""

import asyncio

import httpx

from tests.system_under_test import System


async def refresh(system: System, token: str) -> httpx.Response:
    """Exchange a refresh token."""
    return await system.client.post("/sessions/refresh", json={"refresh_token": token})


async def wait_until_refused(system: System, token: str) -> None:
    """Wait until the wallet refuses an access token, which every node does within five seconds of its revocation."""
    headers = {"Authorization": f"Bearer {token}"}
    async with asyncio.timeout(5):
        while (await system.client.get("/wallet", headers=headers)).status_code != 401:
            await asyncio.sleep(0.02)
