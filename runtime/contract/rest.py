"""REST bindings: which route a request has, and how path, query and body become the message.

The gateway carries them as they came; the service, which owns the contract, decodes them here: strictly for the body
(unknown fields are an error), and by conversion from strings for path and query.
"""

import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
from msgspec import inspect

from runtime.contract.errors import DefinitionError, Invalid, Malformed, Violation

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
RESERVED = ("docs", "console", "live", "healthz", "readyz", "metrics", "openapi.json", ".well-known")
"""First path segments that the gateway keeps for itself."""

Params = tuple[tuple[str, str], ...]
"""Path and query parameters as they came, percent-decoded, in order."""

_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[a-z][a-z0-9_]*\}")
_BODYLESS = ("GET", "DELETE")


class HttpBinding(msgspec.Struct, frozen=True):
    """The route of a request: `path` holds `{field}` where a segment becomes a field."""

    method: str
    path: str
    status: int
    path_fields: tuple[str, ...] = ()
    query_fields: tuple[str, ...] = ()
    body_fields: tuple[str, ...] = ()

    @classmethod
    def parse(cls, where: str, route: str, status: int, message: type[Any]) -> "HttpBinding":
        """Checks a route such as `"POST /rides/{id}/end"` against the message's fields.

        Raises:
            DefinitionError: it is no route, or its parameters are not fields that a string can become.
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
            if _converter(info[name]) is None:
                raise DefinitionError(
                    f"{where}: http={route!r}: {message.__name__}.{name} cannot be made from a path or query string"
                )
        return cls(method, path, status, in_path, query, body)


def _struct(message: type[Any]) -> inspect.StructType:
    info = inspect.type_info(message)
    assert isinstance(info, inspect.StructType)
    return info


class RestDecoder:
    """Makes one kind of message from the parts of a REST request."""

    def __init__(self, message: type[Any], binding: HttpBinding) -> None:
        self._message = message
        self._binding = binding
        self._info = {field.name: field for field in _struct(message).fields}
        self._converters = {name: _converter(self._info[name].type) for name in binding.path_fields + binding.query_fields}
        self._body: msgspec.json.Decoder[Any] | None = None
        if binding.body_fields:
            annotations = typing.get_type_hints(message, include_extras=True)
            fields: list[Any] = []
            for name in binding.body_fields:
                field, annotation = self._info[name], strict(annotations[name])
                if field.required:
                    fields.append((name, annotation))
                else:
                    factory = field.default_factory
                    fields.append(
                        (
                            name,
                            annotation,
                            field.default if factory is msgspec.NODEFAULT else msgspec.field(default_factory=factory),
                        )
                    )
            body = msgspec.defstruct(
                f"{message.__name__}Body", fields, forbid_unknown_fields=True, kw_only=True, module=message.__module__
            )
            self._body = msgspec.json.Decoder(body)

    def __call__(self, params: Params, body: bytes) -> Any:
        """The message.

        Raises:
            Malformed: the body is not JSON.
            Invalid: the body or a parameter does not fit; every faulty parameter is named.
        """
        values: dict[str, Any] = {}
        if params or self._converters:
            self._take(params, values)
        if self._body is not None:
            decoded = decode_json(self._body, body)
            for name in self._binding.body_fields:
                values[name] = getattr(decoded, name)
        try:
            return self._message(**values)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise Invalid((Violation("", str(error)),)) from None

    def _take(self, params: Params, values: dict[str, Any]) -> None:
        faults: list[Violation] = []
        given: dict[str, list[str]] = {}
        for name, text in params:
            given.setdefault(name, []).append(text)
        for name, texts in given.items():
            convert = self._converters.get(name)
            if convert is None:
                faults.append(Violation(f"/{_escape(name)}", "unknown parameter"))
                continue
            try:
                values[name] = convert(texts)
            except (ValueError, msgspec.ValidationError) as error:
                faults.append(Violation(f"/{name}", str(error)))
        missing = (name for name in self._converters if name not in given and self._info[name].required)
        faults += [Violation(f"/{name}", "missing required parameter") for name in missing]
        if faults:
            raise Invalid(tuple(faults))


def strict(tp: Any) -> Any:
    """The type with every struct in it replaced by a subclass that refuses unknown fields."""
    if _is_struct(tp):
        hints = typing.get_type_hints(tp, include_extras=True)
        names: tuple[str, ...] = tp.__struct_fields__
        changed = [(name, strict(hints[name])) for name in names if strict(hints[name]) is not hints[name]]
        return msgspec.defstruct(
            tp.__name__, changed, bases=(tp,), forbid_unknown_fields=True, kw_only=True, module=tp.__module__
        )
    arguments = typing.get_args(tp)
    parts = tuple(strict(argument) for argument in arguments)
    if parts == arguments:
        return tp
    origin: Any = typing.get_origin(tp)
    return functools.reduce(_or, parts) if origin in (typing.Union, types.UnionType) else origin[parts]


def _is_struct(tp: Any) -> bool:
    return isinstance(tp, type) and issubclass(tp, msgspec.Struct)


def _or(one: Any, other: Any) -> Any:
    return one | other


_INT = re.compile(r"-?(0|[1-9][0-9]{0,18})", re.ASCII)
_FLOAT = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_BOOLS = {"true": True, "false": False}

Converter = Callable[[list[str]], Any]


def _converter(info: inspect.Type) -> Converter | None:
    """How a parameter's strings become a value of the type; None where no string can."""
    if isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        parts = [part for part in info.types if not isinstance(part, inspect.NoneType)]
        return _converter(parts[0]) if len(parts) == 1 else None
    if isinstance(info, inspect.VarTupleType):
        one = _converter(info.item_type)
        if one is None:
            return None
        return lambda texts: tuple(one([text]) for text in texts)
    scalar = _scalar(info)
    if scalar is None:
        return None

    def convert(texts: list[str]) -> Any:
        if len(texts) != 1:
            raise ValueError("given more than once")
        return scalar(texts[0])

    return convert


def _scalar(info: inspect.Type) -> Callable[[str], Any] | None:
    check = _constraints(info)
    if isinstance(info, inspect.IntType):
        return lambda text: check(_int64(int(_matched(_INT, text, "an integer"))))
    if isinstance(info, inspect.FloatType):
        return lambda text: check(_finite(float(_matched(_FLOAT, text, "a number"))))
    if isinstance(info, inspect.BoolType):
        return _bool
    if isinstance(info, inspect.StrType):
        return check
    if isinstance(info, inspect.EnumType):
        values: dict[str, Any] = {str(member.value): member for member in info.cls}
        return lambda text: _one_of(values, text)
    if isinstance(info, inspect.LiteralType):
        literals = {str(value): value for value in info.values}
        return lambda text: _one_of(literals, text)
    plain: dict[type, Any] = {
        inspect.UUIDType: "uuid.UUID", inspect.DateTimeType: "datetime.datetime", inspect.DateType: "datetime.date",
        inspect.DecimalType: "decimal.Decimal",
    }  # fmt: skip
    if type(info) in plain:
        module, _, name = plain[type(info)].partition(".")
        target = getattr(__import__(module), name)
        return lambda text: msgspec.convert(text, target, strict=True)
    return None


def _constraints(info: inspect.Type) -> Callable[[Any], Any]:
    """What `msgspec.Meta` demands of a number or string, checked by msgspec itself."""
    names = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
    given = {name: value for name in names if (value := getattr(info, name, None)) is not None}
    if not given:
        return lambda value: value
    base: Any = int if isinstance(info, inspect.IntType) else float if isinstance(info, inspect.FloatType) else str
    target: Any = typing.Annotated[base, msgspec.Meta(**given)]
    return lambda value: msgspec.convert(value, target)


def _matched(pattern: re.Pattern[str], text: str, expected: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"expected {expected}, got {text[:40]!r}")
    return text


def _int64(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError("expected an integer of 64 bits")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _bool(text: str) -> bool:
    if text not in _BOOLS:
        raise ValueError(f"expected true or false, got {text[:40]!r}")
    return _BOOLS[text]


def _one_of(values: dict[str, Any], text: str) -> Any:
    if text not in values:
        raise ValueError(f"expected one of {', '.join(values)}, got {text[:40]!r}")
    return values[text]


_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(?:\.\.\.)?\]")
_LONGEST = 300
"""Characters of msgspec's text that are read; a field's name, which the client chooses, stands in it."""


def decode_json(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Decodes JSON text and says what is wrong in our own errors.

    Raises:
        Malformed: not JSON text: broken syntax, bad UTF-8, absurd nesting.
        Invalid: JSON text of another form than expected.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        fault = str(error)
    except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise _malformed(body, error) from None
    try:
        msgspec.json.decode(body)  # the type's fault may hide that the text is no JSON at all
    except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise _malformed(body, error) from None
    raise Invalid((_violation(fault),))


def _malformed(body: bytes, error: Exception) -> Malformed | Invalid:
    if isinstance(error, UnicodeDecodeError):
        return Malformed(f"the body is not UTF-8 ({error.reason} at byte {error.start})")
    if not body:
        return Malformed("the body is empty: expected a JSON object")
    if isinstance(error, RecursionError):
        return Malformed("the body is nested too deeply")
    pointer = _not_finite(body)
    if pointer is not None:
        return Invalid((Violation(pointer, "NaN and infinities are no JSON numbers"),))
    return Malformed(str(error))


def _violation(text: str) -> Violation:
    if len(text) > _LONGEST:
        return Violation("", text[:_LONGEST] + "…")
    what, at, path = text.rpartition(" - at `$")
    if not at or not path.endswith("`"):
        what, path = text, ""
    pointer = "".join("/" + _escape(name or index or "-") for name, index in _STEP.findall(path[:-1]))
    field = _FIELD.fullmatch(what)
    return Violation(f"{pointer}/{_escape(field['name'])}" if field else pointer, what)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


class _NotFinite(float):
    pass


def _not_finite(body: bytes) -> str | None:
    """Where NaN or an infinity stands, if that is all that keeps the body from being JSON."""
    import json

    try:
        tree = json.loads(
            body, parse_constant=_NotFinite, parse_float=lambda text: f if math.isfinite(f := float(text)) else _NotFinite(f)
        )
    except (ValueError, RecursionError):
        return None
    return next(_find(tree, ""), None)


def _find(node: Any, pointer: str) -> Iterator[str]:
    if isinstance(node, _NotFinite):
        yield pointer
    elif isinstance(node, dict):
        for name, value in cast(dict[str, Any], node).items():
            yield from _find(value, f"{pointer}/{_escape(name)}")
    elif isinstance(node, list):
        for index, value in enumerate(cast(list[Any], node)):
            yield from _find(value, f"{pointer}/{index}")
