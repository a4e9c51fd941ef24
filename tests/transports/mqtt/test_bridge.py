"""Two mosquittos with the bridge that docs/brokers.md describes: a service at one site answers a node at the other."""

import re
from pathlib import Path

from runtime import Node
from runtime.testing import eventually
from tests.broker import Broker
from tests.system.process import ROOT
from tests.transports.mqtt.echo import Echo, Repeat, echo, transport

BRIDGE = re.search(
    r"^```\n(connection .*?)^```", (ROOT / "docs" / "brokers.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


async def test_a_service_answers_through_the_bridge_of_the_page(tmp_path: Path) -> None:
    assert BRIDGE is not None
    async with Broker(tmp_path) as far:
        lines = [line for line in BRIDGE[1].splitlines() if not line.startswith("bridge_cafile")]
        own = [line.replace("mqtt.other-site.example:8883", f"127.0.0.1:{far.port}") for line in lines]
        async with (
            Broker(tmp_path, "allow_anonymous true", *own) as near,
            Node([Echo], transport(far.url)),
            Node([], transport(near.url)) as client,
        ):
            await eventually(lambda: client.registry.members("echo"), "the manifest has come through the bridge")
            for number in range(20):
                assert await client.client("test", (echo,)).request(Repeat(str(number)), timeout=5) == str(number)
