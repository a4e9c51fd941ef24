"""What it costs to be watched: the rate of REST requests without traces, with traces, and with the console open.

Each variant is a process of its own, and they are measured in turn. Run with `python -m tests.bench.scenarios watching`.
"""

import asyncio
import os
import statistics
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from config.cli.bench.gateway import require_wrk, wrk
from config.cli.bench.measured import GuardedMath
from config.cli.common import run_loop
from config.traces import otlp_spans
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import Node
from runtime.node.observation import Observe
from runtime.testing import FakeAuth
from tests.bench.figures import report
from tests.otlp import Collector
from transports.memory import MemoryTransport

VARIANTS: dict[str, dict[str, str]] = {
    "off": {},
    "one_percent": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "all": {"OTEL_TRACES_SAMPLER": "parentbased_always_on"},
    "console": {},
}
"""The variables of each variant beside the address of the collector."""
_ROUNDS = 7


async def serve(variant: str) -> None:
    """Run a gateway and a service, print the URL of a route, and wait for the end of the input."""
    gateway = Gateway(GatewaySettings(port=0))
    with otlp_spans() as spans:
        services: list[Any] = [FakeAuth, GuardedMath, lambda: gateway]
        async with Node(services, MemoryTransport(), spans=spans) as node:
            await node.registry.wait_for("math")
            watching = asyncio.create_task(_watch(gateway, node)) if variant == "console" else None
            print(f"http://127.0.0.1:{gateway.port}/add/1", FakeAuth.token("u1", "rider"), flush=True)
            await asyncio.to_thread(sys.stdin.read)
            if watching is not None:
                watching.cancel()


async def _watch(gateway: Gateway, node: Node) -> None:
    """Ask the node once a second, as the gateway does while somebody looks at the console."""
    one_in, known = 1, None
    while True:
        message = Observe() if known is None else Observe(known.recording, known.last_span, known.last_log, one_in)
        known = await gateway.proxy.ask_node(node.id, message, 5)
        one_in = min(one_in * 2, 1 << 16) if len(known.spans) > 200 else one_in
        await asyncio.sleep(1)


@asynccontextmanager
async def _process(variant: str, collector: str) -> AsyncGenerator[tuple[str, str], None]:
    traces = {} if variant in ("off", "console") else {"OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.watching", variant, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **VARIANTS[variant], **traces},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url, token = (await process.stdout.readline()).decode().split()
        yield url, token
    finally:
        process.stdin.close()
        await process.wait()


async def measure() -> None:
    """Measure all variants in turn, and report the share of the rate without traces that each one reaches."""
    require_wrk()
    rates: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    async with AsyncExitStack() as stack:
        collector = stack.enter_context(Collector())
        running = {variant: await stack.enter_async_context(_process(variant, collector.url)) for variant in VARIANTS}
        for number in range(_ROUNDS + 1):
            for variant in list(VARIANTS) if number % 2 else reversed(list(VARIANTS)):
                rate = await wrk(running[variant][0], 2, running[variant][1])
                if number:  # the first round warms up
                    rates[variant].append(rate)
    report("watching_off", statistics.median(rates["off"]), "requests/s")
    for variant in list(VARIANTS)[1:]:
        shares = [one / off for one, off in zip(rates[variant], rates["off"], strict=True)]
        report(f"watching_{variant}", 100 * statistics.median(shares), "% of the rate without")


def main() -> None:
    """Measure."""
    run_loop(measure())


if __name__ == "__main__":
    run_loop(serve(sys.argv[1]))
