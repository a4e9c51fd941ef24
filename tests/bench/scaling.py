"""The cost of membership: 20 services with 1 to 10 instances each, on a separate mosquitto.

`python -m tests.bench.scaling` prints a JSON line for each size: the seconds until all instances had joined and were known, the
traffic through the broker for that and during the 20 seconds afterwards, and the memory of this process per node.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import mqtt5

from runtime import Node
from runtime.testing import eventually
from tests.broker import Broker
from tests.transports.test_scale import many
from transports.mqtt.connection import Connection
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

_STEADY = 20.0


class Counters:
    """The bytes and messages that the broker reports to have sent and received."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    async def connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(lambda _, packet: self._take(packet), lambda _, reason: None, 1 << 20), "127.0.0.1", port
        )
        connection.send(mqtt5.ConnectPacket("counters", clean_start=True))
        names = ("bytes/sent", "bytes/received", "publish/messages/sent", "publish/messages/received")
        topics = [mqtt5.TopicFilter(f"$SYS/broker/{name}", max_qos=mqtt5.QoS.AT_MOST_ONCE) for name in names]
        connection.send(mqtt5.SubscribePacket(1, topics))

    def _take(self, packet: mqtt5.Packet) -> None:
        if isinstance(packet, mqtt5.PublishPacket) and packet.payload:
            self.values[packet.topic.removeprefix("$SYS/broker/")] = int(packet.payload)

    async def settled(self) -> dict[str, int]:
        """Return the values after the broker has published them again, which it does every other second."""
        await asyncio.sleep(3.5)
        return dict(self.values)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform != "darwin" else 1 << 10)


async def measure(replicas: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="callboard-scaling-") as folder:
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(
                Broker(Path(folder), "allow_anonymous true", "persistence false", "sys_interval 1", "set_tcp_nodelay true")
            )
            counters = Counters()
            await counters.connect(broker.port)
            settings = MqttSettings(url=broker.url)
            watcher = await stack.enter_async_context(Node([], MqttTransport(settings), name="watcher"))
            await watcher.environment.watch(None)
            nodes = [Node([service], MqttTransport(settings)) for service in many(20) for _ in range(replicas)]
            before, memory, start = await counters.settled(), _memory(), time.perf_counter()
            await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
            await eventually(lambda: len(list(watcher.registry)) == len(nodes), "the watcher knows all instances")
            joined = time.perf_counter() - start
            after = await counters.settled()
            await asyncio.sleep(_STEADY)
            steady = await counters.settled()
            count = len(nodes)
            return {
                "instances": count,
                "joined_seconds": round(joined, 2),
                "joining_kib_sent": (after["bytes/sent"] - before["bytes/sent"]) // 1024,
                "joining_kib_received": (after["bytes/received"] - before["bytes/received"]) // 1024,
                "steady_messages_sent_per_second": round((steady["publish/messages/sent"] - after["publish/messages/sent"]) / (_STEADY + 3.5)),
                "steady_kib_sent_per_second": round((steady["bytes/sent"] - after["bytes/sent"]) / 1024 / (_STEADY + 3.5), 1),
                "kib_of_memory_per_node": round((_memory() - memory) / count),
            }  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(asyncio.run(measure(int(sys.argv[1])))))
    else:
        import subprocess

        for replicas in (1, 2, 5, 10):
            subprocess.run([sys.executable, "-m", "tests.bench.scaling", str(replicas)], check=True)
