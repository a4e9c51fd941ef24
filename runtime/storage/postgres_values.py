"""Values for PostgreSQL: each parameter as its column's type takes it, checked before the driver would change it.

asyncpg stores 199.9 in a BIGINT as 199, for example. What SQLite stores as text is stored so here, too, if the column is TEXT.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from runtime.contract.errors import UsageError
from runtime.storage.database import StatementError
from runtime.storage.values import UnstorableValue, bound

_BITS = {"int2": 16, "int4": 32, "int8": 64}
_STORABLE = (str, int, float, bytes, Decimal, datetime, date, time, timedelta, UUID)


def adapted(params: Sequence[Any], types: Sequence[str]) -> list[Any]:
    """Return parameters as the driver takes them for parameters of these types.

    Raises:
        UnstorableValue: if the column cannot hold a value, although it can hold others of its type.
        StatementError: if a value has another type than its parameter, or there are too many or too few.
        UsageError: if no column can hold it.
    """
    if len(params) != len(types):
        raise StatementError(f"the statement has {len(types)} parameters, got {len(params)}")
    return [
        None if value is None else _adapted(number, value.value if isinstance(value, Enum) else value, tp)
        for number, (value, tp) in enumerate(zip(params, types, strict=True), 1)
    ]


def _adapted(number: int, value: Any, tp: str) -> Any:
    if not isinstance(value, _STORABLE):
        raise UsageError(f"${number}: a {type(value).__name__} cannot be stored: store its parts, or JSON text made from it")
    adapt = _BY_TYPE.get(tp)
    if adapt is None:
        return value
    found = adapt(number, value)
    if found is None:
        raise StatementError(
            f"${number}: expected a value for a column of the type {tp}, got the {type(value).__name__} {value!r:.60}"
        )
    return found


def _text(number: int, value: Any) -> str | None:
    if isinstance(value, bool | int | float | bytes):
        return None
    (text,) = bound((value,)) if not isinstance(value, str) else (value,)
    if "\0" in text:
        raise UnstorableValue(number, value, "a text with the character U+0000, which PostgreSQL does not store")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnstorableValue(number, value, f"no UTF-8 text: {error.reason} (character {error.start})") from None
    return str(text)


def _integer(bits: int) -> Callable[[int, Any], int | None]:
    def adapt(number: int, value: Any) -> int | None:
        if isinstance(value, float | Decimal) and value == value // 1:
            value = int(value)
        if not isinstance(value, int):
            return None
        least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        if not least <= value <= most:
            raise UnstorableValue(
                number,
                value,
                f"an integer of {value.bit_length() + 1} bits: expected one of at most {bits}, from {least} to {most}",
            )
        return int(value)

    return adapt


def _float(number: int, value: Any) -> float | None:
    if not isinstance(value, int | float | Decimal):
        return None
    found = float(value)
    if math.isnan(found):
        raise UnstorableValue(number, value, "a float that cannot be stored: NaN: store None instead")
    return found


def _decimal(number: int, value: Any) -> Decimal | None:
    if not isinstance(value, int | float | Decimal):
        return None
    found = value if isinstance(value, Decimal) else Decimal(repr(value) if isinstance(value, float) else int(value))
    if found.is_nan():
        raise UnstorableValue(number, value, "NaN is not equal to itself, so no query would find it: store None instead")
    return found


def _bool(number: int, value: Any) -> bool | None:
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


def _moment(number: int, value: Any) -> datetime | None:
    if not isinstance(value, datetime):
        return None
    if value.utcoffset() is None:
        raise UnstorableValue(number, value, "a datetime that cannot be stored: it has no timezone")
    return value.astimezone(UTC)


def _local_moment(number: int, value: Any) -> datetime | None:
    found = _moment(number, value)
    return None if found is None else found.replace(tzinfo=None)


def _date(number: int, value: Any) -> date | None:
    return value if isinstance(value, date) and not isinstance(value, datetime) else None


def _uuid(number: int, value: Any) -> UUID | None:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _only(kind: type[Any]) -> Callable[[int, Any], Any]:
    return lambda _, value: value if isinstance(value, kind) else None


_BY_TYPE: Mapping[str, Callable[[int, Any], Any]] = {
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "json", "jsonb"), _text),
    **{name: _integer(bits) for name, bits in _BITS.items()},
    **dict.fromkeys(("float4", "float8"), _float),
    "numeric": _decimal,
    "bool": _bool,
    "bytea": _only(bytes),
    "timestamptz": _moment,
    "timestamp": _local_moment,
    "date": _date,
    **dict.fromkeys(("time", "timetz"), _only(time)),
    "interval": _only(timedelta),
    "uuid": _uuid,
}
"""By the name of a type: returns the value for the driver, or None if it has another type."""
