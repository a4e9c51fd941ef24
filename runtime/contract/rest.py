"""REST bindings: the route of a request, and how path, query, and body become the message.

The gateway passes all three on unchanged. The service owns the contract and decodes them: the body strictly (unknown
fields are errors), parameters of path and query from their strings.
"""

import re
import typing
from typing import Any

import msgspec
from msgspec import inspect

from runtime.contract.decoding import Converter, Params, converter_for, decode_json, pointer_token, strict
from runtime.contract.errors import DefinitionError, Invalid, Violation

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
RESERVED = ("docs", "console", "live", "healthz", "readyz", "metrics", "openapi.json", ".well-known")
"""First path segments that belong to the gateway itself."""

_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[a-z][a-z0-9_]*\}")
_BODYLESS = ("GET", "DELETE")


class HttpBinding(msgspec.Struct, frozen=True):
    """The route of a request.

    Attributes:
        method: the HTTP method.
        path: the path, with `{field}` where a segment becomes a field of the message.
        status: the status of a successful response.
        path_fields: the fields that come from the path.
        query_fields: the fields that come from the query.
        body_fields: the fields that come from the JSON body.
    """

    method: str
    path: str
    status: int
    path_fields: tuple[str, ...] = ()
    query_fields: tuple[str, ...] = ()
    body_fields: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[str, str]:
        """The method and the path without the names of its parameters. Two routes of one shape match the same requests."""
        return self.method, "/".join("{}" if segment.startswith("{") else segment for segment in self.path.split("/"))

    @classmethod
    def parse(cls, where: str, route: str, status: int, message: type[Any]) -> "HttpBinding":
        """Check a route such as `"POST /rides/{id}/end"` against the fields of a message.

        Args:
            where: the class and method, for error messages.

        Raises:
            DefinitionError: if it is not a route, or its parameters are not fields that a string can become.
        """
        method, _, path = route.partition(" ")
        segments = path.split("/")[1:]
        if method not in METHODS or not path.startswith("/") or not all(map(_SEGMENT.fullmatch, segments)):
            raise DefinitionError(
                f"{where}: http={route!r}: expected e.g. 'POST /rides/{{id}}/end' with one of {', '.join(METHODS)}"
            )
        if segments[0] in RESERVED:
            raise DefinitionError(f"{where}: http={route!r}: /{segments[0]} is reserved by the gateway: choose another path")
        in_path = tuple(segment[1:-1] for segment in segments if segment.startswith("{"))
        fields: tuple[str, ...] = message.__struct_fields__
        for name in in_path:
            if name not in fields:
                raise DefinitionError(f"{where}: http={route!r}: {{{name}}} is no field of {message.__name__}")
        rest = tuple(name for name in fields if name not in in_path)
        query, body = (rest, ()) if method in _BODYLESS else ((), rest)
        info = {field.name: field.type for field in _struct(message).fields}
        for name in in_path + query:
            if converter_for(info[name]) is None:
                raise DefinitionError(
                    f"{where}: http={route!r}: {message.__name__}.{name} cannot be made from a path or query string"
                )
        return cls(method, path, status, in_path, query, body)


def _struct(message: type[Any]) -> inspect.StructType:
    info = inspect.type_info(message)
    assert isinstance(info, inspect.StructType)
    return info


class RestDecoder:
    """Decodes one kind of message from the parts of a REST request."""

    def __init__(self, message: type[Any], binding: HttpBinding) -> None:
        self._message = message
        self._binding = binding
        self._info = {field.name: field for field in _struct(message).fields}
        self._converters: dict[str, Converter | None] = {
            name: converter_for(self._info[name].type) for name in binding.path_fields + binding.query_fields
        }
        self._body: msgspec.json.Decoder[Any] | None = None
        if binding.body_fields:
            annotations = typing.get_type_hints(message, include_extras=True)
            fields = [self._body_field(name, strict(annotations[name])) for name in binding.body_fields]
            body = msgspec.defstruct(
                f"{message.__name__}Body", fields, forbid_unknown_fields=True, kw_only=True, module=message.__module__
            )
            self._body = msgspec.json.Decoder(body)

    def _body_field(self, name: str, annotation: Any) -> Any:
        field = self._info[name]
        if field.required:
            return name, annotation
        factory = field.default_factory
        return name, annotation, field.default if factory is msgspec.NODEFAULT else msgspec.field(default_factory=factory)

    def __call__(self, params: Params, body: bytes) -> Any:
        """Return the message.

        Raises:
            Malformed: if the body is not JSON.
            Invalid: if the body or a parameter does not fit; every faulty parameter is named.
        """
        values: dict[str, Any] = {}
        if params or self._converters:
            self._convert(params, values)
        if self._body is not None:
            decoded = decode_json(self._body, body)
            for name in self._binding.body_fields:
                values[name] = getattr(decoded, name)
        try:
            return self._message(**values)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise Invalid((Violation("", str(error)),)) from None

    def _convert(self, params: Params, values: dict[str, Any]) -> None:
        faults: list[Violation] = []
        given: dict[str, list[str]] = {}
        for name, text in params:
            given.setdefault(name, []).append(text)
        for name, texts in given.items():
            convert = self._converters.get(name)
            if convert is None:
                faults.append(Violation(f"/{pointer_token(name)}", "unknown parameter"))
                continue
            try:
                values[name] = convert(texts)
            except (ValueError, msgspec.ValidationError) as error:
                faults.append(Violation(f"/{name}", str(error)))
        missing = (name for name in self._converters if name not in given and self._info[name].required)
        faults += [Violation(f"/{name}", "missing required parameter") for name in missing]
        if faults:
            raise Invalid(tuple(faults))
