"""Helpers for the tests of the MQTT transport: ways to end a broker or to limit it, and `Echo` in a separate process."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import mqtt5

from runtime.sockets import any_free_port
from tests.broker import Broker
from tests.system.process import Callboard


async def kill(broker: Broker) -> None:
    await broker.stop(signal.SIGKILL)


async def stop(broker: Broker) -> None:
    await broker.stop()


PERSISTENT = ("allow_anonymous true", "persistence true", "autosave_interval 1", "autosave_on_changes true")


def echo_process(folder: Path, broker: Broker, **more: str) -> Callboard:
    """Return the command that runs `Echo` in a separate process."""
    return Callboard(
        folder, "run", "echo",
        CALLBOARD_SERVICES="tests.transports.mqtt.echo:Echo", CALLBOARD_TRANSPORT__KIND="mqtt", CALLBOARD_TRANSPORT__MQTT__URL=broker.url, **more,
    )  # fmt: skip


@asynccontextmanager
async def less_capable(broker: Broker, **changes: object) -> AsyncGenerator[str, None]:
    """Put a proxy before a broker that changes what its CONNACK announces. Yields the proxy's URL.

    The clients then use nothing that the CONNACK does not announce, so that the broker behaves as if it could not do it.
    """
    forwarding: set[asyncio.Task[None]] = set()

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, first: bytes) -> None:
        try:
            sink.write(first)
            while data := await source.read(65536):
                sink.write(data)
        except OSError:
            pass
        finally:
            sink.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", broker.port)
        connect = await reader.read(65536)
        broker_writer.write(connect)
        data = memoryview(await broker_reader.read(65536))
        packet, length = mqtt5.read(data)
        assert isinstance(packet, mqtt5.ConnAckPacket)
        announced = {name: getattr(packet, name) for name in _ANNOUNCED} | changes
        answer = mqtt5.ConnAckPacket(reason_code=packet.reason_code, **announced).write() + bytes(data[length:])
        for task in (copy(reader, broker_writer, b""), copy(broker_reader, writer, answer)):
            running = asyncio.create_task(task)
            forwarding.add(running)
            running.add_done_callback(forwarding.discard)

    port = any_free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        try:
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            for task in forwarding:
                task.cancel()
            await asyncio.gather(*forwarding, return_exceptions=True)


_ANNOUNCED = (
    "server_keep_alive", "receive_max", "max_qos", "retain_available", "max_packet_size", "wildcard_subscription_available",
    "subscription_id_available", "shared_subscription_available",
)  # fmt: skip
