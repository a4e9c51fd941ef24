"""The whole reference system behind its gateway, in this process, on a free port."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from config import compose
from config.settings import DatabaseSettings, Settings, TransportSettings
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node, NodeSettings
from services.auth.passwords import HashSettings
from services.auth.service import AuthSettings, SeedUser
from services.devices.service import DeviceSettings
from transports.memory import MemorySettings

PASSWORD = "correct horse battery"
QUICK = HashSettings(memory_kib=64, iterations=1, lanes=1)
USERS = (
    SeedUser("rider@example.com", "rider", PASSWORD),
    SeedUser("operator@example.com", "operator", PASSWORD),
    SeedUser("admin@example.com", "admin", PASSWORD),
)


class House:
    """A running system and a client that knows its address."""

    def __init__(self, node: Node, client: httpx.AsyncClient) -> None:
        self.node = node
        self.client = client
        self.url = str(client.base_url)

    async def log_in(self, email: str = "rider@example.com", password: str = PASSWORD) -> dict[str, Any]:
        answer = await self.client.post("/sessions", json={"email": email, "password": password})
        assert answer.status_code == 201, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def bearer(self, email: str = "rider@example.com") -> dict[str, str]:
        """Header fields of a user who has just logged in."""
        return {"Authorization": f"Bearer {(await self.log_in(email))['access_token']}"}


def settings(folder: Path, *, zero_copy: bool = False, auth: dict[str, Any] | None = None, **gateway: Any) -> Settings:
    return Settings(
        database=DatabaseSettings(folder=str(folder), durable=False),
        transport=TransportSettings(memory=MemorySettings(zero_copy=zero_copy)),
        gateway=GatewaySettings(port=0, **gateway),
        auth=msgspec.structs.replace(AuthSettings(users=USERS, hashing=QUICK), **(auth or {})),
        devices=DeviceSettings(count=0),
        node=NodeSettings(drain_timeout=1),
    )


@asynccontextmanager
async def open_house(chosen: Settings) -> AsyncGenerator[House, None]:
    async with compose.node(chosen) as node:
        gateway = node.service(Gateway)
        assert gateway is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=20) as client:
            yield House(node, client)
