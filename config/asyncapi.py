"""The AsyncAPI 3.0 document: the events and signals of a system, and which services send and receive them.

It is made from the definitions of the services, without running them. Addresses are those of MQTT, as docs/wire.md specifies them.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from config import compose
from config.settings import Settings
from runtime.contract.messages import Contract, MessageSpec
from runtime.contract.schema import Schemas
from runtime.network import Head, Topic
from runtime.node.token_refresh import TokenRefresher
from runtime.service.service import Definition
from transports.mqtt.topics import Topics

Json = dict[str, Any]

VERSION = "3.0.0"
_CHANNELS, _MESSAGES = "#/channels/", "#/components/messages/"
_HEAD = "stream.Head"
_MQTT_BINDING = "0.2.0"
_DESCRIPTION = """\
The events and signals of the services. The addresses are topics of MQTT 5.

A signal is sent on its topic, and reaches each subscribing service at most once. An event has no topic: its publisher stores it in its stream. Each
subscriber requests the events after its cursor, and applies each of them exactly once. The topic of the stream only announces its head."""


def system_document(settings: Settings) -> Json:
    """Return the document of the services that the settings name. If they communicate over MQTT, it names the brokers.

    Raises:
        CallboardError: if the class of a service cannot be found, or is defined wrongly.
    """
    return document(
        settings.gateway.title,
        settings.gateway.version,
        [cls.definition for cls in compose.catalogue(settings).values()],
        namespace=settings.transport.mqtt.namespace,
        brokers=settings.transport.mqtt.brokers if "mqtt" in settings.transport.kind else (),
    )


def document(
    title: str, version: str, definitions: Iterable[Definition], *, namespace: str = "callboard", brokers: Iterable[str] = ()
) -> Json:
    """Return the AsyncAPI document of some services.

    Args:
        namespace: the first level of every topic.
        brokers: the URLs of the brokers, `mqtt://host:port` or `mqtts://host:port`.
    """
    services = [*definitions]
    if any(called.name == definition.contract.name for called in TokenRefresher.calls for definition in services):
        services.append(TokenRefresher.definition)  # it runs on every node
    found = _Document(Topics(namespace), services)
    for contract in _contracts(services):
        found.add(contract)
    servers = {f"broker-{number}": _server(url) for number, url in enumerate(brokers, 1)}
    return {
        "asyncapi": VERSION,
        "info": {"title": title, "version": version, "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        **({"servers": servers} if servers else {}),
        "channels": found.channels,
        "operations": found.operations,
        "components": {"messages": found.messages, "schemas": dict(sorted(found.schemas.items()))},
    }


def _contracts(services: list[Definition]) -> Iterable[Contract]:
    """Return the contracts whose events and signals are described: those of the services, and those that they subscribe to."""
    contracts = {definition.contract.name: definition.contract for definition in services}
    for definition in services:
        for handler in (*definition.events.values(), *definition.signals.values()):
            contracts.setdefault(handler.spec.contract.name, handler.spec.contract)
    return contracts.values()


def _server(url: str) -> Json:
    parts = urlsplit(url)
    protocol, port = ("secure-mqtt", 8883) if parts.scheme == "mqtts" else ("mqtt", 1883)
    host = parts.netloc if parts.port else f"{parts.netloc}:{port}"
    return {"host": host, "protocol": protocol, "protocolVersion": "5"}


class _Document:
    """Collects the channels, operations, messages, and schemas of contracts."""

    def __init__(self, topics: Topics, services: list[Definition]) -> None:
        self.channels: Json = {}
        self.operations: Json = {}
        self.messages: Json = {}
        self.schemas: Json = {}
        self._topics = topics
        self._services = services

    def add(self, contract: Contract) -> None:
        """Add the events and signals of a contract."""
        schemas = Schemas(contract.name)
        specs = contract.messages.values()
        for spec in specs:
            if spec.kind != "request":
                self.messages[spec.full_name] = _message(spec, schemas)
        self.schemas |= {name: draft_07(schema) for name, schema in schemas.named.items()}
        events = [spec for spec in specs if spec.kind == "event"]
        if events:
            self._add_stream(contract.name, events)
        for spec in specs:
            if spec.kind == "signal":
                self._add_signal(spec)

    def _add_stream(self, publisher: str, events: list[MessageSpec]) -> None:
        """Add the stream of a service: the channel of its events, and that of its heads."""
        taken = {
            definition.contract.name: [spec for spec in events if spec.full_name in definition.events]
            for definition in self._services
        }
        subscribers = {name: specs for name, specs in taken.items() if specs}
        described = f"The events of {publisher}, in the order of their commits. Subscribers request them: `stream.Pull` of an instance of {publisher}."
        self._add_channel(f"{publisher}-events", None, events, described)
        self._add_operation("send", publisher, f"{publisher}-events", events)
        for name, specs in subscribers.items():
            self._add_operation("receive", name, f"{publisher}-events", specs)
        self.messages.setdefault(_HEAD, _head_message())
        address = self._topics.multicast(Topic("stream", publisher))
        described = f"The head of the stream of {publisher}: a hint that there are new events, which may get lost."
        channel = f"{publisher}-stream"
        self.channels[channel] = {"address": address, "description": described, "messages": _references([_HEAD])}
        self._add_operation("send", publisher, channel)
        for name in subscribers:
            self._add_operation("receive", name, channel)

    def _add_signal(self, spec: MessageSpec) -> None:
        """Add the channel of a signal."""
        contract = spec.contract.name
        address = self._topics.multicast(Topic("signal", contract, spec.name))
        if spec.key is not None:
            address = f"{address.removesuffix('-')}{{key}}"
        self._add_channel(spec.full_name, address, [spec], _text(spec.cls) or spec.name)
        if spec.key is not None:
            field = _outside_name(spec.cls, spec.key)
            self.channels[spec.full_name]["parameters"] = {
                "key": {"description": f"`{field}`, percent-encoded (RFC 3986).", "location": f"$message.payload#/{field}"}
            }
        handlers = {definition.contract.name: definition.signals.get(spec.full_name) for definition in self._services}
        receivers = {name: handler for name, handler in handlers.items() if handler is not None}
        allowed = [contract, *(name for handler in receivers.values() for name in handler.allow.services)]
        for name in dict.fromkeys(allowed):
            self._add_operation("send", name, spec.full_name, bindings={"qos": 0, "retain": False})
        for name, handler in receivers.items():
            each = "Every instance receives it." if handler.broadcast else "One instance receives it."
            self._add_operation("receive", name, spec.full_name, description=each)
        if spec.live is not None and "gateway" in handlers:
            self._add_operation("receive", "gateway", spec.full_name, description="It tells clients that follow `/live` of news.")

    def _add_channel(self, name: str, address: str | None, specs: list[MessageSpec], description: str) -> None:
        messages = _references(spec.full_name for spec in specs)
        self.channels[name] = {"address": address, "description": description, "messages": messages}

    def _add_operation(
        self,
        action: str,
        service: str,
        channel: str,
        specs: list[MessageSpec] | None = None,
        *,
        description: str = "",
        bindings: Json | None = None,
    ) -> None:
        """Add that a service sends to a channel or receives from it: all its messages, or some."""
        names = self.channels[channel]["messages"] if specs is None else [spec.full_name for spec in specs]
        operation: Json = {"action": action, "channel": {"$ref": f"{_CHANNELS}{channel}"}, "tags": [{"name": service}]}
        if description:
            operation["description"] = description
        if bindings is not None:
            operation["bindings"] = {"mqtt": {**bindings, "bindingVersion": _MQTT_BINDING}}
        operation["messages"] = [{"$ref": f"{_CHANNELS}{channel}/messages/{name}"} for name in names]
        self.operations[f"{service}.{action}.{channel}"] = operation


def _references(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"{_MESSAGES}{name}"} for name in names}


def _message(spec: MessageSpec, schemas: Schemas) -> Json:
    summary, _, description = _text(spec.cls).partition("\n")
    payload = {key: value for key, value in schemas.fields_of(spec.cls).items() if key != "description"}
    message: Json = {"name": spec.full_name, "title": spec.name}
    message |= {"summary": summary.rstrip(".")} if summary else {}
    message |= {"description": description.strip()} if description.strip() else {}
    return {**message, "contentType": "application/json", "payload": draft_07(payload)}


def _head_message() -> Json:
    payload = draft_07(Schemas("stream").fields_of(Head))
    payload.pop("description")
    return {
        "name": _HEAD,
        "title": "Head",
        "summary": "The number of the last event in a stream, and its epoch",
        "contentType": "application/json",
        "payload": payload,
    }


def _text(cls: type[Any]) -> str:
    """Return the docstring of a message class, without those of its base classes."""
    return inspect.cleandoc(vars(cls).get("__doc__") or "")


def _outside_name(cls: type[Any], field: str) -> str:
    """Return the name of a field in JSON."""
    names: dict[str, str] = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    return names[field]


def draft_07(schema: Json) -> Json:
    """Return a JSON Schema (2020-12) of the runtime as one of AsyncAPI, which is based on draft 7.

    A tuple is an array of `items` there, and a `discriminator` is a text. Ours is left out: the values of its property tell the variants apart.
    """
    converted: Json = {}
    for keyword, value in schema.items():
        if keyword == "discriminator":
            continue
        if keyword == "properties":
            converted[keyword] = {name: draft_07(part) for name, part in cast(Mapping[str, Json], value).items()}
        elif keyword == "anyOf":
            converted[keyword] = [draft_07(part) for part in cast(list[Json], value)]
        elif keyword == "prefixItems":
            converted["items"] = [draft_07(part) for part in cast(list[Json], value)]
        elif keyword == "items" and isinstance(value, dict):
            converted[keyword] = draft_07(cast(Json, value))
        elif (keyword, value) != ("items", False):  # `maxItems` says so, too
            converted[keyword] = value
    return converted
