"""REST requests through the gateway, made by `wrk`. Every request has a valid access token."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from config import compose
from config.cli.bench.measured import GuardedMath
from config.cli.bench.processes import broker, service_process
from config.settings import DatabaseSettings, Settings
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import CallboardError, Node, Service, Transport
from services.auth.messages import Login, Tokens, auth
from services.auth.passwords import HashSettings
from services.auth.service import Auth, AuthSettings, SeedUser
from transports.memory import MemoryTransport


def require_wrk() -> None:
    """Check that `wrk` is installed.

    Raises:
        CallboardError: if it is not.
    """
    if shutil.which("wrk") is None:
        raise CallboardError("wrk is not on PATH: install it (Debian: apt-get install wrk; macOS: brew install wrk)")


async def with_service() -> float:
    """Return the rate with the service in the gateway's process."""
    async with open_gateway(MemoryTransport(), GuardedMath) as (url, token):
        return await _measure(url, token)


async def behind_broker() -> float:
    """Return the rate with the service in a second process, behind a broker."""
    async with (
        broker() as settings,
        service_process([GuardedMath], settings),
        open_gateway(compose.transport(Settings(transport=settings))) as (url, token),
    ):
        return await _measure(url, token)


@asynccontextmanager
async def open_gateway(transport: Transport, *services: type[Service]) -> AsyncGenerator[tuple[str, str], None]:
    """Run a gateway with the auth service. Yield the URL of the measured route and an access token.

    Args:
        transport: the transport of the gateway's node.
        services: the measured service, if the same node hosts it; otherwise it is found through the transport.
    """
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder:
        settings = Settings(database=DatabaseSettings(folder=str(Path(folder)), durable=False))
        user = SeedUser("bench@example.com", "rider", "bench-password")
        gateway = Gateway(GatewaySettings(port=0))
        auth_settings = AuthSettings(
            users=(user,), access_seconds=900, hashing=HashSettings(memory_kib=1024, iterations=1, lanes=1)
        )
        hosted: list[Callable[[], Service]] = [lambda: Auth(auth_settings), *services, lambda: gateway]
        async with Node(hosted, transport, databases=compose.databases(settings)) as node:
            await node.registry.wait_for("math")
            tokens: Tokens = await node.client("bench", (auth,)).request(Login(user.email, user.password))
            yield f"http://127.0.0.1:{gateway.port}/add/1", tokens.access_token


async def _measure(url: str, token: str) -> float:
    await wrk(url, 1, token)
    return await wrk(url, 5, token)


async def wrk(url: str, seconds: int, token: str) -> float:
    """Return the rate of `wrk -t1 -c64`.

    Raises:
        CallboardError: if requests fail.
    """
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "-H", f"Authorization: Bearer {token}", url]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    text = (await process.communicate())[0].decode()
    if "Non-2xx" in text or "Requests/sec:" not in text:
        raise CallboardError(f"wrk reported errors at {url}:\n{text}")
    return float(text.split("Requests/sec:")[1].split()[0])
