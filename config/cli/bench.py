"""`callboard bench`: what one small typed service does in a second, through the public API, with the runtime's defaults."""

import asyncio
import gc
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import rich_click as click

from config import compose
from config.broker import open_broker
from config.cli.common import patience, run_loop
from config.provision import peer_keys
from config.settings import DatabaseSettings, Settings, TransportSettings
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import (
    ANYONE,
    CallboardError,
    Context,
    Contract,
    Node,
    Request,
    Service,
    Signal,
    Struct,
    Transport,
    handles,
    roles,
    subscribes,
)
from runtime.sockets import any_free_port
from services.auth.messages import Login, Tokens, auth
from services.auth.passwords import HashSettings
from services.auth.service import Auth, AuthSettings, SeedUser
from transports.http.settings import HttpSettings
from transports.memory import MemorySettings, MemoryTransport
from transports.mqtt.settings import MqttSettings

_TRANSPORT = "_CALLBOARD_BENCH_TRANSPORT"
"""The environment variable by which the other process of a measurement has its transport's settings."""

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
    _need_wrk()
    with patience("measuring the gateway with wrk"):
        rate = run_loop(_behind_gateway(MemoryTransport(), GuardedMath))
    _say("gateway", rate, as_json)


def _need_wrk() -> None:
    if shutil.which("wrk") is None:
        raise CallboardError("wrk is not on PATH: install it (Debian: apt-get install wrk; macOS: brew install wrk)")


async def _behind_gateway(transport: Transport, *services: type[Service]) -> float:
    """A gateway with auth, and the guarded service: here, or wherever the transport finds it."""
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


@bench_command.command("mqtt")
@_json
def mqtt_command(as_json: bool) -> None:
    """Requests between two processes behind a broker ($CALLBOARD_BENCH_BROKER, or one of its own): one at a time, and 64."""
    for name, callers, count in (("request_c1", 1, 5_000), ("request_c64", 64, 64_000)):
        with patience(f"measuring {name}"):
            rate = run_loop(_behind_broker("math", partial(_ask_at_once, callers=callers, count=count)))
        _say(name, rate, as_json)


@bench_command.command("peers")
@_json
def peers_command(as_json: bool) -> None:
    """The same over HTTP, from node to node: one at a time, and 64."""
    for name, callers, count in (("peers_c1", 1, 4_000), ("peers_c64", 64, 32_000)):
        with patience(f"measuring {name}"):
            rate = run_loop(_over_http(partial(_ask_at_once, callers=callers, count=count)))
        _say(name, rate, as_json)


async def _over_http(measure: Callable[[Node], Awaitable[float]]) -> float:
    private, public = peer_keys(("math", "mouth", "bench"))
    ports = any_free_port(), any_free_port()

    def settings(port: int, *names: str) -> TransportSettings:
        keys = [key for name in names for key in msgspec.json.decode(private[name])["keys"]]
        http = HttpSettings(
            port=port,
            peers=(f"math=http://127.0.0.1:{ports[0]}",),
            key=msgspec.json.encode({"keys": keys}).decode(),
            peer_keys=public,
        )
        return TransportSettings(kind="http", http=http)

    return await _apart("math", settings(ports[0], "math"), settings(ports[1], "mouth", "bench"), measure)


@bench_command.command("events")
@_json
def events_command(as_json: bool) -> None:
    """100,000 signals from one process to another behind a broker, from the first to the last received."""
    with patience("measuring signals"):
        rate = run_loop(_behind_broker("ear", _signals))
    _say("events", rate, as_json)


@bench_command.command("http-mqtt")
@_json
def http_mqtt_command(as_json: bool) -> None:
    """The same as `http`, with the service in a process of its own behind the broker."""
    _need_wrk()
    with patience("measuring the gateway with wrk, the service behind the broker"):
        rate = run_loop(_http_mqtt())
    _say("gateway_mqtt", rate, as_json)


async def _http_mqtt() -> float:
    async with _a_broker() as settings, _other("guarded", settings):
        return await _behind_gateway(compose.transport(Settings(transport=settings)))


@bench_command.command("serve", hidden=True)
@click.argument("what")
def serve_command(what: str) -> None:
    """The other process of a measurement."""
    services: dict[str, type[Service]] = {"math": Math, "guarded": GuardedMath, "ear": Ear}
    transport = msgspec.json.decode(os.environ[_TRANSPORT], type=TransportSettings)
    run_loop(_serve(services[what], Settings(transport=transport)))


async def _serve(service: type[Service], settings: Settings) -> None:
    async with Node([service], compose.transport(settings)) as node:
        await node.wait()


@asynccontextmanager
async def _a_broker() -> AsyncGenerator[TransportSettings, None]:
    """The broker of $CALLBOARD_BENCH_BROKER, or one that is started for the measurement; in it, a namespace of our own."""
    namespace = f"bench-{secrets.token_hex(8)}"
    given = os.environ.get("CALLBOARD_BENCH_BROKER")
    if given:
        await _listening(given)
        yield TransportSettings(kind="mqtt", mqtt=MqttSettings(url=given, namespace=namespace))
        return
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder:
        command, url = open_broker(Path(folder))
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        try:
            await _listening(url)
            yield TransportSettings(kind="mqtt", mqtt=MqttSettings(url=url, namespace=namespace))
        finally:
            process.terminate()
            await process.wait()


async def _listening(url: str) -> None:
    """Waits until a broker takes connections. Raises `CallboardError` if that does not come soon."""
    host, _, port = url.removeprefix("mqtt://").rpartition(":")
    try:
        async with asyncio.timeout(5):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return
    except (TimeoutError, ValueError):
        raise CallboardError(
            f"no broker answers at {url}: start one there, or unset CALLBOARD_BENCH_BROKER to have one started"
        ) from None


async def _behind_broker(service: str, measure: Callable[[Node], Awaitable[float]]) -> float:
    async with _a_broker() as settings:
        return await _apart(service, settings, settings, measure)


async def _apart(
    service: str, theirs: TransportSettings, ours: TransportSettings, measure: Callable[[Node], Awaitable[float]]
) -> float:
    """Measures with a service in a process of its own."""
    async with _other(service, theirs), Node([Mouth], compose.transport(Settings(transport=ours))) as node:
        await node.registry.wait_for(service)
        return await measure(node)


@asynccontextmanager
async def _other(service: str, settings: TransportSettings) -> AsyncGenerator[None, None]:
    environment = {**os.environ, _TRANSPORT: msgspec.json.encode(settings).decode()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "config.cli", "bench", "serve", service, env=environment)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def _ask_at_once(node: Node, callers: int, count: int) -> float:
    ctx = node.client("bench", (math,))
    await _ask(ctx, 500)
    gc.collect()
    start = time.perf_counter()
    await asyncio.gather(*(_ask(ctx, count // callers) for _ in range(callers)))
    return count / (time.perf_counter() - start)


async def _signals(node: Node) -> float:
    ctx = node.client("mouth", (ear,))
    for number in range(SIGNALS):
        await ctx.publish(Word(number))
    return (await ctx.request(Heard(), timeout=60)).s


SIGNALS = 100_000

mouth = Contract("mouth")
ear = Contract("ear")


@mouth.message
class Word(Signal):
    """What is said."""

    number: int


@ear.message
class Heard(Request[Sum]):
    """How many signals a second were heard, once the last has come."""


class Mouth(Service):
    """Publishes signals."""

    contract = mouth


class Ear(Service):
    """Hears them."""

    contract = ear

    def __init__(self) -> None:
        self.first = 0.0
        self.last = 0.0
        self.count = 0
        self.all = asyncio.Event()

    @subscribes
    async def on_word(self, signal: Word, ctx: Context) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.count += 1
        if self.count == SIGNALS:
            self.all.set()

    @handles(allow=ANYONE)
    async def heard(self, message: Heard, ctx: Context) -> Sum:
        await self.all.wait()
        return Sum(round(SIGNALS / (self.last - self.first)))


def _say(name: str, rate: float, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"name": name, "rate": round(rate)}).decode())
    else:
        click.echo(f"{name:24} {rate:>12,.0f} per second")
