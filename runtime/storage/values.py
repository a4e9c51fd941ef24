"""Values in SQL: the form in which a parameter is stored, and how a row becomes a struct again.

Each value has one form as a number, text, or bytes, from which its own type restores an equal value. An engine whose columns
have the type itself (PostgreSQL) binds the value as it is; its rows become the same structs.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from msgspec import inspect

from runtime.clock import rfc3339
from runtime.contract.errors import UsageError

T = TypeVar("T")

LARGEST = 2**63 - 1
"""The largest integer that a column holds."""


class UnstorableValue(UsageError):
    """A parameter has a value that no column can hold, although others of its type can be stored.

    Attributes:
        value: the value.
        reason: the fault, without the number of the parameter.
    """

    def __init__(self, number: int, value: object, reason: str) -> None:
        super().__init__(f"${number}: {reason}")
        self.value: object = value
        self.reason: str = reason


def bound(params: Sequence[Any]) -> Sequence[Any]:
    """Return parameters in the form in which they are stored.

    Raises:
        UsageError: if one of them cannot be stored; if others of its type can be, `UnstorableValue`.
    """
    for value in params:
        if value.__class__ not in _PLAIN:
            return [_stored(number, value) for number, value in enumerate(params, 1)]
    return params


def blame(params: Sequence[Any]) -> UnstorableValue | None:
    """Return the error for the first parameter that a driver has refused, or None. To be called after an error only."""
    for number, value in enumerate(bound(params), 1):
        if isinstance(value, int) and not -LARGEST - 1 <= value <= LARGEST:
            reason = f"an integer of {value.bit_length() + 1} bits: expected one of at most 64, from {-LARGEST - 1} to {LARGEST}"
            return UnstorableValue(number, params[number - 1], reason)
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return UnstorableValue(number, params[number - 1], f"no UTF-8 text: {error.reason} (character {error.start})")
    return None


def decoded(rows: Sequence[Mapping[str, Any]], into: type[T]) -> list[T]:
    """Return rows as structs. A field takes its value from the column of its name.

    Raises:
        msgspec.ValidationError: if a row does not fit.
    """
    cls: Any = into
    names, truths = _columns(cls)
    if names or truths:
        rows = [
            {names.get(name, name): bool(value) if name in truths and value in (0, 1) else value for name, value in row.items()}
            for row in rows
        ]
    found: list[T] = msgspec.convert(rows, list[into])  # type: ignore[valid-type]
    return found


@functools.lru_cache(256)
def _columns(into: type[Any]) -> tuple[dict[str, str], frozenset[str]]:
    """Return the names that msgspec expects of columns (those on the wire), and the columns of a bool, which SQLite returns as 0 or 1."""
    info = inspect.type_info(into)
    if not isinstance(info, inspect.StructType):
        raise UsageError(f"into={into!r}: expected a struct, whose fields have the names of the columns")
    names = {field.name: field.encode_name for field in info.fields if field.name != field.encode_name}
    return names, frozenset(field.name for field in info.fields if _is_bool(field.type))


def _is_bool(info: inspect.Type) -> bool:
    parts = info.types if isinstance(info, inspect.UnionType) else (info,)
    return any(isinstance(part, inspect.BoolType) for part in parts) and not any(
        isinstance(part, inspect.IntType | inspect.FloatType | inspect.DecimalType) for part in parts
    )


_PLAIN = frozenset({str, int, bytes, bool, type(None)})
"""The types whose values are stored as they are."""


def _stored(number: int, value: Any) -> Any:
    if value.__class__ in _PLAIN:
        return value
    if isinstance(value, Enum):
        return _stored(number, value.value)
    for kind, store in _FORMS.items():
        if isinstance(value, kind):
            try:
                return store(value)
            except (ValueError, OverflowError) as error:
                raise UnstorableValue(number, value, f"a {type(value).__name__} that cannot be stored: {error}") from None
    raise UsageError(f"${number}: a {type(value).__name__} cannot be stored: store its parts, or JSON text made from it")


def _float(value: float) -> float:
    if math.isnan(value):
        raise ValueError("SQLite would store NULL: store None instead")
    return value


def _time(value: time) -> str:
    offset = value.utcoffset()
    if offset is not None and offset % timedelta(minutes=1):
        raise ValueError("its UTC offset is not a number of whole minutes")
    return value.isoformat()


def _duration(value: timedelta) -> str:
    text: str = msgspec.to_builtins(value)
    return text


def _decimal(value: Decimal) -> str:
    if value.is_nan():
        raise ValueError("NaN is not equal to itself, so no query would find it: store None instead")
    return str(value)


_FORMS: dict[type[Any], Callable[[Any], Any]] = {
    float: _float,
    datetime: rfc3339,  # before date, of which it is a subclass
    date: date.isoformat,
    time: _time,
    timedelta: _duration,
    Decimal: _decimal,
    UUID: str,
    bool: bool,
    int: int,
    str: str,
    bytes: bytes,
}
