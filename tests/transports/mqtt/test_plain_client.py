"""An independent MQTT client written from `docs/wire.md`: a plain aiomqtt script that calls a service and receives a signal."""

import asyncio
import uuid
from typing import Any

import aiomqtt
import msgspec
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from runtime import Node
from runtime.testing import eventually
from tests.broker import Broker
from tests.transports.mqtt.echo import Echo, Heard, transport


class PlainClient:
    """A client that sends requests by name and matches answers by their Correlation Data."""

    def __init__(self, client: aiomqtt.Client, answers: str) -> None:
        self._client = client
        self._answers = answers

    async def request(self, name: str, body: dict[str, Any], *, reply: bool = True) -> tuple[str | None, Any]:
        """Send a request, and return the answer's Content Type and its decoded JSON body."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        correlation = uuid.uuid4().bytes
        if reply:
            properties.ResponseTopic, properties.CorrelationData = self._answers, correlation
        service, _, message = name.partition(".")
        await self._client.publish(
            f"callboard/1/request/{service}/{message}/script", msgspec.json.encode(body), properties=properties
        )
        if not reply:
            return None, None
        async with asyncio.timeout(10):
            async for received in self._client.messages:
                assert received.properties is not None
                given = received.properties.json()  # type: ignore[no-untyped-call]
                if given.get("CorrelationData") == correlation.hex():
                    assert isinstance(received.payload, bytes)
                    return given.get("ContentType"), msgspec.json.decode(received.payload)
        raise AssertionError("no answer arrived")


@pytest.mark.parametrize("answers", ["callboard/1/inbox/script/one", "my/own/answers"])
async def test_a_plain_client_calls_a_service_and_receives_a_signal(broker: Broker, answers: str) -> None:
    async with (
        Node([Echo], transport(broker.url)) as node,
        aiomqtt.Client("127.0.0.1", broker.port, identifier="one", protocol=aiomqtt.ProtocolVersion.V5) as client,
        aiomqtt.Client("127.0.0.1", broker.port, identifier="two", protocol=aiomqtt.ProtocolVersion.V5) as listener,
    ):
        await client.subscribe(f"{answers}/#")
        plain_client = PlainClient(client, answers)
        assert await plain_client.request("echo.Say", {"text": "hello"}) == (None, "hello")
        kind, problem = await plain_client.request("echo.Refuse", {"reason": "because"})
        assert kind == "application/problem+json"
        assert problem == {
            "type": "urn:callboard:echo:refused", "title": "It was refused", "status": 409, "code": "refused", "contract": "echo",
            "detail": "", "retryable": False, "maybe_delivered": False, "fields": {"reason": "because"},
        }  # fmt: skip
        _, problem = await plain_client.request("echo.Say", {"text": 1})
        assert (problem["status"], problem["detail"]) == (422, "/text: Expected `str`, got `int`")
        await listener.subscribe("callboard/1/signal/echo/Heard/hall")
        assert await plain_client.request("echo.Say", {"text": "to all"}) == (None, "to all")
        received = await asyncio.wait_for(anext(aiter(listener.messages)), 10)
        assert received.payload == b'{"room":"hall","text":"to all"}'
        await plain_client.request("echo.Say", {"text": "one way"}, reply=False)
        received = await asyncio.wait_for(anext(aiter(listener.messages)), 10)
        assert received.payload == b'{"room":"hall","text":"one way"}'
        service = node.service(Echo)
        assert service is not None
        await eventually(lambda: Heard("hall", "one way") in service.heard, "the service has received the signal, too")
        received_before = len(service.heard)
        for text in (
            b'{"room":"cellar","text":"psst"}',
            b'{"room":"hall","text":"forged"}',
            b'{"room":"cellar","text":"the last"}',
        ):
            await client.publish("callboard/1/signal/echo/Heard/cellar", text)
        await eventually(lambda: Heard("cellar", "the last") in service.heard, "the service has received the last signal")
        assert service.heard[received_before:] == [Heard("cellar", "psst"), Heard("cellar", "the last")], (
            "a signal is accepted only on the topic of its key"
        )
        assert await plain_client.request("echo.Repeat", {"text": "still there"}) == (None, "still there")


async def test_two_instances_share_the_requests_of_a_plain_client(broker: Broker) -> None:
    async with (
        Node([Echo], transport(broker.url)) as one,
        Node([Echo], transport(broker.url)) as two,
        aiomqtt.Client("127.0.0.1", broker.port, identifier="one", protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        await client.subscribe("callboard/1/inbox/script/one/+")
        plain_client = PlainClient(client, "callboard/1/inbox/script/one")
        sent: list[str] = []
        for node in (one, two):
            service = node.service(Echo)
            assert service is not None
            service.gate.set()
        for number in range(20):
            assert await plain_client.request("echo.Say", {"text": str(number)}) == (None, str(number))
            sent.append(str(number))
        texts = [
            sorted(signal.text for signal in service.heard) for node in (one, two) if (service := node.service(Echo)) is not None
        ]
        assert sorted(texts[0] + texts[1]) == sorted(sent), "each signal reaches exactly one instance"
