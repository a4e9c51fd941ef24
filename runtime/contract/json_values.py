"""Values that JSON text cannot carry unchanged, although their types admit them.

JSON has no NaN and no infinities, and RFC 3339 has no UTC offsets with seconds. A date and time without an offset means
another instant to each reader. A check finds such a value in a message and names its field. It also finds a float that is not the
multiple that its annotation asks for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any, cast, get_origin

from msgspec import inspect

from runtime.contract.errors import Violation
from runtime.contract.multiples import is_multiple, multiple_of

Check = Callable[[Any], Violation | None]
"""Returns the first fault in a value, or None."""

_NOT_FINITE = Violation("", "NaN and infinities are not JSON numbers")
_TOO_LARGE = Violation("", "expected an integer of 64 bits")
_NAIVE = Violation("", "expected a date and time with a UTC offset, such as 2026-01-31T12:00:00Z")
_SECONDS = Violation("", "expected a UTC offset of whole minutes (RFC 3339)")
_NO_OFFSET = Violation("", "expected a time zone with a fixed UTC offset")


def check_for(info: inspect.Type, *, int64: bool = False) -> Check | None:
    """Return the check of a type, or None if every value of it can be carried.

    Args:
        int64: whether to refuse integers that need more than 64 bits, too: most programs that read or store JSON do.
    """
    leaves = dict(_LEAVES) | ({inspect.IntType: _int64} if int64 else {})
    return _Builder(leaves).build(info)


def struct_class(info: inspect.StructType) -> type[Any]:
    """Return the class of a struct type, also of a generic one with its arguments, such as `Page[Ride]`."""
    return get_origin(info.cls) or info.cls


def _parts(info: inspect.Type) -> Sequence[inspect.Type]:
    """Return the types that a type is made of."""
    if isinstance(info, inspect.Metadata):
        return (info.type,)
    if isinstance(info, inspect.UnionType):
        return info.types
    if isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
        return (info.item_type,)
    if isinstance(info, inspect.TupleType):
        return info.item_types
    if isinstance(info, inspect.StructType):
        return [field.type for field in info.fields]
    return ()


class _Builder:
    """Builds the check of a type from the checks of its leaves."""

    def __init__(self, leaves: Mapping[type[inspect.Type], Check]) -> None:
        self._leaves = leaves
        self._structs: dict[Any, _StructCheck] = {}

    def build(self, info: inspect.Type) -> Check | None:
        """Return the check of a type, or None if it needs none."""
        if not self._needed(info, set()):
            return None
        if isinstance(info, inspect.DateTimeType) and info.tz is False:
            return _offset
        if type(info) in self._leaves:
            return self._leaves[type(info)]
        if isinstance(info, inspect.StructType):
            return self._struct(info)
        if isinstance(info, inspect.Metadata) and (step := multiple_of(info)) is not None:
            inner = self.build(info.type)
            return lambda value: (None if inner is None else inner(value)) or _multiple(value, step)
        checks = [(at, check) for at, part in enumerate(_parts(info)) if (check := self.build(part)) is not None]
        if isinstance(info, inspect.TupleType):
            return lambda value: _items(value, checks)
        if isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
            each = checks[0][1]
            return lambda value: _every_item(value, each)
        if isinstance(info, inspect.UnionType) and any(isinstance(part, inspect.FloatType) for part in info.types):
            checks = [(at, check) for at, check in checks if check is not _int64]  # a float holds large numbers
        if len(checks) == 1:
            return checks[0][1]
        return lambda value: next((fault for _, check in checks if (fault := check(value)) is not None), None)

    def _needed(self, info: inspect.Type, seen: set[Any]) -> bool:
        if type(info) in self._leaves:
            return True
        if isinstance(info, inspect.StructType):
            if info.cls in seen:
                return False
            seen.add(info.cls)
        if isinstance(info, inspect.Metadata) and multiple_of(info) is not None:
            return True
        return any(self._needed(part, seen) for part in _parts(info))

    def _struct(self, info: inspect.StructType) -> "_StructCheck":
        if info.cls in self._structs:
            return self._structs[info.cls]
        found = self._structs[info.cls] = _StructCheck(struct_class(info))
        for at, field in enumerate(info.fields):
            check = self.build(field.type)
            if check is not None:
                token = str(at) if info.array_like else pointer_token(field.encode_name)
                found.fields.append((field.name, token, check))
        return found


def _float(value: Any) -> Violation | None:
    return _NOT_FINITE if isinstance(value, float) and not math.isfinite(value) else None


def _multiple(value: Any, step: float) -> Violation | None:
    if not isinstance(value, float) or is_multiple(value, step):
        return None
    return Violation("", f"expected a multiple of {step}")


def _int64(value: Any) -> Violation | None:
    return _TOO_LARGE if isinstance(value, int) and not -(2**63) <= value < 2**63 else None


def _decimal(value: Any) -> Violation | None:
    return _NOT_FINITE if isinstance(value, Decimal) and not value.is_finite() else None


def _datetime(value: Any) -> Violation | None:
    if not isinstance(value, datetime) or value.tzinfo is UTC:
        return None
    return _NAIVE if value.utcoffset() is None else _offset(value)


def _offset(value: Any) -> Violation | None:
    if not isinstance(value, datetime | time) or value.tzinfo is None:
        return None
    offset = value.utcoffset()
    if offset is None:
        return _NO_OFFSET
    return _SECONDS if offset.seconds % 60 or offset.microseconds else None


def _items(value: Any, checks: list[tuple[int, Check]]) -> Violation | None:
    if isinstance(value, tuple):
        items = cast(tuple[Any, ...], value)
        for at, check in checks:
            if at < len(items) and (fault := check(items[at])) is not None:
                return Violation(f"/{at}{fault.pointer}", fault.detail)
    return None


def _every_item(value: Any, check: Check) -> Violation | None:
    if isinstance(value, tuple | frozenset):
        for at, item in enumerate(cast(tuple[Any, ...], value)):
            fault = check(item)
            if fault is not None:
                return Violation(f"/{at}{fault.pointer}", fault.detail)
    return None


class _StructCheck:
    """The check of a struct: of each field that needs one. A recursive struct's check contains itself."""

    __slots__ = ("cls", "fields")

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.fields: list[tuple[str, str, Check]] = []

    def __call__(self, value: Any) -> Violation | None:
        if isinstance(value, self.cls):
            for name, token, check in self.fields:
                fault = check(getattr(value, name))
                if fault is not None:
                    return Violation(f"/{token}{fault.pointer}", fault.detail)
        return None


_LEAVES: Mapping[type[inspect.Type], Check] = {
    inspect.FloatType: _float, inspect.DecimalType: _decimal, inspect.DateTimeType: _datetime, inspect.TimeType: _offset,
}  # fmt: skip


def pointer_token(name: str) -> str:
    """Escape a name for a JSON Pointer (RFC 6901, section 3)."""
    return name.replace("~", "~0").replace("/", "~1")
