"""Descriptions: the manifest of an instance, made from the definition of its service."""

import inspect
from typing import Any, cast

import msgspec

from runtime.contract.errors import DefinitionError, error_fields
from runtime.network.envelope import Address
from runtime.network.manifest import ErrorInfo, LiveInfo, Manifest, RequestInfo
from runtime.service.handlers import Handler
from runtime.service.service import Service


def describe(service: type[Service], address: Address, instance: str) -> Manifest:
    """Return the manifest of one instance of a service.

    Args:
        instance: the instance's random id.

    Raises:
        DefinitionError: if a type has no JSON Schema.
    """
    definition = service.definition
    schemas: dict[str, Any] = {}
    requests = tuple(_request(definition.contract.name, handler, schemas) for _, handler in sorted(definition.requests.items()))
    messages = definition.contract.messages.values()
    return Manifest(
        service=address.service,
        node=address.node,
        instance=instance,
        version=service.version,
        requests=requests,
        events=tuple(sorted(spec.full_name for spec in messages if spec.kind == "event")),
        signals=tuple(sorted(spec.full_name for spec in messages if spec.kind == "signal")),
        live=next((LiveInfo(spec.name, spec.live) for spec in messages if spec.live is not None), None),
        calls=tuple(contract.name for contract in definition.calls),
        schemas=schemas,
    )


def _request(service: str, handler: Handler, schemas: dict[str, Any]) -> RequestInfo:
    text = inspect.cleandoc(vars(handler.spec.cls).get("__doc__") or handler.spec.name)
    summary, _, description = text.partition("\n")
    request, reply = _schemas(service, handler.spec.full_name, [handler.spec.cls, handler.spec.reply], schemas)
    return RequestInfo(
        name=handler.spec.full_name,
        allow=handler.allow,
        http=handler.http,
        idempotent=handler.idempotent,
        once=handler.once,
        key=None if handler.key is None else _outside_name(handler.spec.cls, handler.key),
        summary=summary.rstrip("."),
        description=description.strip(),
        request=request,
        reply=reply,
        errors=tuple(
            ErrorInfo(
                f"{error.contract}.{error.code}",
                error.status,
                error.title(),
                _schemas(service, error.code, [error_fields(error)], schemas)[0],
            )
            for error in handler.raises
        ),
    )


def _schemas(service: str, what: str, types: list[Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON Schemas of types. The named types in them are added to `schemas`."""
    try:
        found, named = msgspec.json.schema_components(types, ref_template=f"#/components/schemas/{service}.{{name}}")
    except (TypeError, KeyError) as error:
        raise DefinitionError(f"{what}: has no JSON Schema: {error}") from error
    references = {f"#/components/schemas/{service}.{name}": schema for name, schema in named.items()}
    first = found[0]
    top = references[first["$ref"]] if "$ref" in first else first
    inner = {name: schema for name, schema in named.items() if schema is not top or _refers(schema, first.get("$ref"))}
    for name, schema in inner.items():
        if schemas.setdefault(f"{service}.{name}", schema) != schema:
            raise DefinitionError(f"{what}: {service} has two types called {name}, and OpenAPI needs a name for each: rename one")
    return [dict(top), *(dict(schema) for schema in found[1:])]


def _refers(schema: Any, reference: str | None) -> bool:
    """Return whether a schema contains a reference: then it is the schema of a recursive type."""
    if isinstance(schema, dict):
        members = cast(dict[str, Any], schema)
        return members.get("$ref", 0) == reference or any(_refers(member, reference) for member in members.values())
    return isinstance(schema, list) and any(_refers(item, reference) for item in cast(list[Any], schema))


def _outside_name(cls: type[Any], field: str) -> str:
    """Return the name of a struct's field in JSON."""
    names: dict[str, str] = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    return names[field]
