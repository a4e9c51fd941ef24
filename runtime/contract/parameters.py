"""Parameters of a path or query: values of a message's fields from the texts of a URL, with errors that name the field."""

import enum
import re
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from msgspec import inspect

from runtime.contract.decoding import decode_failure
from runtime.contract.json_values import Check, check_for
from runtime.contract.strict import first_fault
from runtime.contract.time_formats import TimeFormat, format_of

Params = tuple[tuple[str, str], ...]
"""The parameters of a path and a query: percent-decoded pairs of name and text, in their order."""

_Read = Callable[[str], Any]
"""Turns the text of a parameter into the JSON value that it would be in a body. Raises ValueError."""

_INT = re.compile(r"-?(0|[1-9][0-9]{0,400})", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,400})(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
"""A number as in JSON (RFC 8259, section 6), of a length that costs nothing to read."""
_BOOLS = {"true": True, "false": False}
_TEXTS = (
    inspect.StrType, inspect.BytesType, inspect.UUIDType, inspect.DateTimeType, inspect.DateType, inspect.TimeType,
    inspect.TimeDeltaType, inspect.DecimalType,
)  # fmt: skip
"""The types whose values are strings in JSON."""
_PLAIN = (inspect.IntType(), inspect.FloatType(), inspect.BoolType(), inspect.StrType())
"""The types whose values are what was read, without conversion or constraints."""


class Parameter:
    """A field of a message whose value comes from a path or query.

    A collection takes each text that was given for it, and anything else exactly one.

    Attributes:
        field: what msgspec knows of the field.
        many: whether it is a collection.

    Args:
        annotation: the field's annotation, with its constraints.

    Raises:
        TypeError: if no text can become a value of the field.
    """

    __slots__ = ("_check", "_plain", "_read", "_struct", "field", "many")

    def __init__(self, field: inspect.Field, annotation: Any) -> None:
        self.field: inspect.Field = field
        found = _reader(field.type)
        if found is None:
            raise TypeError(f"{field.name} cannot be made from a path or query string")
        read, many = found
        self._read = read
        self.many: bool = many
        self._check: Check | None = check_for(field.type, int64=True)
        self._plain: bool = field.type in _PLAIN
        self._struct = msgspec.defstruct("Parameter", [("value", annotation, None)])

    def value(self, texts: list[str]) -> Any:
        """Return the value of the field.

        Raises:
            ValueError: if the texts are none; the error says what was expected.
        """
        if self.many:
            given: Any = [self._read(text) for text in texts]
        elif len(texts) != 1:
            raise ValueError("given more than once")
        else:
            given = self._read(texts[0])
            if self._plain and (self._check is None or self._check(given) is None):
                return given
        try:
            value = getattr(msgspec.convert({"value": given}, self._struct), "value")  # noqa: B009  # a class made here
        except msgspec.ValidationError as error:
            raise ValueError(decode_failure(str(error)).detail) from None
        fault = (None if self._check is None else self._check(value)) or first_fault(value, given)
        if fault is not None:
            raise ValueError(fault.detail)
        return value


def parameter_fields(message: type[Any], names: tuple[str, ...]) -> dict[str, Parameter]:
    """Return the parameters that become fields of a message, by the names that they have outside.

    Args:
        names: the outside names of the fields.

    Raises:
        TypeError: if a field cannot be made from a path or query string.
    """
    info = inspect.type_info(message)
    assert isinstance(info, inspect.StructType)
    fields = {field.encode_name: field for field in info.fields}
    annotations = typing.get_type_hints(message, include_extras=True)
    return {name: Parameter(fields[name], annotations[fields[name].name]) for name in names}


def _reader(info: inspect.Type) -> tuple[_Read, bool] | None:
    """Return what reads a text of a type, and whether the type takes several; None if no text can become one."""
    if isinstance(info, inspect.Metadata):
        form = format_of(info)
        return _reader(info.type) if form is None else (partial(_time, form), False)
    if isinstance(info, inspect.UnionType):
        parts = [part for part in info.types if not isinstance(part, inspect.NoneType)]
        return _reader(parts[0]) if len(parts) == 1 else None
    if isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
        item = _reader(info.item_type)
        return None if item is None or item[1] else (item[0], True)
    scalar = _scalar(info)
    return None if scalar is None else (scalar, False)


def _scalar(info: inspect.Type) -> _Read | None:
    if isinstance(info, inspect.IntType):
        return _integer
    if isinstance(info, inspect.FloatType):
        return lambda text: float(_matched(_NUMBER, text, "a number"))
    if isinstance(info, inspect.BoolType):
        return _bool
    if isinstance(info, inspect.EnumType):
        return _enum(info.cls)
    if isinstance(info, inspect.LiteralType):
        values = {str(value): value for value in info.values}
        return _one_of(values) if len(values) == len(info.values) else None  # 1 and "1" look the same in a URL
    return str if isinstance(info, _TEXTS) else None


def _time(form: TimeFormat, text: str) -> str:
    try:
        value = _integer(text) if form.schema["type"] == "integer" else text
        return form.read(value).isoformat()
    except (ValueError, OverflowError, TypeError):
        raise ValueError(f"{form.expected}, got {text[:40]!r}") from None


def _integer(text: str) -> int:
    return int(_matched(_INT, text, "an integer"))


def _enum(cls: type[enum.Enum]) -> _Read:
    values = {str(member.value): member.value for member in cls}
    if getattr(cls._missing_, "__func__", None) is getattr(enum.Enum._missing_, "__func__", None):
        return _one_of(values)
    # The class makes members of other values, too: a `Flag` of sums
    return str if all(isinstance(value, str) for value in values.values()) else _integer


def _matched(pattern: re.Pattern[str], text: str, expected: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"expected {expected}, got {text[:40]!r}")
    return text


def _bool(text: str) -> bool:
    if text not in _BOOLS:
        raise ValueError(f"expected true or false, got {text[:40]!r}")
    return _BOOLS[text]


def _one_of(values: dict[str, Any]) -> _Read:
    integers = all(type(value) is int for value in values.values())

    def read(text: str) -> Any:
        if text in values:
            return values[text]
        if integers and _NUMBER.fullmatch(text):
            return _integer(text)
        raise ValueError(f"expected one of {', '.join(values)}, got {text[:40]!r}")

    return read
