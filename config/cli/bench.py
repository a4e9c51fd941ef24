"""`callboard bench`: measure how many messages per second a small typed service handles.

The benchmarks use the public API with the runtime's default settings.
"""

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
from urllib.parse import urlsplit

import msgspec
import rich_click as click

from config import compose
from config.broker import open_broker
from config.cli.common import run_loop, with_json
from config.cli.output import progress
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
"""The environment variable that passes the transport settings to the second process of a benchmark."""

math = Contract("math")


class Sum(Struct):
    """The reply: a number."""

    s: int


@math.message
class Add(Request[Sum]):
    """Add one to a number."""

    a: int


class Math(Service):
    """The service that is measured without a gateway."""

    contract = math

    @handles(allow=ANYONE)
    async def add(self, message: Add, ctx: Context) -> Sum:
        return Sum(message.a + 1)


class GuardedMath(Service):
    """The service that is measured behind the gateway. Only riders may call it."""

    contract = math

    @handles(http="GET /add/{a}", allow=roles("rider"))
    async def add(self, message: Add, ctx: Context) -> Sum:
        return Sum(message.a + 1)


@click.group("bench")
def bench_command() -> None:
    """Measure performance on this machine, in operations per second.

    Compare figures only with others from the same run on the same machine.
    """


@bench_command.command("local")
@with_json
def local_command(as_json: bool) -> None:
    """Measure sequential requests within one process, with and without encoding."""
    for name, zero_copy in (("local_c1", True), ("local_serialized_c1", False)):
        with progress(f"measuring {name}"):
            rate = run_loop(_local(zero_copy))
        _print_rate(name, rate, as_json)


async def _local(zero_copy: bool) -> float:
    async with Node([Math], MemoryTransport(settings=MemorySettings(zero_copy=zero_copy))) as node:
        ctx = node.client("bench", (math,))
        await _request(ctx, 20_000)
        gc.collect()
        return await _request(ctx, 300_000)


async def _request(ctx: Context, count: int) -> float:
    start = time.perf_counter()
    for number in range(count):
        await ctx.request(Add(number))
    return count / (time.perf_counter() - start)


@bench_command.command("http")
@with_json
def http_command(as_json: bool) -> None:
    """Measure a REST route through the gateway with `wrk -t1 -c64`. Every request has a valid access token."""
    _require_wrk()
    with progress("measuring the gateway with wrk"):
        rate = run_loop(_behind_gateway(MemoryTransport(), GuardedMath))
    _print_rate("gateway", rate, as_json)


def _require_wrk() -> None:
    if shutil.which("wrk") is None:
        raise CallboardError("wrk is not on PATH: install it (Debian: apt-get install wrk; macOS: brew install wrk)")


async def _behind_gateway(transport: Transport, *services: type[Service]) -> float:
    """Measure a gateway with the auth service.

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
            url = f"http://127.0.0.1:{gateway.port}/add/1"
            await _wrk(url, tokens.access_token, 1)
            return await _wrk(url, tokens.access_token, 5)


async def _wrk(url: str, token: str, seconds: int) -> float:
    wrk = await asyncio.create_subprocess_exec(
        "wrk", "-t1", "-c64", f"-d{seconds}s", "-H", f"Authorization: Bearer {token}", url, stdout=asyncio.subprocess.PIPE
    )
    text = (await wrk.communicate())[0].decode()
    if "Non-2xx" in text or "Requests/sec:" not in text:
        raise CallboardError(f"wrk reported errors at {url}:\n{text}")
    return float(text.split("Requests/sec:")[1].split()[0])


@bench_command.command("mqtt")
@with_json
def mqtt_command(as_json: bool) -> None:
    """Measure requests between two processes over MQTT, sequential and 64 at a time.

    Uses the broker at $CALLBOARD_BENCH_BROKER, or starts a mosquitto broker.
    """
    for name, callers, count in (("request_c1", 1, 5_000), ("request_c64", 64, 64_000)):
        with progress(f"measuring {name}"):
            rate = run_loop(_behind_broker("math", partial(_request_concurrently, callers=callers, count=count)))
        _print_rate(name, rate, as_json)


@bench_command.command("peers")
@with_json
def peers_command(as_json: bool) -> None:
    """Measure requests between two processes over HTTP, sequential and 64 at a time."""
    for name, callers, count in (("peers_c1", 1, 4_000), ("peers_c64", 64, 32_000)):
        with progress(f"measuring {name}"):
            rate = run_loop(_over_http(partial(_request_concurrently, callers=callers, count=count)))
        _print_rate(name, rate, as_json)


async def _over_http(measure: Callable[[Node], Awaitable[float]]) -> float:
    private, public = peer_keys(("math", "publisher", "bench"))
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

    return await _between_processes("math", settings(ports[0], "math"), settings(ports[1], "publisher", "bench"), measure)


@bench_command.command("events")
@with_json
def events_command(as_json: bool) -> None:
    """Measure 100,000 signals between two processes over MQTT.

    The time runs from the first to the last signal received. Uses the same broker as `mqtt`.
    """
    with progress("measuring signals"):
        rate = run_loop(_behind_broker("subscriber", _signals))
    _print_rate("events", rate, as_json)


@bench_command.command("http-mqtt")
@with_json
def http_mqtt_command(as_json: bool) -> None:
    """Measure the same as `http`, with the service in a second process behind an MQTT broker."""
    _require_wrk()
    with progress("measuring the gateway with wrk and the service behind a broker"):
        rate = run_loop(_http_mqtt())
    _print_rate("gateway_mqtt", rate, as_json)


async def _http_mqtt() -> float:
    async with _broker() as settings, _service_process("guarded", settings):
        return await _behind_gateway(compose.transport(Settings(transport=settings)))


@bench_command.command("serve", hidden=True)
@click.argument("service")
def serve_command(service: str) -> None:
    """Run the second process of a benchmark."""
    services: dict[str, type[Service]] = {"math": Math, "guarded": GuardedMath, "subscriber": Subscriber}
    transport = msgspec.json.decode(os.environ[_TRANSPORT], type=TransportSettings)
    run_loop(_serve(services[service], Settings(transport=transport)))


async def _serve(service: type[Service], settings: Settings) -> None:
    async with Node([service], compose.transport(settings)) as node:
        await node.wait()


@asynccontextmanager
async def _broker() -> AsyncGenerator[TransportSettings, None]:
    """Provide transport settings for the broker at $CALLBOARD_BENCH_BROKER, or for one that runs inside the `async with` block.

    The namespace is random, so that benchmarks on a shared broker do not interfere.
    """
    namespace = f"bench-{secrets.token_hex(8)}"
    url = os.environ.get("CALLBOARD_BENCH_BROKER")
    if url:
        await _wait_until_listening(url)
        yield TransportSettings(kind="mqtt", mqtt=MqttSettings(url=url, namespace=namespace))
        return
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as folder:
        command, url = open_broker(Path(folder))
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        try:
            await _wait_until_listening(url)
            yield TransportSettings(kind="mqtt", mqtt=MqttSettings(url=url, namespace=namespace))
        finally:
            process.terminate()
            await process.wait()


async def _wait_until_listening(url: str) -> None:
    """Wait until a broker accepts connections.

    Raises:
        CallboardError: if it does not do so within 5 seconds.
    """
    try:
        async with asyncio.timeout(5):
            while True:
                try:
                    _, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port or 1883)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return
    except (TimeoutError, ValueError):
        raise CallboardError(
            f"no broker answers at {url}: start one there, or unset CALLBOARD_BENCH_BROKER so that one is started"
        ) from None


async def _behind_broker(service: str, measure: Callable[[Node], Awaitable[float]]) -> float:
    async with _broker() as settings:
        return await _between_processes(service, settings, settings, measure)


async def _between_processes(
    service: str, theirs: TransportSettings, ours: TransportSettings, measure: Callable[[Node], Awaitable[float]]
) -> float:
    """Measure with the service in a second process.

    Args:
        service: the name of the service.
        theirs: the transport settings of the second process.
        ours: the transport settings of this process.
        measure: returns the rate, given the node of this process.
    """
    async with _service_process(service, theirs), Node([Publisher], compose.transport(Settings(transport=ours))) as node:
        await node.registry.wait_for(service)
        return await measure(node)


@asynccontextmanager
async def _service_process(service: str, settings: TransportSettings) -> AsyncGenerator[None, None]:
    environment = {**os.environ, _TRANSPORT: msgspec.json.encode(settings).decode()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "config.cli", "bench", "serve", service, env=environment)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def _request_concurrently(node: Node, callers: int, count: int) -> float:
    ctx = node.client("bench", (math,))
    await _request(ctx, 500)
    gc.collect()
    start = time.perf_counter()
    await asyncio.gather(*(_request(ctx, count // callers) for _ in range(callers)))
    return count / (time.perf_counter() - start)


async def _signals(node: Node) -> float:
    ctx = node.client("publisher", (subscriber,))
    for number in range(SIGNALS):
        await ctx.publish(Tick(number))
    return (await ctx.request(GetRate(), timeout=60)).s


SIGNALS = 100_000

publisher = Contract("publisher")
subscriber = Contract("subscriber")


@publisher.message
class Tick(Signal):
    """A numbered signal."""

    number: int


@subscriber.message
class GetRate(Request[Sum]):
    """Wait for the last signal and return how many were received per second."""


class Publisher(Service):
    """Publishes signals."""

    contract = publisher


class Subscriber(Service):
    """Receives signals and measures their rate."""

    contract = subscriber

    def __init__(self) -> None:
        self.first = 0.0
        self.last = 0.0
        self.count = 0
        self.complete = asyncio.Event()

    @subscribes
    async def on_tick(self, signal: Tick, ctx: Context) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.count += 1
        if self.count == SIGNALS:
            self.complete.set()

    @handles(allow=ANYONE)
    async def get_rate(self, message: GetRate, ctx: Context) -> Sum:
        await self.complete.wait()
        return Sum(round(SIGNALS / (self.last - self.first)))


def _print_rate(name: str, rate: float, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"name": name, "rate": round(rate)}).decode())
    else:
        click.echo(f"{name:24} {rate:>12,.0f} per second")
