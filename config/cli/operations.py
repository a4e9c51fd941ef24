"""The requests of a system, as its OpenAPI document describes them, and values for their fields."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from config import compose
from config.settings import Settings
from runtime import CallboardError
from runtime.contract.messages import MessageSpec

Operation = tuple[str, str, dict[str, Any]]
"""The method, the path, and the OpenAPI operation object of a request."""

KEY = "Idempotency-Key"


def project_openapi(settings: Settings) -> bytes:
    """Return the OpenAPI document of the project's services as JSON text, without running them."""
    from gateway.openapi import document

    return msgspec.json.encode(
        document(
            settings.gateway.title,
            settings.gateway.version,
            compose.manifests(settings),
            settings.identity,
            compose.error_renderer(settings),
        )
    )


def operations_of(openapi: Mapping[str, Any]) -> dict[str, Operation]:
    """Return the requests of a document by their names."""
    return {
        operation["operationId"]: (method.upper(), path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    }


def fields_of(operation: dict[str, Any]) -> dict[str, tuple[dict[str, Any], bool]]:
    """Return the schema of each field of a request, and whether the field is required."""
    found = {
        parameter["name"]: (parameter["schema"], parameter["required"])
        for parameter in operation.get("parameters", ())
        if parameter["name"] != KEY
    }
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return found | {name: (schema, name in body.get("required", ())) for name, schema in body.get("properties", {}).items()}


def shown_type(schema: dict[str, Any]) -> str:
    """Return a short description of a schema."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition(".")[2]
    if "anyOf" in schema:
        return " or ".join(shown_type(part) for part in schema["anyOf"])
    if "enum" in schema:
        return "|".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {shown_type(schema.get('items', {}))}"
    limits = [
        f"{word} {schema[name]}"
        for name, word in (("minimum", "from"), ("exclusiveMinimum", "over"), ("maximum", "to"))
        if name in schema
    ]
    return " ".join([str(schema.get("format") or schema.get("type", "anything")), *limits])


def takes_text(schema: dict[str, Any]) -> bool:
    variants: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return any(variant.get("type") == "string" or "enum" in variant for variant in variants)


def signal_fields(spec: MessageSpec) -> dict[str, dict[str, Any]]:
    """Return the schema of each field of a signal."""
    schema = msgspec.json.schema(spec.cls)
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, dict[str, Any]] = schema.get("$defs", {}).get(name, schema).get("properties", {})
    return found


def given_values(fields: Sequence[str], schemas: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the values of fields that a user has typed as FIELD=VALUE, or as one JSON object.

    Args:
        schemas: the schemas of the known fields. Values of other types than text are read as JSON.

    Raises:
        CallboardError: if a field has no value, or is given twice.
    """
    if len(fields) == 1 and fields[0].lstrip().startswith("{"):
        try:
            return msgspec.json.decode(fields[0], type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise CallboardError(f"the fields are not a JSON object: {error}") from None
    values: dict[str, Any] = {}
    for field in fields:
        name, equals, text = field.partition("=")
        if not equals:
            raise CallboardError(f"{field!r}: expected FIELD=VALUE")
        if name in values:
            raise CallboardError(f"{name} is given twice")
        values[name] = text
        if name in schemas and not takes_text(schemas[name]):
            try:
                values[name] = msgspec.json.decode(text)
            except msgspec.DecodeError:
                pass  # left to the service, whose error names the expected type
    return values
