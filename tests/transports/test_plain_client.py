"""A client that is none of ours, with `docs/wire.md` in its hand: a plain aiomqtt script calls a service and hears a signal."""

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
from tests.transports.echo import Echo, Heard, transport


class Script:
    """Asks by name, and waits for the answer with its Correlation Data."""

    def __init__(self, client: aiomqtt.Client, answers: str) -> None:
        self._client = client
        self._answers = answers

    async def ask(self, request: str, body: dict[str, Any], *, reply: bool = True) -> tuple[str | None, Any]:
        """The answer's Content Type, and its JSON."""
        asked = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        correlation = uuid.uuid4().bytes
        if reply:
            asked.ResponseTopic, asked.CorrelationData = self._answers, correlation
        service, _, name = request.partition(".")
        await self._client.publish(f"callboard/1/request/{service}/{name}/script", msgspec.json.encode(body), properties=asked)
        if not reply:
            return None, None
        async with asyncio.timeout(10):
            async for message in self._client.messages:
                assert message.properties is not None
                given = message.properties.json()  # type: ignore[no-untyped-call]
                if given.get("CorrelationData") == correlation.hex():
                    assert isinstance(message.payload, bytes)
                    return given.get("ContentType"), msgspec.json.decode(message.payload)
        raise AssertionError("no answer")


@pytest.mark.parametrize("answers", ["callboard/1/inbox/script/one", "my/own/answers"])
async def test_a_script_calls_a_service_and_hears_a_signal(broker: Broker, answers: str) -> None:
    async with (
        Node([Echo], transport(broker.url)) as node,
        aiomqtt.Client("127.0.0.1", broker.port, identifier="one", protocol=aiomqtt.ProtocolVersion.V5) as client,
        aiomqtt.Client("127.0.0.1", broker.port, identifier="two", protocol=aiomqtt.ProtocolVersion.V5) as listener,
    ):
        await client.subscribe(f"{answers}/#")
        script = Script(client, answers)
        assert await script.ask("echo.Say", {"text": "hello"}) == (None, "hello")
        kind, problem = await script.ask("echo.Refuse", {"reason": "because"})
        assert kind == "application/problem+json"
        assert problem == {
            "type": "urn:callboard:echo:refused", "title": "It was refused", "status": 409, "code": "refused", "contract": "echo",
            "detail": "", "retryable": False, "maybe_delivered": False, "fields": {"reason": "because"},
        }  # fmt: skip
        _, problem = await script.ask("echo.Say", {"text": 1})
        assert (problem["status"], problem["detail"]) == (422, "/text: Expected `str`, got `int`")
        await listener.subscribe("callboard/1/signal/echo/Heard/hall")
        assert await script.ask("echo.Say", {"text": "to all"}) == (None, "to all")
        heard = await asyncio.wait_for(anext(aiter(listener.messages)), 10)
        assert heard.payload == b'{"room":"hall","text":"to all"}'
        await script.ask("echo.Say", {"text": "one way"}, reply=False)
        heard = await asyncio.wait_for(anext(aiter(listener.messages)), 10)
        assert heard.payload == b'{"room":"hall","text":"one way"}'
        service = node.service(Echo)
        assert service is not None
        await eventually(lambda: Heard("hall", "one way") in service.heard, "the service hears it, too")
        spoken = len(service.heard)
        for text in (
            b'{"room":"cellar","text":"psst"}',
            b'{"room":"hall","text":"forged"}',
            b'{"room":"cellar","text":"the last"}',
        ):
            await client.publish("callboard/1/signal/echo/Heard/cellar", text)
        await eventually(lambda: Heard("cellar", "the last") in service.heard, "the last is heard")
        assert service.heard[spoken:] == [Heard("cellar", "psst"), Heard("cellar", "the last")], (
            "a signal counts under its own key alone"
        )
        assert await script.ask("echo.Repeat", {"text": "still there"}) == (None, "still there")


async def test_two_instances_share_what_scripts_ask(broker: Broker) -> None:
    async with (
        Node([Echo], transport(broker.url)) as one,
        Node([Echo], transport(broker.url)) as two,
        aiomqtt.Client("127.0.0.1", broker.port, identifier="one", protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        await client.subscribe("callboard/1/inbox/script/one/+")
        script = Script(client, "callboard/1/inbox/script/one")
        heard: list[str] = []
        for node in (one, two):
            service = node.service(Echo)
            assert service is not None
            service.gate.set()
        for number in range(20):
            assert await script.ask("echo.Say", {"text": str(number)}) == (None, str(number))
            heard.append(str(number))
        texts = [
            sorted(signal.text for signal in service.heard) for node in (one, two) if (service := node.service(Echo)) is not None
        ]
        assert sorted(texts[0] + texts[1]) == sorted(heard), "each signal on one of them"
