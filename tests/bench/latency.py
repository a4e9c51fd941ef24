"""Latency at a fixed rate: of our gateway, of moleculer-web, and of FastAPI, at shares of what each can do.

Requests are due at fixed times, whether earlier ones were answered or not (an open loop). A latency counts from the time when a
request was due, so waiting for a free connection counts, too, and a server that pauses cannot hide it (coordinated omission).

`python -m tests.bench.latency SIDE` prints a JSON object per figure. The generator is part of the measurement: it says which
share of a core it took.
"""

import asyncio
import select
import selectors
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

from config.cli.bench.gateway import open_gateway, require_wrk, wrk
from config.cli.bench.measured import GuardedMath
from config.cli.common import run_loop
from runtime import Struct
from tests.bench import fastapi_by_hand, moleculer
from tests.bench.figures import report
from transports.memory import MemoryTransport

SHARES = (30, 60, 80)
"""The rates, in percent of the capacity, which is what `wrk -t1 -c64` reaches."""
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
CONNECTIONS = 64
_SECONDS = 5.0
_PATIENCE = 10.0
"""Seconds for which the generator waits for the last responses."""


class Latencies(Struct):
    """What the generator has measured.

    Attributes:
        seconds: the latency of each request, in ascending order.
        cpu: the generator's CPU time as a share of one core.
    """

    seconds: tuple[float, ...]
    cpu: float

    def quantile(self, share: float) -> float:
        """Return the latency that this share of the requests did not exceed."""
        return self.seconds[min(int(share * len(self.seconds)), len(self.seconds) - 1)]


def open_loop(url: str, token: str, rate: float, seconds: float) -> Latencies:
    """Make requests at a fixed rate, with one in progress per connection.

    A request that is not answered in the end counts as if it were answered then.
    """
    parts = urlsplit(url)
    request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    with ExitStack() as stack:
        poller = stack.enter_context(selectors.DefaultSelector())
        idle = [stack.enter_context(socket.create_connection((parts.hostname, parts.port))) for _ in range(CONNECTIONS)]
        for connection in idle:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poller.register(connection, selectors.EVENT_READ, connection)
        cpu, start = time.thread_time(), time.perf_counter()
        latencies = _request_on_time(poller, idle, request, rate, seconds)
        share = (time.thread_time() - cpu) / (time.perf_counter() - start)
    return Latencies(tuple(sorted(latencies)), share)


def _request_on_time(
    poller: selectors.DefaultSelector, idle: list[socket.socket], request: bytes, rate: float, seconds: float
) -> list[float]:
    total, sent = round(rate * seconds), 0
    due: dict[socket.socket, float] = {}
    received: dict[socket.socket, bytes] = {}
    latencies: list[float] = []
    start = time.perf_counter()
    while len(latencies) < total:
        now = time.perf_counter() - start
        while idle and sent < total and sent / rate <= now:
            connection = idle.pop()
            due[connection] = sent / rate
            connection.sendall(request)
            sent += 1
        if now > seconds + _PATIENCE:
            unanswered = [*due.values(), *(number / rate for number in range(sent, total))]
            return latencies + [now - time_due for time_due in unanswered]
        pause = max(0.0, sent / rate - now) if idle and sent < total else 1.0
        select.select((poller,), (), (), pause)  # waits for fractions of a millisecond, which the poller cannot
        now = time.perf_counter() - start
        for key, _ in poller.select(0):
            connection = key.data
            data = received.pop(connection, b"") + connection.recv(65_536)
            if not data.startswith(b"HTTP/1.1 200"):
                raise AssertionError(f"the server answered {data!r} instead of 200")
            if data.endswith(b"}"):
                latencies.append(now - due.pop(connection))
                idle.append(connection)
            else:  # the rest of the response is still to come
                received[connection] = data
    return latencies


@asynccontextmanager
async def _ours() -> AsyncGenerator[tuple[str, str], None]:
    """Run our gateway in another process. Yield the URL and an access token."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.latency", "serve", stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            url, token = (await process.stdout.readline()).decode().split()
        yield url, token
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _serve() -> None:
    """Run our gateway until the process that started this one closes its standard input."""
    async with open_gateway(MemoryTransport(), GuardedMath) as (url, token):
        print(url, token, flush=True)  # to a pipe that only the starter reads; the token is of a user of this run
        await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def _moleculer() -> AsyncGenerator[tuple[str, str], None]:
    async with moleculer.gateway("-") as url:
        yield url, "none"


@asynccontextmanager
async def _fastapi() -> AsyncGenerator[tuple[str, str], None]:
    async with fastapi_by_hand.running() as port:
        yield f"http://127.0.0.1:{port}/add/1", "none"


SIDES: dict[str, Callable[[], AbstractAsyncContextManager[tuple[str, str]]]] = {
    "ours": _ours,
    "moleculer": _moleculer,
    "fastapi": _fastapi,
}


async def _measure(side: str) -> None:
    async with SIDES[side]() as (url, token):
        await wrk(url, 1, token)
        capacity = await wrk(url, 3, token)
        report("latency_capacity", capacity, "per second")
        for share in SHARES:
            latencies = await asyncio.to_thread(open_loop, url, token, capacity * share / 100, _SECONDS)
            for name, quantile in QUANTILES.items():
                report(f"latency_{share}_{name}", latencies.quantile(quantile) * 1000, "ms")
            report(f"latency_{share}_generator", latencies.cpu * 100, "% of a core")


def main() -> None:
    """Measure the side that is named on the command line."""
    (side,) = sys.argv[1:]
    if side == "serve":
        run_loop(_serve())
    else:
        require_wrk()
        run_loop(_measure(side))


if __name__ == "__main__":
    main()
