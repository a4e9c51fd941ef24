"""Nodes on the brokers of a cluster: two ejabberds that know each other, each with nodes of the same system."""

from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from runtime import Node
from runtime.testing import eventually
from tests.ejabberd import Ejabberd, needs_ejabberd
from tests.transports.mqtt.echo import Echo, Heard, Say, echo
from transports.mqtt.transport import MqttTransport

pytestmark = [pytest.mark.long, needs_ejabberd]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncGenerator[Ejabberd, None]:
    async with Ejabberd(tmp_path, 2) as started:
        yield started


def transport(cluster: Ejabberd, number: int) -> MqttTransport:
    """Return a transport that tries one of the brokers first, and then the other."""
    urls = (cluster.urls[number], cluster.urls[1 - number])
    return MqttTransport(msgspec.structs.replace(cluster.settings(heartbeat=0.5, keepalive=2), urls=urls))


async def test_nodes_on_different_brokers_call_each_other_and_share_out_signals(cluster: Ejabberd) -> None:
    async with (
        Node([Echo], transport(cluster, 0)) as first,
        Node([Echo], transport(cluster, 1)) as second,
        Node([], transport(cluster, 1)) as client,
    ):
        ctx = client.client("echo", (echo,))
        for node in (first, second, client):
            await node.environment.watch("echo")
        await eventually(
            lambda: all(len(node.registry.members("echo")) == 2 for node in (first, second, client)), "all know both"
        )
        assert [await ctx.request(Say(str(number))) for number in range(20)] == [str(number) for number in range(20)]
        services = [service for node in (first, second) if (service := node.service(Echo)) is not None]
        await eventually(lambda: sum(len(service.heard) for service in services) >= 20, "the signals arrive")
        for service in services:
            service.heard.clear()
        for number in range(50):
            await ctx.publish(Heard("hall", str(number)))
        await eventually(lambda: sum(len(service.heard) for service in services) >= 50, "the signals arrive")
        heard = sorted(int(signal.text) for service in services for signal in service.heard)
        assert heard == list(range(50)), "one instance takes each signal"
        assert all(service.heard for service in services), "both instances take some"


async def test_a_node_moves_to_another_broker_when_its_own_is_killed(cluster: Ejabberd) -> None:
    async with Node([Echo], transport(cluster, 1)), Node([], transport(cluster, 0)) as client:
        await client.registry.wait_for("echo")
        ctx = client.client("test", (echo,))
        assert await ctx.request(Say("?")) == "?"
        await cluster.kill(0)
        assert await ctx.request(Say("?"), timeout=30) == "?"
        assert client.environment.transport.attempts.url == cluster.urls[1]  # type: ignore[attr-defined]
