"""The second process of a benchmark, and what lies between it and the first one: a broker, or HTTP."""

import asyncio
import importlib
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from config import compose
from config.broker import open_broker
from config.cli.bench.measured import Publisher
from config.provision import peer_keys
from config.settings import Settings, TransportSettings
from runtime import CallboardError, Node, Service
from runtime.sockets import any_free_port
from transports.http.settings import HttpSettings
from transports.mqtt.settings import MqttSettings

T = TypeVar("T")

_TRANSPORT = "_CALLBOARD_BENCH_TRANSPORT"
"""The environment variable that passes the transport settings to the second process."""


async def serve(classes: Sequence[str]) -> None:
    """Run services until the process is stopped, or the process that started it has ended.

    Args:
        classes: the service classes, each as `module:Class`.
    """
    transport = msgspec.json.decode(os.environ[_TRANSPORT], type=TransportSettings)
    services: list[type[Service]] = []
    for path in classes:
        module, _, name = path.partition(":")
        services.append(getattr(importlib.import_module(module), name))
    threading.Thread(target=_end_with_input, daemon=True).start()
    async with Node(services, compose.transport(Settings(transport=transport))) as node:
        await node.wait()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


@asynccontextmanager
async def service_process(services: Sequence[type[Service]], settings: TransportSettings) -> AsyncGenerator[None, None]:
    """Run services in another process for as long as the `async with` block runs."""
    environment = {**os.environ, _TRANSPORT: msgspec.json.encode(settings).decode()}
    classes = [f"{service.__module__}:{service.__name__}" for service in services]
    command = [sys.executable, "-m", "config.cli", "bench", "serve", *classes]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=asyncio.subprocess.PIPE)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # an interrupt at the terminal has ended it, too
            process.kill()
        await process.wait()


async def over_mqtt(services: Sequence[type[Service]], measure: Callable[[Node], Awaitable[T]], *here: type[Service]) -> T:
    """Measure with a broker between the callers and the services.

    Args:
        services: the services of the second process.
        measure: returns the result, given the node of this process.
        here: the services of this process.
    """
    async with broker() as settings:
        return await _between(services, settings, settings, measure, here or (Publisher,))


async def over_http(services: Sequence[type[Service]], measure: Callable[[Node], Awaitable[T]]) -> T:
    """Measure with HTTP between the callers and the services. The arguments are those of `over_mqtt`."""
    theirs, ours = http_peers([service.contract.name for service in services])
    return await _between(services, theirs, ours, measure, (Publisher,))


def http_peers(names: Sequence[str]) -> tuple[TransportSettings, TransportSettings]:
    """Return the transport settings of two nodes that reach each other over HTTP.

    Args:
        names: the services of the first node. The second one hosts `Publisher`, and a client with the name `bench`.
    """
    private, public = peer_keys((*names, "publisher", "bench"))
    ports = any_free_port(), any_free_port()

    def settings(port: int, hosted: Sequence[str]) -> TransportSettings:
        keys = [key for name in hosted for key in msgspec.json.decode(private[name])["keys"]]
        http = HttpSettings(
            port=port,
            peers=tuple(f"{name}=http://127.0.0.1:{ports[0]}" for name in names),
            key=msgspec.json.encode({"keys": keys}).decode(),
            peer_keys=public,
        )
        return TransportSettings(kind="http", http=http)

    return settings(ports[0], names), settings(ports[1], ("publisher", "bench"))


async def _between(
    services: Sequence[type[Service]],
    theirs: TransportSettings,
    ours: TransportSettings,
    measure: Callable[[Node], Awaitable[T]],
    here: Sequence[type[Service]],
) -> T:
    async with service_process(services, theirs), Node(here, compose.transport(Settings(transport=ours))) as node:
        for service in services:
            await node.registry.wait_for(service.contract.name)
        return await measure(node)


@asynccontextmanager
async def broker() -> AsyncGenerator[TransportSettings, None]:
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
            with suppress(ProcessLookupError):  # as above
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
