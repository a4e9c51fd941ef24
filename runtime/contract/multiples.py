"""Multiples of decimal fractions, such as prices in steps of 0.01.

msgspec divides in binary: it refuses 0.07 and 19.99 for `Annotated[float, Meta(multiple_of=0.01)]`. Here the digits that a number
is written with decide, as JSON Schema means it (section 6.2.1 of the 2020-12 validation).
"""

from fractions import Fraction
from inspect import get_annotations
from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

_NAME = "multiple_of"
_CONSTRAINTS = (
    "gt", "ge", "lt", "le", "pattern", "min_length", "max_length", "tz", "title", "description", "examples", "extra_json_schema", "extra",
)  # fmt: skip


def multiple_of(info: inspect.Metadata) -> float | None:
    """Return what the values of an annotated type are multiples of, or None."""
    extra = cast("dict[str, Any] | None", info.extra)
    return None if extra is None else extra.get(_NAME)


def is_multiple(value: float, step: float) -> bool:
    """Return whether a number is a multiple of a step, by its digits or by division."""
    return (value / step).is_integer() or Fraction(repr(value)) % Fraction(repr(step)) == 0


def take_over(tp: Any) -> Any:
    """Return a type in which this module checks the multiples of floats rather than msgspec.

    The annotations of structs in the type are changed. msgspec reads them when it first decodes a struct, so this comes first.
    """
    return _of(tp, set())


def _of(tp: Any, seen: set[Any]) -> Any:
    origin = get_origin(tp)
    if origin is Annotated:
        inner, *notes = get_args(tp)
        kept = [_without_multiple(note) if _has_float(inner) else note for note in notes]
        found = _of(inner, seen)
        return tp if found is inner and kept == notes else Annotated[(found, *kept)]
    if isinstance(origin or tp, type) and issubclass(origin or tp, msgspec.Struct):
        _change(origin or tp, seen)
    arguments = get_args(tp)
    found = tuple(_of(argument, seen) for argument in arguments)
    if all(one is other for one, other in zip(arguments, found, strict=True)):
        return tp
    return Union[found] if origin in (Union, UnionType) else origin[found]  # noqa: UP007


def _change(cls: type[msgspec.Struct], seen: set[Any]) -> None:
    if cls in seen:
        return
    seen.add(cls)
    for owner in cls.__mro__:
        try:
            own = get_annotations(owner)
            hints = get_type_hints(owner, include_extras=True) if own else {}
        except (NameError, TypeError):
            continue  # the contract reports such a type
        found = {name: _of(hints[name], seen) for name in own if name in hints}
        if changed := {name: tp for name, tp in found.items() if tp is not hints[name]}:
            owner.__annotations__ = {**own, **changed}


def _has_float(tp: Any) -> bool:
    return tp is float or float in get_args(tp)


def _without_multiple(note: Any) -> Any:
    if not isinstance(note, msgspec.Meta) or note.multiple_of is None:
        return note
    kept = {name: value for name in _CONSTRAINTS if (value := getattr(note, name)) is not None}
    kept["extra"] = {**kept.get("extra", {}), _NAME: note.multiple_of}
    kept["extra_json_schema"] = {**kept.get("extra_json_schema", {}), "multipleOf": note.multiple_of}
    return msgspec.Meta(**kept)
