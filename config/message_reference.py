"""Generate the reference of messages in docs/messages.md from the AsyncAPI document.

`python -m config.message_reference FILE` writes the reference into the file. A test fails if docs/messages.md is out of date.
"""

import sys
from pathlib import Path
from typing import Any, cast

import msgspec

from config.asyncapi import Json, system_document
from config.load import load
from config.packages import ROOT

BEGIN, END = "<!-- messages: begin -->", "<!-- messages: end -->"
_INT64 = 2**63
_FORMATS = {"date-time": "a time with its UTC offset (RFC 3339)", "date": "a date", "uuid": "a UUID"}


def reference(found: Json) -> str:
    """Return the reference: tables of the events and the signals, one of the fields of each message, and one of each type in them."""
    messages, schemas = found["components"]["messages"], found["components"]["schemas"]
    events = ["## Events", "", "| published by | event | applied by |", "| --- | --- | --- |"]
    others = ["", "## Signals and heads", "", "| sent by | message | topic | received by |", "| --- | --- | --- | --- |"]
    for name, channel in found["channels"].items():
        sender = _services(found, "send", name)
        if channel["address"] is None:
            events += [
                f"| {sender} | {_link(event)} | {_services(found, 'receive', name, event)} |" for event in channel["messages"]
            ]
        else:
            [message] = channel["messages"]
            others.append(f"| {sender} | {_link(message)} | `{channel['address']}` | {_services(found, 'receive', name)} |")
    lines = [*events, *others, "", "## Messages"]
    for name, message in messages.items():
        lines += ["", f"### {name}", "", *_paragraphs(message.get("summary"), message.get("description"))]
        lines += _fields(message["payload"])
    if schemas:
        lines += ["", "## Types"]
    for name, schema in schemas.items():
        lines += ["", f"### {name}", "", *_paragraphs(schema.get("description"))]
        lines += _fields(schema) if "properties" in schema else [f"The value is {_type(schema)}."]
    return "\n".join(lines) + "\n"


def _services(found: Json, action: str, channel: str, message: str = "") -> str:
    """Return the services that send or receive a message on a channel, or any message."""
    names = (
        operation["tags"][0]["name"]
        for operation in found["operations"].values()
        if operation["action"] == action
        and operation["channel"]["$ref"] == f"#/channels/{channel}"
        and (not message or {"$ref": f"#/channels/{channel}/messages/{message}"} in operation["messages"])
    )
    return ", ".join(names)


def _link(name: str) -> str:
    """Return a link to the heading of a message or a type."""
    return f"[{name}](#{''.join(letter for letter in name.lower() if letter.isalnum() or letter in '-_')})"


def _paragraphs(*texts: str | None) -> list[str]:
    found = [text if text.endswith(".") else f"{text}." for text in texts if text]
    return [line for text in found for line in (text, "")]


def _fields(schema: Json) -> list[str]:
    properties: dict[str, Json] = schema["properties"]
    if not properties:
        return ["It has no fields."]
    required = set(schema.get("required", ()))
    lines = ["| field | type | default |", "| --- | --- | --- |"]
    for name, field in properties.items():
        default = "" if name in required else f"`{msgspec.json.encode(field.get('default')).decode()}`"
        lines.append(f"| `{name}` | {_type(field)} | {default} |")
    return lines


def _type(schema: Json) -> str:
    """Return a schema in words."""
    if "$ref" in schema:
        return _link(str(schema["$ref"]).rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in cast(list[Json], schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{msgspec.json.encode(value).decode()}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items", {})
        if isinstance(items, list):
            return f"an array of {', '.join(_type(item) for item in cast(list[Json], items))}"
        return f"an array, each item {_type(cast(Json, items))}"
    if kind == "string":
        return _FORMATS.get(schema.get("format", ""), "text")
    words = {"integer": "an integer", "number": "a number", "boolean": "`true` or `false`", "null": "null"}
    return words.get(str(kind), "any value") + _range(schema)


def _range(schema: Json) -> str:
    words = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    bounds: list[tuple[str, Any]] = [(word, schema[keyword]) for keyword, word in words.items() if keyword in schema]
    return "".join(f" {word} {bound:,}" for word, bound in bounds if bound not in (-_INT64, _INT64 - 1))


def filled(text: str) -> str:
    """Return the text of a document with the reference of the project in this repository between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = system_document(load(ROOT / "callboard.toml").settings)
    return f"{before}{BEGIN}\n\n{reference(found)}\n{END}{after}"


def main() -> None:
    """Update the reference in the file named on the command line."""
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
