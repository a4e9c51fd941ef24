"""What arrives from the broker: only manifests may come from its memory, and everything else from there is dropped."""

import asyncio
from functools import partial

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from runtime.network import Manifest, Topic
from runtime.testing import RecordingReceiver, eventually
from tests.broker import Broker
from tests.transports.mqtt.echo import transport
from tests.transports.proxy import Proxy

RETAINED = {
    "signal/echo/Heard/hall": b'{"room":"hall","text":"?"}',
    "inbox/echo/node/caller": b'{"text":"?"}',
    "stream/echo": b'{"epoch":"x","seq":1}',
    "gone/node-9": b"gone",
}
"""One message of each kind that must not be retained."""


def has_dropped(receiver: RecordingReceiver, messages: int) -> bool:
    return receiver.old == messages


async def test_only_manifests_are_taken_from_the_brokers_memory(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        Proxy(broker.port) as proxy,
        aiomqtt.Client("127.0.0.1", broker.port, identifier="device", protocol=aiomqtt.ProtocolVersion.V5) as device,
    ):
        used, receiver = transport(proxy.url, heartbeat=60), RecordingReceiver()
        await used.open("node", receiver)
        await used.listen("echo")
        await used.watch("echo")
        for topic in (Topic("signal", "echo", "Heard"), Topic("stream", "echo")):
            await used.subscribe(topic, "echo", broadcast=True)
        await used.announce(Manifest("echo", "node", "one"))
        await eventually(lambda: receiver.members, "the instance is known")
        for name, body in RETAINED.items():
            await device.publish(f"callboard/1/{name}", body, qos=1, retain=True)
        kinds = ["signal", "reply", "head"]
        await eventually(
            lambda: [got.kind for got, _ in receiver.envelopes] == kinds, "what is new is taken, whatever flag it has"
        )
        assert receiver.old == 0
        for times in (1, 2):
            proxy.cut()
            await eventually(
                partial(has_dropped, receiver, times * len(RETAINED)), "everything that the broker kept has arrived again"
            )
            assert [got.kind for got, _ in receiver.envelopes] == kinds, "nothing is handled twice"
            assert receiver.cuts == times
        assert used.connected
        assert receiver.garbage == 0
        assert caplog.text.count("comes from the broker's memory (retain flag)") == 1
        await used.close()


async def test_a_retained_request_is_not_answered(broker: Broker) -> None:
    """Its caller has had its answer, or is gone."""
    async with aiomqtt.Client("127.0.0.1", broker.port, identifier="device", protocol=aiomqtt.ProtocolVersion.V5) as device:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = "answers"
        await device.subscribe("answers")
        for body in (b"{", b'{"text":"?"}'):
            topic = f"callboard/1/inbox/echo/node/caller-{len(body)}"
            await device.publish(topic, body, qos=1, retain=True, properties=properties)
        used, receiver = transport(broker.url), RecordingReceiver()
        await used.open("node", receiver)
        await used.listen("echo")
        await eventually(lambda: receiver.old == 2, "both have arrived")
        await used.link.round_trip()
        await device.publish("answers", b"nothing before this")
        assert (await asyncio.wait_for(anext(aiter(device.messages)), 10)).payload == b"nothing before this"
        assert (receiver.envelopes, receiver.garbage) == ([], 0)
        await used.close()
