"""Descriptions: the manifest of an instance, made from the definition of its service."""

import functools
import inspect
from typing import Any

from runtime.contract.errors import error_fields
from runtime.contract.schema import Schemas
from runtime.network.envelope import Address
from runtime.network.manifest import ErrorInfo, LiveInfo, Manifest, RequestInfo
from runtime.service.handlers import Handler
from runtime.service.service import Definition, Service


def describe(service: type[Service], address: Address, instance: str) -> Manifest:
    """Return the manifest of one instance of a service.

    Args:
        instance: the instance's random id.

    Raises:
        DefinitionError: if two types of one module have the same name.
    """
    definition = service.definition
    requests, schemas = _requests(definition)
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


@functools.cache
def _requests(definition: Definition) -> tuple[tuple[RequestInfo, ...], dict[str, Any]]:
    """Return what all instances of a service announce of its requests, and the schemas that these refer to."""
    schemas = Schemas(definition.contract.name)
    requests = tuple(_request(handler, schemas) for _, handler in sorted(definition.requests.items()))
    return requests, schemas.named


def _request(handler: Handler, schemas: Schemas) -> RequestInfo:
    text = inspect.cleandoc(vars(handler.spec.cls).get("__doc__") or handler.spec.name)
    summary, _, description = text.partition("\n")
    return RequestInfo(
        name=handler.spec.full_name,
        allow=handler.allow,
        http=handler.http,
        idempotent=handler.idempotent,
        once=handler.once,
        key=None if handler.key is None else _outside_name(handler.spec.cls, handler.key),
        summary=summary.rstrip("."),
        description=description.strip(),
        request=schemas.fields_of(handler.spec.cls),
        reply=schemas.of(handler.spec.reply),
        errors=tuple(
            ErrorInfo(f"{error.contract}.{error.code}", error.status, error.title(), schemas.fields_of(error_fields(error)))
            for error in handler.raises
        ),
    )


def _outside_name(cls: type[Any], field: str) -> str:
    """Return the name of a struct's field in JSON."""
    names: dict[str, str] = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    return names[field]
