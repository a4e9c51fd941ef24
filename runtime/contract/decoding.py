"""Decoding: values from the strings of a path or query, and from JSON text, with errors that name the field."""

import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
from msgspec import inspect

from runtime.contract.errors import Invalid, Malformed, Violation

Params = tuple[tuple[str, str], ...]
"""The parameters of a path and a query: percent-decoded pairs of name and text, in their order."""

Converter = Callable[[list[str]], Any]
"""Turns all texts that were given for a parameter into its value. Raises ValueError or `msgspec.ValidationError`."""

_INT = re.compile(r"-?(0|[1-9][0-9]{0,18})", re.ASCII)
_FLOAT = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_BOOLS = {"true": True, "false": False}


def strict(tp: Any) -> Any:
    """Return the type with every struct in it replaced by a subclass that rejects unknown fields."""
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


def converter_for(info: inspect.Type) -> Converter | None:
    """Return what converts the texts of a parameter to a type, or None if no text can become a value of it."""
    if isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        parts = [part for part in info.types if not isinstance(part, inspect.NoneType)]
        return converter_for(parts[0]) if len(parts) == 1 else None
    if isinstance(info, inspect.VarTupleType):
        one = converter_for(info.item_type)
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
    """Return a function that checks the constraints of `msgspec.Meta` on a number or string, and returns the value."""
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
"""The length, in characters, up to which msgspec's message is parsed. It contains a field name that the client chooses."""


def decode_json(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Decode JSON text, and translate msgspec's errors.

    Raises:
        Malformed: if it is not JSON text: broken syntax, bad UTF-8, nesting that is too deep.
        Invalid: if it is JSON text that does not fit the type.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        fault = str(error)
    except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise _malformed(body, error) from None
    try:
        msgspec.json.decode(body)  # a type error may come before a syntax error in the text
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
        return Invalid((Violation(pointer, "NaN and infinities are not JSON numbers"),))
    return Malformed(str(error))


def _violation(text: str) -> Violation:
    if len(text) > _LONGEST:
        return Violation("", text[:_LONGEST] + "…")
    what, at, path = text.rpartition(" - at `$")
    if not at or not path.endswith("`"):
        what, path = text, ""
    pointer = "".join("/" + pointer_token(name or index or "-") for name, index in _STEP.findall(path[:-1]))
    field = _FIELD.fullmatch(what)
    return Violation(f"{pointer}/{pointer_token(field['name'])}" if field else pointer, what)


def pointer_token(name: str) -> str:
    """Escape a name for a JSON Pointer (RFC 6901, section 3)."""
    return name.replace("~", "~0").replace("/", "~1")


class _NotFinite(float):
    pass


def _not_finite(body: bytes) -> str | None:
    """Return a pointer to the first NaN or infinity if the body would be JSON without them, else None."""
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
            yield from _find(value, f"{pointer}/{pointer_token(name)}")
    elif isinstance(node, list):
        for index, value in enumerate(cast(list[Any], node)):
            yield from _find(value, f"{pointer}/{index}")
