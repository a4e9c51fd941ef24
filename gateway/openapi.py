"""The OpenAPI 3.1 document, merged from the manifests of live services."""

import inspect
import re
from collections.abc import Container, Iterable
from itertools import count
from typing import Any, NamedTuple, cast

import msgspec

from gateway.errors import ErrorRenderer
from gateway.openapi_live import add_live
from gateway.settings import IdentitySettings
from runtime.contract.http_parts import Input, Output
from runtime.contract.rest import REST
from runtime.contract.schema import Schemas
from runtime.network import ErrorInfo, HttpBinding, Manifest, RequestInfo

Json = dict[str, Any]

_JSON = "application/json"
_SCHEMAS = "#/components/schemas/"
_PROBLEM = f"{_SCHEMAS}Problem"
_WORDS = re.compile(r"[^A-Za-z0-9]+")


def document(
    title: str,
    version: str,
    manifests: Iterable[Manifest],
    identity: IdentitySettings | None = None,
    errors: ErrorRenderer | None = None,
) -> Json:
    """Return the OpenAPI document. Each schema name starts with the name of its service.

    Args:
        manifests: in order of precedence. Of two routes that match the same requests, the first one is described.
        identity: how clients send their access tokens.
        errors: makes the bodies of responses to errors; None for problem documents.
    """
    paths: dict[str, Json] = {}
    shapes: set[tuple[str, str]] = set()
    operations: set[str] = set()
    schemas: Json = {}
    form = _error_form(errors, schemas)
    services: set[str] = set()
    schemes = _security_schemes(identity or IdentitySettings())
    manifests = list(manifests)
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
            operation = _operation(manifest.service, _with_names(info, names), info.http, schemas, form)
            needed: list[Json] = [{name: []} for name in schemes]
            operation["security"] = [{}, *needed] if info.allow.anyone else needed  # a token may be sent, and counts
            operation["operationId"] = _unused(info.name, operations)
            operations.add(operation["operationId"])
            paths.setdefault(info.http.path.replace(REST, "}"), {}).setdefault(info.http.method.lower(), operation)
    content = {form.media_type: {"schema": form.schema or {"$ref": _PROBLEM}}}
    add_live(paths, schemas, manifests, [{name: []} for name in schemes], content)
    used = _used({"paths": paths}, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": form.description, "contact": {"name": title}},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in sorted(services | ({"live"} if "/live" in paths else set()))],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {name: schemas[name] for name in sorted(used)},
            "securitySchemes": schemes,
        },
    }


class _ErrorForm(NamedTuple):
    """The form of the responses to errors. `schema` is that of all of them; None if each error has its own."""

    description: str
    media_type: str
    schema: Json | None


def _error_form(errors: ErrorRenderer | None, schemas: Json) -> _ErrorForm:
    """Return the form of errors, and add its schemas."""
    if errors is None:
        schemas["Problem"] = _problem_schema()
        return _ErrorForm("Errors are problem documents (RFC 9457).", "application/problem+json", None)
    named = Schemas("errors")
    schema = errors.schema(named)
    schemas.update(named.named)
    return _ErrorForm(inspect.cleandoc(type(errors).__doc__ or "Errors have the form of this API."), errors.media_type, schema)


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


def _operation(service: str, info: RequestInfo, http: HttpBinding, schemas: Json, form: _ErrorForm) -> Json:
    """Return an operation. The schemas of its errors are added to `schemas`."""
    properties: dict[str, Json] = info.request.get("properties", {})
    required = set(info.request.get("required", ()))
    description = info.description or f"{info.summary}."
    operation: Json = {"operationId": info.name, "tags": [service], "summary": info.summary, "description": description}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _in_path(_parameter(properties[name]))}
        for name in http.path_fields
    ]
    parameters += [
        {"name": name, "in": "query", "required": name in required, "schema": _parameter(properties[name])}
        for name in http.query_fields
    ]
    parameters += [
        {
            "name": found.name,
            "in": found.kind,
            "required": found.field in required,
            "schema": _bound(properties[found.field], found),
        }
        for found in http.inputs
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
    if http.body_fields or http.form_fields:
        operation["requestBody"] = _request_body(http, properties, required)
    operation["responses"] = _responses(service, info, http, schemas, form)
    if info.allow.roles:
        operation["x-roles"] = list(info.allow.roles)
    if info.allow.scopes:
        operation["x-scopes"] = list(info.allow.scopes)
    return operation


def _request_body(http: HttpBinding, properties: dict[str, Json], required: set[str]) -> Json:
    """Return what a request's body can be: JSON, a form, or one that becomes a single field."""
    if http.raw_field:
        return {
            "required": http.raw_field in required,
            "content": {media: {"schema": _raw(http.raw_kind)} for media in http.media_types},
        }
    names = (*http.form_fields, *http.body_fields)
    body: Json = {
        "type": "object",
        "properties": {
            name: _form_part(name, http, properties[name]) if http.media_types else properties[name] for name in names
        },
        "additionalProperties": False,
    }
    if required_fields := [name for name in names if name in required]:
        body["required"] = required_fields
    return {"required": bool(required_fields), "content": {media: {"schema": body} for media in http.media_types or (_JSON,)}}


def _form_part(name: str, http: HttpBinding, schema: Json) -> Json:
    if name in http.form_fields:
        return _parameter(schema)
    return {"type": "array", "items": _raw("bytes")} if name in http.many_files else _raw("bytes")


def _raw(kind: str) -> Json:
    """Return the schema of a body or a file. Code generators know the `format` better than the absence of any schema."""
    return {"type": "string"} if kind == "text" else {"type": "string", "format": "binary"}


def _bound(schema: Json, found: Input | Output) -> Json:
    """Return the schema of a header field or a cookie."""
    schema = _parameter(schema)
    return {"type": "string", "description": "A date (RFC 9110, section 5.6.7)."} if found.is_date else schema


def _success(info: RequestInfo, http: HttpBinding, schemas: Json) -> Json:
    """Return the response of a success."""
    success: Json = {"description": info.summary or "Success"}
    if not http.outputs:
        if http.status != 204:
            success["content"] = {_JSON: {"schema": info.reply}}
        return success
    reply = schemas.get(str(info.reply.get("$ref", "")).removeprefix(_SCHEMAS), info.reply)
    properties: dict[str, Json] = reply.get("properties", {})
    elsewhere = {found.field for found in http.outputs}
    headers = {found.name: {"schema": _bound(properties[found.field], found)} for found in http.outputs if found.kind == "header"}
    if any(found.kind == "cookie" for found in http.outputs):
        headers["Set-Cookie"] = {"schema": {"type": "string"}}
    content_type = headers.pop("Content-Type", None)  # which OpenAPI describes by the content
    if headers:
        success["headers"] = headers
    whole = next((found for found in http.outputs if found.kind in ("bytes", "text", "stream")), None)
    if whole is not None:
        success["content"] = {whole.name if content_type is None else "*/*": {"schema": _raw(whole.kind)}}
    elif http.status != 204:
        rest = {
            **reply,
            "properties": {name: schema for name, schema in properties.items() if name not in elsewhere},
            "required": [name for name in reply.get("required", ()) if name not in elsewhere],
        }
        success["content"] = {_JSON: {"schema": {key: value for key, value in rest.items() if key != "required" or value}}}
    return success


def _responses(service: str, info: RequestInfo, http: HttpBinding, schemas: Json, form: _ErrorForm) -> Json:
    responses: Json = {str(http.status): _success(info, http, schemas)}
    if any(found.name.lower() == "etag" for found in http.outputs) and http.method == "GET":
        responses["304"] = {"description": "The client has it: If-None-Match names its ETag"}
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
    if not http.body_fields and not http.form_fields:
        del generic[413], generic[415]
    for status in sorted({*generic, *declared}):
        titles = [error.title for error in declared.get(status, ())] or [generic[status]]
        schema = form.schema
        if schema is None:
            variants = [{"$ref": _add_error(service, error, schemas)} for error in declared.get(status, ())]
            if status in generic or not variants:
                variants.append({"$ref": _PROBLEM})
            schema = variants[0] if len(variants) == 1 else {"anyOf": variants}
        responses[str(status)] = {"description": "; ".join(titles), "content": {form.media_type: {"schema": schema}}}
    return responses


def _add_error(service: str, error: ErrorInfo, schemas: Json) -> str:
    """Add the schema of an error, named after its contract and code, and return the reference to it.

    It is flat, and an `enum` of one value tells it apart: several code generators leave out an `allOf`, and `const`.
    """
    contract, _, code = error.code.partition(".")
    problem = _problem_schema()
    properties = {
        **problem["properties"],
        **error.schema.get("properties", {}),
        "type": {"type": "string", "enum": [f"urn:callboard:{contract}:{code}"]},
        "code": {"type": "string", "enum": [code]},
    }
    required = [*dict.fromkeys((*problem["required"], *error.schema.get("required", ())))]
    schema: Json = {"type": "object", "description": error.title, "properties": properties, "required": required}
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
    found: set[str] = set()
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
