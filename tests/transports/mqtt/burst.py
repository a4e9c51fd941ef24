"""A process that publishes signals to itself in one burst, then prints how many MiB its memory grew and how many it received.

Usage: `python -m tests.transports.mqtt.burst <broker URL> <number of signals>`
"""

import asyncio
import resource
import sys

from runtime import Node
from runtime.testing import eventually
from tests.transports.mqtt.echo import Echo, Heard, Repeat, echo
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


async def main(url: str, signals: int) -> tuple[float, int, int]:
    async with (
        Node([Echo], MqttTransport(MqttSettings(url=url))) as subscriber,
        Node([], MqttTransport(MqttSettings(url=url))) as publisher,
    ):
        ctx = publisher.client("echo", (echo,))
        service = subscriber.service(Echo)
        assert service is not None
        for _ in range(1000):
            await ctx.publish(Heard("hall", "x" * 100))
        await eventually(lambda: service.heard, "the service has received the warm-up signals")
        before = _peak()
        received = 0
        for number in range(signals):
            await ctx.publish(Heard("hall", f"{number:100}"))
            received += len(service.heard)
            service.heard.clear()
        assert await ctx.request(Repeat("done"), timeout=60) == "done"
        received += len(service.heard)
        dropped = subscriber.metrics.value("signals_dropped_total", service="echo")
        return _peak() - before, received, int(dropped)


def _peak() -> float:
    """Return the peak memory of this process, in MiB. macOS reports bytes, Linux KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    print("grown by {:.1f} MiB; received {}, dropped {}".format(*asyncio.run(main(sys.argv[1], int(sys.argv[2])))))
