"""Secrets: fields whose values are never shown."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints, is_typeddict

import msgspec

T = TypeVar("T")

_SECRET = object()

Secret = Annotated[T, _SECRET]
"""The type of a field whose value must not be shown, such as `password: Secret[str]`. It is an ordinary `str` otherwise."""


@functools.cache
def secret_fields(cls: type[msgspec.Struct]) -> frozenset[str]:
    """Return the names of the fields of a struct whose values must not be shown."""
    named: frozenset[str] = getattr(cls, "__secret__", frozenset())
    return named | {field.name for field in msgspec.structs.fields(cls) if _is_secret(field.type)}


def _is_secret(tp: Any, *around: Any) -> bool:
    """Return whether a type is `Secret[…]`, or is made from it, such as `Secret[str] | None` and `tuple[Secret[str], ...]`.

    So is one with a record in it that would show its own secrets: a NamedTuple, a dataclass, a TypedDict, or a struct of msgspec.
    """
    if any(tp is one for one in around):
        return False
    parts = [*get_args(tp), *_shown_by_record(get_origin(tp) or tp)]
    return any(part is _SECRET or _is_secret(part, tp, *around) for part in parts)


def _shown_by_record(tp: Any) -> Iterable[Any]:
    """Return the types of the fields of a record that shows all of them."""
    if not isinstance(tp, type) or hasattr(tp, "__secret__"):
        return ()
    cls: type[Any] = tp
    is_record = issubclass(cls, msgspec.Struct) or dataclasses.is_dataclass(cls) or is_typeddict(cls) or hasattr(cls, "_fields")
    return get_type_hints(cls, include_extras=True).values() if is_record else ()
