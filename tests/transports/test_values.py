"""Every value arrives equal in a request, a reply, an error, an event, and a signal, on every transport."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from runtime import Context, Node, Service, Transport
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from tests.broker import Broker
from tests.http_peers import HttpPeers
from tests.transports.menagerie import (
    Call,
    Echo,
    Everything,
    Fail,
    Failed,
    Keeper,
    Menagerie,
    Tell,
    everything,
    keeper,
    menagerie,
)
from transports.http.transport import HttpTransport
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport


@asynccontextmanager
async def _transports(kind: str, folder: Path) -> AsyncGenerator[Callable[[str], Transport], None]:
    """Give what makes the transport of a service's node."""
    if kind == "mqtt":
        async with Broker(folder) as broker:
            yield lambda name: MqttTransport(MqttSettings(url=broker.url))
    elif kind == "http":
        peers = HttpPeers(["menagerie", "keeper"])
        yield lambda name: HttpTransport(peers.settings(name))
    else:
        network = MemoryNetwork()
        yield lambda name: MemoryTransport(network, MemorySettings())


class _Trip:
    """Sends a value on every way, and compares what arrives."""

    def __init__(self, ctx: Context, remembers: Keeper, *, signals: bool) -> None:
        self._ctx = ctx
        self._keeper = remembers
        self._signals = signals

    async def make(self, value: Everything, key: str) -> None:
        ctx, remembers = self._ctx, self._keeper
        assert await ctx.request(Echo(value)) == value
        with pytest.raises(Failed) as failed:
            await ctx.request(Fail(value))
        assert failed.value == Failed(value)
        remembers.told = remembers.called = None
        await ctx.request(Tell(value))
        await eventually(lambda: remembers.told is not None, "the event arrives")
        assert remembers.told == value
        if self._signals:
            await ctx.request(Call(key, value))
            await eventually(lambda: remembers.called is not None, "the signal arrives")
            assert remembers.called is not None
            assert (remembers.called.key, remembers.called.value) == (key, value)


@pytest.mark.parametrize("kind", ["one-node", "memory", "mqtt", "http"])
async def test_every_value_arrives_equal(kind: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(_transports(kind, tmp_path))
        databases = SqliteFolder(tmp_path, durable=False)
        remembers = Keeper()
        groups: list[list[Callable[[], Service]]] = (
            [[Menagerie, lambda: remembers]] if kind == "one-node" else [[Menagerie], [lambda: remembers]]
        )
        names = ["menagerie", "keeper"]
        nodes = [Node(group, transport(name), databases=databases) for name, group in zip(names, groups, strict=False)]
        for node in nodes:
            await stack.enter_async_context(node)
        last = nodes[-1]
        await last.registry.wait_for("menagerie")
        trip = _Trip(
            last.client("keeper", (menagerie, keeper)), remembers, signals=last.environment.transport.capabilities.signals
        )

        @settings(max_examples=8, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(everything, st.text())
        def run(value: Everything, key: str) -> None:
            anyio.from_thread.run(trip.make, value, key)

        await anyio.to_thread.run_sync(run)
