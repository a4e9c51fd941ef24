"""A process that publishes 100,000 signals to itself in one burst, and prints by how many MiB its memory has grown, and how many were heard.

Usage: `python -m tests.transports.burst <broker's URL> <signals>`
"""

import asyncio
import resource
import sys

from runtime import Node
from runtime.testing import eventually
from tests.transports.echo import Echo, Heard, Repeat, echo
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


async def main(url: str, signals: int) -> tuple[float, int, int]:
    async with (
        Node([Echo], MqttTransport(MqttSettings(url=url))) as hears,
        Node([], MqttTransport(MqttSettings(url=url))) as says,
    ):
        ctx = says.client("echo", (echo,))
        service = hears.service(Echo)
        assert service is not None
        for _ in range(1000):
            await ctx.publish(Heard("hall", "x" * 100))
        await eventually(lambda: service.heard, "it is warm")
        before = _peak()
        heard = 0
        for number in range(signals):
            await ctx.publish(Heard("hall", f"{number:100}"))
            heard += len(service.heard)
            service.heard.clear()
        assert await ctx.request(Repeat("and now?"), timeout=60) == "and now?"
        heard += len(service.heard)
        dropped = hears.metrics.value("signals_dropped_total", service="echo")
        return _peak() - before, heard, int(dropped)


def _peak() -> float:
    """The largest that this process has been, in MiB (macOS counts in bytes, Linux in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    print("grown by {:.1f} MiB; heard {}, dropped {}".format(*asyncio.run(main(sys.argv[1], int(sys.argv[2])))))
