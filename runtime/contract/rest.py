"""REST bindings: the route of a request, and how path, query, and body become the message.

The gateway passes all three on unchanged. The service owns the contract and decodes them: the body strictly (unknown
fields are errors), parameters of path and query from their strings.
"""

import re
import typing
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from runtime.contract.codec import Codec
from runtime.contract.errors import DefinitionError, Invalid, Violation
from runtime.contract.json_values import pointer_token
from runtime.contract.parameters import Params, parameter_fields
from runtime.contract.strict import check_text

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
RESERVED = ("docs", "console", "live", "healthz", "readyz", "metrics", "openapi.json", ".well-known")
"""First path segments that belong to the gateway itself."""

_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[a-z][A-Za-z0-9_-]*\}")
_ANNOUNCED_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[A-Za-z0-9._~-]+\}")
_EXPECTED = f"expected e.g. 'POST /rides/{{id}}/end' with one of {', '.join(METHODS)}"
_NAME = re.compile(r"[A-Za-z0-9._~-]+")
_BODYLESS = ("GET", "DELETE")


class HttpBinding(msgspec.Struct, frozen=True):
    """The route of a request. Fields have the names that they have outside, which `rename=` of the message may set.

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

    @property
    def route(self) -> str:
        """The shape as text, such as `GET /rides/{}`."""
        return " ".join(self.shape)

    def params(self, values: tuple[str, ...], query: Params) -> Params:
        """Return the parameters of a request, from the values of the path's parameters in order and those of the query."""
        return tuple(zip(self.path_fields, values, strict=True)) + query

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
        fault = route_fault(method, path) or (None if all(map(_SEGMENT.fullmatch, segments)) else _EXPECTED)
        if fault is not None:
            raise DefinitionError(f"{where}: http={route!r}: {fault}")
        if message.__struct_config__.array_like:
            raise DefinitionError(f"{where}: http={route!r}: {message.__name__} is array_like: a REST request needs named fields")
        outside = dict(zip(message.__struct_fields__, message.__struct_encode_fields__, strict=True))
        in_path = tuple(_outside_name(where, route, message, outside, segment) for segment in segments if segment.startswith("{"))
        rest = tuple(name for name in outside.values() if name not in in_path)
        for name in in_path:
            if in_path.count(name) > 1:
                raise DefinitionError(
                    f"{where}: http={route!r}: {{{name}}} occurs twice: name a different field for each parameter"
                )
        query, body = (rest, ()) if method in _BODYLESS else ((), rest)
        try:
            parameters = parameter_fields(message, in_path + query)
        except TypeError as error:
            raise DefinitionError(f"{where}: http={route!r}: {message.__name__}.{error}") from None
        for name in in_path:
            if parameters[name].many:
                raise DefinitionError(f"{where}: http={route!r}: {{{name}}} is a collection: a path segment holds one value")
        names = iter(in_path)
        path = "".join(f"/{{{next(names)}}}" if segment.startswith("{") else f"/{segment}" for segment in segments)
        return cls(method, path, status, in_path, query, body)


def route_fault(method: str, path: str) -> str | None:
    """Return what is wrong with a method and path in which fields have their outside names, or None if they can be a route."""
    segments = path.split("/")[1:]
    if method not in METHODS or not path.startswith("/") or not all(map(_ANNOUNCED_SEGMENT.fullmatch, segments)):
        return _EXPECTED
    if segments[0] in RESERVED:
        return f"/{segments[0]} is reserved by the gateway: choose another path"
    parameters = [segment for segment in segments if segment.startswith("{")]
    twice = next((parameter for parameter in parameters if parameters.count(parameter) > 1), None)
    return None if twice is None else f"{twice} occurs twice: name a different field for each parameter"


def _outside_name(where: str, route: str, message: type[Any], outside: Mapping[str, str], segment: str) -> str:
    """Return the outside name of the field that a path segment names, by this name or by its name in Python."""
    name = segment[1:-1]
    name = name if name in outside.values() else outside.get(name, "")
    if not _NAME.fullmatch(name):
        raise DefinitionError(f"{where}: http={route!r}: {segment} is no field of {message.__name__}")
    return name


class RestDecoder:
    """Decodes one kind of message from the parts of a REST request."""

    def __init__(self, message: type[Any], binding: HttpBinding) -> None:
        info = inspect.type_info(message)
        assert isinstance(info, inspect.StructType)
        self._message = message
        self._parameters = parameter_fields(message, binding.path_fields + binding.query_fields)
        fields = [field for field in info.fields if field.encode_name in binding.body_fields]
        self._body_fields = [field.name for field in fields]
        self._needs_body = any(field.required for field in fields)
        annotations = typing.get_type_hints(message, include_extras=True)
        body = msgspec.defstruct(
            f"{message.__name__}Body",
            [_body_field(field, annotations[field.name]) for field in fields],
            kw_only=True,
            rename={field.name: field.encode_name for field in fields},
            tag=info.tag,
            tag_field=info.tag_field,
        )
        self._body = Codec(body, f"the body of {message.__name__}", int64=True)

    def __call__(self, params: Params, body: bytes) -> Any:
        """Return the message.

        Raises:
            Malformed: if the body is not JSON.
            Invalid: if the body or a parameter does not fit; every faulty parameter is named.
        """
        values: dict[str, Any] = {}
        if params or self._parameters:
            self._convert(params, values)
        if body or self._needs_body:
            decoded = self._body.decode(body)
            check_text(body, decoded)
            for name in self._body_fields:
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
            parameter = self._parameters.get(name)
            if parameter is None:
                faults.append(Violation(f"/{pointer_token(name)}", "unknown parameter"))
                continue
            try:
                values[parameter.field.name] = parameter.value(texts)
            except ValueError as error:
                faults.append(Violation(f"/{pointer_token(name)}", str(error)))
        if len(given) < len(self._parameters):
            missing = (name for name, parameter in self._parameters.items() if name not in given and parameter.field.required)
            faults += [Violation(f"/{pointer_token(name)}", "missing required parameter") for name in missing]
        if faults:
            raise Invalid(tuple(faults))


def _body_field(field: inspect.Field, annotation: Any) -> Any:
    if field.required:
        return field.name, annotation
    if field.default_factory is not msgspec.NODEFAULT:
        return field.name, annotation, msgspec.field(default_factory=field.default_factory)
    return field.name, annotation, msgspec.UNSET if field.default is msgspec.NODEFAULT else field.default
