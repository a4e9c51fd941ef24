"""`callboard bench`: what one small typed service does in a second, through the public API, with the runtime's defaults."""

import asyncio
import gc
import shutil
import tempfile
import time
from pathlib import Path

import msgspec
import rich_click as click

from config import compose
from config.cli.common import patience, run_loop
from config.settings import DatabaseSettings, Settings
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, CallboardError, Context, Contract, Node, Request, Service, Struct, handles, roles
from services.auth.messages import Login, Tokens, auth
from services.auth.passwords import HashSettings
from services.auth.service import Auth, AuthSettings, SeedUser
from transports.memory import MemorySettings, MemoryTransport

math = Contract("math")


class Sum(Struct):
    """A sum."""

    s: int


@math.message
class Add(Request[Sum]):
    """Adds one."""

    a: int


class Math(Service):
    """What is measured within the process."""

    contract = math

    @handles(allow=ANYONE)
    async def add(self, message: Add, ctx: Context) -> Sum:
        return Sum(message.a + 1)


class GuardedMath(Service):
    """What is measured behind the gateway: only a rider may add."""

    contract = math

    @handles(http="GET /add/{a}", allow=roles("rider"))
    async def add(self, message: Add, ctx: Context) -> Sum:
        return Sum(message.a + 1)


@click.group("bench")
def bench_command() -> None:
    """Measure this machine. Figures are per second; only ratios within one run mean something."""


_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@bench_command.command("local")
@_json
def local_command(as_json: bool) -> None:
    """Requests within one process, awaited one at a time: zero-copy, and with full encoding."""
    for name, zero_copy in (("local_c1", True), ("local_serialized_c1", False)):
        with patience(f"measuring {name}"):
            rate = run_loop(_local(zero_copy))
        _say(name, rate, as_json)


async def _local(zero_copy: bool) -> float:
    async with Node([Math], MemoryTransport(settings=MemorySettings(zero_copy=zero_copy))) as node:
        ctx = node.client("bench", (math,))
        await _ask(ctx, 20_000)
        gc.collect()
        return await _ask(ctx, 300_000)


async def _ask(ctx: Context, count: int) -> float:
    start = time.perf_counter()
    for number in range(count):
        await ctx.request(Add(number))
    return count / (time.perf_counter() - start)


@bench_command.command("http")
@_json
def http_command(as_json: bool) -> None:
    """`wrk -t1 -c64` on a route through the gateway, a valid access token on every request."""
    if shutil.which("wrk") is None:
        raise CallboardError("wrk is not on PATH: install it (Debian: apt-get install wrk; macOS: brew install wrk)")
    with patience("measuring the gateway with wrk"):
        rate = run_loop(_http())
    _say("gateway", rate, as_json)


async def _http() -> float:
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder:
        settings = Settings(database=DatabaseSettings(folder=str(Path(folder)), durable=False))
        user = SeedUser("bench@example.com", "rider", "bench-password")
        gateway = Gateway(GatewaySettings(port=0))
        auth_settings = AuthSettings(
            users=(user,), access_seconds=900, hashing=HashSettings(memory_kib=1024, iterations=1, lanes=1)
        )
        services = [lambda: Auth(auth_settings), GuardedMath, lambda: gateway]
        async with Node(services, MemoryTransport(), databases=compose.databases(settings)) as node:
            tokens: Tokens = await node.client("bench", (auth,)).request(Login(user.email, user.password))
            url = f"http://127.0.0.1:{gateway.port}/add/1"
            await _wrk(url, tokens.access_token, 1)
            return await _wrk(url, tokens.access_token, 5)


async def _wrk(url: str, token: str, seconds: int) -> float:
    wrk = await asyncio.create_subprocess_exec(
        "wrk", "-t1", "-c64", f"-d{seconds}s", "-H", f"Authorization: Bearer {token}", url, stdout=asyncio.subprocess.PIPE
    )
    text = (await wrk.communicate())[0].decode()
    if "Non-2xx" in text or "Requests/sec:" not in text:
        raise CallboardError(f"wrk met errors at {url}:\n{text}")
    return float(text.split("Requests/sec:")[1].split()[0])


def _say(name: str, rate: float, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"name": name, "rate": round(rate)}).decode())
    else:
        click.echo(f"{name:24} {rate:>12,.0f} per second")
