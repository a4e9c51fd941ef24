"""The OpenAPI 3.1 document, merged from the manifests of live services."""

import re
from collections.abc import Container, Iterable
from itertools import count
from typing import Any, cast

import msgspec

from gateway.settings import IdentitySettings
from runtime.network import ErrorInfo, HttpBinding, Manifest, RequestInfo

Json = dict[str, Any]

_SCHEMAS = "#/components/schemas/"
_PROBLEM = f"{_SCHEMAS}Problem"
_WORDS = re.compile(r"[^A-Za-z0-9]+")


def document(title: str, version: str, manifests: Iterable[Manifest], identity: IdentitySettings | None = None) -> Json:
    """Return the OpenAPI document. Each schema name starts with the name of its service.

    Args:
        identity: how clients send their access tokens.
        manifests: in order of precedence. Of two routes that match the same requests, the first one is described.
    """
    paths: dict[str, Json] = {}
    shapes: set[tuple[str, str]] = set()
    operations: set[str] = set()
    schemas: Json = {"Problem": _problem_schema()}
    services: set[str] = set()
    schemes = _security_schemes(identity or IdentitySettings())
    for manifest in manifests:
        rest_requests = [info for info in manifest.requests if info.http is not None]
        if not rest_requests:
            continue
        services.add(manifest.service)
        names = _add_schemas(schemas, manifest.schemas)
        for info in rest_requests:
            assert info.http is not None
            if info.http.shape in shapes:
                continue
            shapes.add(info.http.shape)
            operation = _operation(manifest.service, _with_names(info, names), info.http, schemas)
            needed: list[Json] = [{name: []} for name in schemes]
            operation["security"] = [{}, *needed] if info.allow.anyone else needed  # a token may be sent, and counts
            operation["operationId"] = _unused(info.name, operations)
            operations.add(operation["operationId"])
            paths.setdefault(info.http.path, {}).setdefault(info.http.method.lower(), operation)
    used = _used({"paths": paths, "Problem": schemas["Problem"]}, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": "Errors are problem documents (RFC 9457)."},
        "servers": [{"url": "/"}],
        "tags": [{"name": service} for service in sorted(services)],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {name: schemas[name] for name in sorted(used)},
            "securitySchemes": schemes,
        },
    }


def _security_schemes(identity: IdentitySettings) -> Json:
    """Return the security schemes, each of which is enough."""
    schemes: Json = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    if identity.scheme.lower() != "bearer":
        description = f"The access token after the word `{identity.scheme}` and a space."
        schemes = {"token": {"type": "apiKey", "in": "header", "name": "Authorization", "description": description}}
    if identity.cookie:
        schemes["cookie"] = {"type": "apiKey", "in": "cookie", "name": identity.cookie}
    return schemes


def _add_schemas(schemas: Json, added: Json) -> dict[str, str]:
    """Add the schemas of a version. Return new names for those whose name means something else in a version added before."""
    closed = {name: _closed(schema) for name, schema in added.items()}
    names: dict[str, str] = {}
    while changed := {
        name
        for name, schema in closed.items()
        if name not in names and name in schemas and schemas[name] != _renamed(schema, names)
    }:
        names |= {name: _unused(name, schemas) for name in changed}  # and then those that refer to them
    for name, schema in closed.items():
        schemas[names.get(name, name)] = _renamed(schema, names)
    return names


def _renamed(node: Any, names: dict[str, str]) -> Any:
    """Return a part of the document with new names in its references to schemas."""
    if not names:
        return node
    if isinstance(node, dict):
        members = cast(Json, node)
        renamed = {name: _renamed(value, names) for name, value in members.items()}
        target = members.get("$ref")
        if isinstance(target, str):
            name = target.removeprefix(_SCHEMAS)
            renamed["$ref"] = _SCHEMAS + names.get(name, name)
        return renamed
    return [_renamed(item, names) for item in cast(list[Any], node)] if isinstance(node, list) else node


def _with_names(info: RequestInfo, names: dict[str, str]) -> RequestInfo:
    """Return a request with new names in the references of its schemas."""
    if not names:
        return info
    errors = tuple(msgspec.structs.replace(error, schema=_renamed(error.schema, names)) for error in info.errors)
    return msgspec.structs.replace(info, request=_renamed(info.request, names), reply=_renamed(info.reply, names), errors=errors)


def _unused(name: str, used: Container[str]) -> str:
    """Return a name, with a number if it is in use."""
    return next(candidate for number in count(1) if (candidate := name if number == 1 else f"{name}.{number}") not in used)


def _operation(service: str, info: RequestInfo, http: HttpBinding, schemas: Json) -> Json:
    """Return an operation. The schemas of its errors are added to `schemas`."""
    properties: dict[str, Json] = info.request.get("properties", {})
    required = set(info.request.get("required", ()))
    operation: Json = {"operationId": info.name, "tags": [service], "summary": info.summary}
    if info.description:
        operation["description"] = info.description
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _in_path(_parameter(properties[name]))}
        for name in http.path_fields
    ]
    parameters += [
        {"name": name, "in": "query", "required": name in required, "schema": _parameter(properties[name])}
        for name in http.query_fields
    ]
    if info.once:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "Repeating the request with the same key has no further effect and returns the same response."
                + (" A key needs an access token." if info.allow.anyone else ""),
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"},
            }
        )
    if parameters:
        operation["parameters"] = parameters
    if http.body_fields:
        body: Json = {
            "type": "object",
            "properties": {name: properties[name] for name in http.body_fields},
            "additionalProperties": False,
        }
        required_fields = [name for name in http.body_fields if name in required]
        if required_fields:
            body["required"] = required_fields
        operation["requestBody"] = {"required": bool(required_fields), "content": {"application/json": {"schema": body}}}
    operation["responses"] = _responses(service, info, http, schemas)
    if info.allow.roles:
        operation["x-roles"] = list(info.allow.roles)
    if info.allow.scopes:
        operation["x-scopes"] = list(info.allow.scopes)
    return operation


def _responses(service: str, info: RequestInfo, http: HttpBinding, schemas: Json) -> Json:
    success: Json = {"description": info.summary or "Success"}
    if http.status != 204:
        success["content"] = {"application/json": {"schema": info.reply}}
    responses: Json = {str(http.status): success}
    declared: dict[int, list[ErrorInfo]] = {}
    for error in info.errors:
        declared.setdefault(error.status, []).append(error)
    generic = {
        400: "The request is malformed", 413: "The body is too large", 415: "The body is not JSON", 422: "The request is invalid",
        429: "Too many requests", 500: "The service failed", 502: "The service was lost", 503: "The service is unavailable or overloaded",
        504: "The service took too long",
    }  # fmt: skip
    if info.allow.anyone:
        generic |= {401: "The access token that was sent is not valid"}
    else:
        generic |= {401: "A valid access token is needed", 403: "The user may not do this"}
    if info.once:
        generic |= {409: "The same request is still being processed"}
    if not http.body_fields:
        del generic[413], generic[415]
    for status in sorted({*generic, *declared}):
        titles = [error.title for error in declared.get(status, ())] or [generic[status]]
        variants = [{"$ref": _add_error(service, error, schemas)} for error in declared.get(status, ())]
        if status in generic or not variants:
            variants.append({"$ref": _PROBLEM})
        schema = variants[0] if len(variants) == 1 else {"anyOf": variants}
        responses[str(status)] = {"description": "; ".join(titles), "content": {"application/problem+json": {"schema": schema}}}
    return responses


def _add_error(service: str, error: ErrorInfo, schemas: Json) -> str:
    """Add the schema of an error, named after its contract and code, and return the reference to it.

    An `enum` of one value tells errors apart for every code generator. Several leave errors with a `const` untyped.
    """
    contract, _, code = error.code.partition(".")
    properties = {
        **error.schema.get("properties", {}),
        "type": {"type": "string", "enum": [f"urn:callboard:{contract}:{code}"]},
        "code": {"type": "string", "enum": [code]},
    }
    required = [*error.schema.get("required", ()), "type", "code"]
    narrowed = {"type": "object", "properties": properties, "required": required}
    schema: Json = {"description": error.title, "allOf": [{"$ref": _PROBLEM}, narrowed]}
    words = "".join(word[:1].upper() + word[1:] for word in _WORDS.split(code))
    name = f"{contract}.{words}Error"
    if schemas.get(name, schema) != schema:  # another version of the contract
        name = f"{service}.{name}"
    if schemas.get(name, schema) != schema:
        name = _unused(name, {known for known, other in schemas.items() if other != schema})
    schemas[name] = schema
    return f"{_SCHEMAS}{name}"


def _problem_schema() -> Json:
    violation = {
        "type": "object",
        "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
        "required": ["pointer", "detail"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "description": "A problem document (RFC 9457).",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string"},
            "request_id": {"type": "string"},
            "retryable": {"type": "boolean"},
            "maybe_delivered": {"type": "boolean"},
            "detail": {"type": "string"},
            "incident": {"type": "string"},
            "errors": {"type": "array", "items": violation},
        },
        "required": ["type", "title", "status", "code", "request_id", "retryable"],
    }


def _closed(schema: Json) -> Json:
    """Return an object schema that forbids additional properties. Other schemas are returned unchanged."""
    return {**schema, "additionalProperties": False} if schema.get("type") == "object" and "properties" in schema else schema


def _parameter(schema: Json) -> Json:
    """Return the schema of a parameter: an absent one is omitted rather than null, and a URL cannot say that an array is empty."""
    variants = schema.get("anyOf")
    if variants is not None:
        remaining = [variant for variant in variants if variant != {"type": "null"}]
        rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        if schema.get("default") is not None:
            rest["default"] = schema["default"]
        schema = {**remaining[0], **rest} if len(remaining) == 1 else {**rest, "anyOf": remaining}
    if schema.get("type") != "array":
        return schema
    kept = {key: value for key, value in schema.items() if key != "default" or value}
    return {**kept, "minItems": max(1, schema.get("minItems", 0))}


def _in_path(schema: Json) -> Json:
    """Return the schema of a path parameter: a segment is not empty."""
    if schema.get("type") == "string" and "format" not in schema:
        return {**schema, "minLength": max(1, schema.get("minLength", 0))}
    return schema


def _used(root: Any, schemas: Json) -> set[str]:
    """Return the names of the schemas that `root` refers to, directly or through other schemas."""
    found: set[str] = {"Problem"}
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            members = cast(Json, node)
            name = str(members.get("$ref", "")).removeprefix(_SCHEMAS)
            if name in schemas and name not in found:
                found.add(name)
                stack.append(schemas[name])
            stack.extend(members.values())
        elif isinstance(node, list):
            stack.extend(cast(list[Any], node))
    return found
