"""The AsyncAPI document: channels, operations, and schemas of the events and signals of a system."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import msgspec
import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from msgspec import Meta
from pydantic_asyncapi.v3 import AsyncAPI

from config.asyncapi import document, draft_07, system_document
from config.settings import TransportSettings
from runtime import ANYONE, Context, Contract, Event, Request, Service, Signal, Struct, Transaction, handles, services, subscribes
from services.fleet.messages import ScooterLost, Telemetry
from tests.project import RENTAL, rental
from transports.mqtt.settings import MqttSettings

Json = dict[str, Any]


@pytest.fixture(scope="module")
def found() -> Json:
    return system_document(RENTAL)


def asyncapi_schema() -> Json:
    """Return the JSON Schema of AsyncAPI 3 documents, without properties that it does not know."""
    schema = AsyncAPI.model_json_schema()
    for node in objects(schema):
        if node.get("type") == "object" and "properties" in node:
            node |= {"additionalProperties": False, "patternProperties": {"^x-": {}}}
    return schema


def objects(node: object) -> Iterator[Json]:
    """Yield every object in a JSON value."""
    if isinstance(node, dict):
        yield cast(Json, node)
        for value in list(cast(Json, node).values()):
            yield from objects(value)
    elif isinstance(node, list):
        for value in cast(list[object], node):
            yield from objects(value)


def referred(found: Json, reference: str) -> Any:
    node: Any = found
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def operations(found: Json, action: str, channel: str) -> list[str]:
    """Return the services that send to a channel or receive from it."""
    return [
        operation["tags"][0]["name"]
        for operation in found["operations"].values()
        if (operation["action"], operation["channel"]["$ref"]) == (action, f"#/channels/{channel}")
    ]


def test_the_document_is_valid(found: Json) -> None:
    assert found["asyncapi"] == "3.0.0"
    validator = Draft202012Validator(asyncapi_schema())
    assert [error.message for error in validator.iter_errors(found)] == []
    assert not validator.is_valid({**found, "channel": {}})
    broken = {**found, "operations": {"a": {"action": "publish", "channel": {"$ref": "#/channels/auth-events"}}}}
    assert not validator.is_valid(broken)


def test_every_reference_leads_somewhere(found: Json) -> None:
    references = [node["$ref"] for node in objects(found) if "$ref" in node]
    assert len(references) > 50
    for reference in references:
        assert referred(found, reference)


def test_every_message_is_in_a_channel_and_every_payload_is_a_schema(found: Json) -> None:
    in_channels = {name for channel in found["channels"].values() for name in channel["messages"]}
    assert in_channels == set(found["components"]["messages"])
    for message in found["components"]["messages"].values():
        Draft7Validator.check_schema(message["payload"])


def test_a_signal_has_its_topic_and_its_key(found: Json) -> None:
    channel = found["channels"]["fleet.Telemetry"]
    assert channel["address"] == "callboard/1/signal/fleet/Telemetry/{key}"
    assert channel["parameters"]["key"]["location"] == "$message.payload#/scooter_id"
    assert found["channels"]["fleet.StillHearing"]["address"] == "callboard/1/signal/fleet/StillHearing/-"
    assert "parameters" not in found["channels"]["fleet.StillHearing"]


def test_a_stream_has_the_topic_of_its_heads_and_its_events_have_none(found: Json) -> None:
    assert found["channels"]["rides-stream"]["address"] == "callboard/1/stream/rides"
    assert found["channels"]["rides-events"]["address"] is None
    assert set(found["channels"]["rides-events"]["messages"]) == {"rides.RideStarted", "rides.RideEnded", "rides.RideAborted"}


def test_operations_name_who_sends_and_who_receives(found: Json) -> None:
    assert operations(found, "send", "rides-events") == ["rides"]
    assert operations(found, "receive", "rides-events") == ["wallet", "fleet", "notices"]
    assert operations(found, "receive", "fleet-events") == ["rides"]
    assert found["operations"]["rides.receive.fleet-events"]["messages"] == [
        {"$ref": "#/channels/fleet-events/messages/fleet.ScooterLost"},
        {"$ref": "#/channels/fleet-events/messages/fleet.ReservationLapsed"},
    ]
    assert operations(found, "send", "fleet.Telemetry") == ["fleet", "devices"], "a subscriber may allow others to publish"
    assert operations(found, "receive", "notices.Noticed") == ["gateway"], "which tells clients that follow live"
    assert operations(found, "receive", "auth.SessionsRevoked") == ["runtime"], "every node does"


@pytest.mark.parametrize("message", [ScooterLost("s-1"), Telemetry("s-1", 52.5, 13.4, 80.0, locked=True)])
def test_payloads_describe_what_is_sent(found: Json, message: Event | Signal) -> None:
    name = f"fleet.{type(message).__name__}"
    schema = {**found["components"]["messages"][name]["payload"], "components": found["components"]}
    sent = msgspec.json.decode(msgspec.json.encode(message))
    Draft7Validator(schema).validate(sent)
    assert not Draft7Validator(schema).is_valid({**sent, "scooter_id": 7})


def test_brokers_are_named_if_the_services_use_them(found: Json) -> None:
    assert "servers" not in found
    mqtt = MqttSettings(urls=("mqtts://one.example", "mqtt://two.example:1884"), namespace="staging", username="rides")
    over_mqtt = system_document(rental(transport=TransportSettings(kind="http+mqtt", mqtt=mqtt)))
    assert over_mqtt["servers"] == {
        "broker-1": {"host": "one.example:8883", "protocol": "secure-mqtt", "protocolVersion": "5"},
        "broker-2": {"host": "two.example:1884", "protocol": "mqtt", "protocolVersion": "5"},
    }
    assert over_mqtt["channels"]["rides-stream"]["address"] == "staging/1/stream/rides"
    Draft202012Validator(asyncapi_schema()).validate(over_mqtt)


shapes, elsewhere = Contract("shapes"), Contract("elsewhere")


class Circle(Struct, tag="circle"):
    radius: Annotated[float, Meta(gt=0)]


class Square(Struct, tag="square"):
    """Four equal sides."""

    side: float


@shapes.message
class Drawn(Event, rename="camel"):
    """A shape was drawn.

    It stays.
    """

    drawn_by: str
    shape: Circle | Square
    at: tuple[int, int] = (0, 0)
    colour: Literal["red", "blue"] | None = None


@shapes.message(key="drawn_by")
class Drawing(Signal, rename="camel"):
    drawn_by: str


@shapes.message
class Draw(Request[None]):
    pass


@elsewhere.message
class Rained(Event):
    millimetres: float


class Shapes(Service):
    contract = shapes

    @handles(allow=ANYONE)
    async def draw(self, message: Draw, ctx: Context) -> None: ...

    @subscribes
    async def on_rained(self, event: Rained, ctx: Context, tx: Transaction) -> None: ...

    @subscribes(allow=services("pens"), broadcast=True)
    async def on_drawing(self, signal: Drawing, ctx: Context) -> None: ...


@pytest.fixture(scope="module")
def drawn() -> Json:
    return document("Shapes", "7", [Shapes.definition])


def test_events_of_a_service_that_runs_elsewhere_are_described(drawn: Json) -> None:
    assert operations(drawn, "send", "elsewhere-events") == ["elsewhere"]
    assert not any(name.startswith("auth") for name in drawn["channels"])
    assert operations(drawn, "receive", "elsewhere-events") == ["shapes"]
    Draft202012Validator(asyncapi_schema()).validate(drawn)


def test_names_are_those_of_json(drawn: Json) -> None:
    assert drawn["channels"]["shapes.Drawing"]["parameters"]["key"]["location"] == "$message.payload#/drawnBy"
    assert drawn["channels"]["shapes.Drawing"]["address"] == "callboard/1/signal/shapes/Drawing/{key}"
    assert drawn["operations"]["shapes.receive.shapes.Drawing"]["description"] == "Every instance receives it."
    assert operations(drawn, "send", "shapes.Drawing") == ["shapes", "pens"]


def test_a_docstring_becomes_a_summary_and_a_description(drawn: Json) -> None:
    message = drawn["components"]["messages"]["shapes.Drawn"]
    assert (message["summary"], message["description"]) == ("A shape was drawn", "It stays.")
    assert "summary" not in drawn["components"]["messages"]["shapes.Drawing"]


def test_schemas_become_those_of_draft_7(drawn: Json) -> None:
    payload = drawn["components"]["messages"]["shapes.Drawn"]["payload"]
    assert payload["properties"]["shape"] == {
        "anyOf": [{"$ref": "#/components/schemas/shapes.Circle"}, {"$ref": "#/components/schemas/shapes.Square"}]
    }
    at = payload["properties"]["at"]
    assert (len(at["items"]), at["maxItems"]) == (2, 2)
    validator = Draft7Validator({**payload, "components": drawn["components"]})
    assert validator.is_valid({"drawnBy": "ada", "shape": {"type": "circle", "radius": 1}, "at": [1, 2]})
    assert not validator.is_valid({"drawnBy": "ada", "shape": {"type": "circle", "radius": 1}, "at": [1, 2, 3]})
    assert not validator.is_valid({"drawnBy": "ada", "shape": {"type": "square", "radius": 1}})


def test_a_field_may_be_called_like_a_keyword() -> None:
    schema = {"type": "object", "properties": {"discriminator": {"type": "string"}, "prefixItems": {"type": "boolean"}}}
    assert draft_07(schema) == schema
