"""What a REST request must not contain, although msgspec accepts it: valid is what the published schema says.

Between services none of this is checked, so that a contract can grow.
"""

import enum
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

import msgspec

from runtime.contract.errors import Invalid, Malformed, Violation
from runtime.contract.json_values import pointer_token
from runtime.contract.text_forms import text_fault
from runtime.contract.time_formats import TimeFields

_OTHER = "expected another type"
"""Said of an item of a set beside a value that comes from another item. A client never sees it."""


class _Number(str):
    """The digits of a number in JSON text."""

    __slots__ = ()


def check_text(body: bytes, value: Any, times: TimeFields | None = None) -> None:
    """Check the JSON text that a value was decoded from.

    Args:
        times: the fields of the value that are times in a format of their own, which was checked when they were decoded.

    Raises:
        Malformed: if an object has the same name twice (RFC 8259, section 4).
        Invalid: if a part of it does not fit the schema: see `first_fault`.
    """
    try:
        tree = json.loads(body, object_pairs_hook=_unique, parse_int=_Number, parse_float=_Number)
        if times is not None:
            tree = json.loads(times.read(body), parse_int=_Number, parse_float=_Number)
        fault = first_fault(value, tree)
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None
    if fault is not None:
        raise Invalid((fault,))


def first_fault(value: Any, tree: Any) -> Violation | None:
    """Return the first part of a tree of JSON values that does not fit the schema of the value decoded from it, or None.

    It is a member that its struct does not have, a missing tag, an item too many, an item of a set that occurs twice, or a
    text in another form than the published one.
    """
    return next(_faults(value, tree, ""), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"the body names {twice[:40]!r} twice in one object: expected each name once")
    return members


def _faults(value: Any, tree: Any, pointer: str) -> Iterator[Violation]:
    if isinstance(tree, dict):
        if isinstance(value, msgspec.Struct):
            yield from _of_object(value, cast(dict[str, Any], tree), pointer)
        else:
            yield Violation(pointer, _OTHER)
    elif isinstance(tree, list):
        items = cast(list[Any], tree)
        if isinstance(value, msgspec.Struct):
            yield from _of_array_like(value, items, pointer)
        elif isinstance(value, frozenset):
            yield from _of_set(cast(frozenset[Any], value), items, pointer)
        elif isinstance(value, tuple) and len(value) == len(items):  # pyright: ignore[reportUnknownArgumentType]
            for at, (part, item) in enumerate(zip(cast(tuple[Any, ...], value), items, strict=True)):
                yield from _faults(part, item, f"{pointer}/{at}")
        else:
            yield Violation(pointer, _OTHER)
    elif isinstance(value, enum.Flag):
        if not isinstance(tree, _Number | int | float) or Decimal(str(tree)) != value.value:
            yield Violation(
                pointer, f"expected a sum of flags, got {str(tree)[:40]}"
            )  # Python makes one of negative numbers, too
    elif (fault := text_fault(value, tree)) is not None:
        yield Violation(pointer, fault)


def _of_object(value: msgspec.Struct, members: Mapping[str, Any], pointer: str) -> Iterator[Violation]:
    tag = value.__struct_config__.tag_field
    fields: Sequence[tuple[str, str]] = list(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
    names = {outside for outside, _ in fields}
    for name in members:
        if name not in names and name != tag:
            yield Violation(f"{pointer}/{pointer_token(name)}", f"Object contains unknown field `{name[:40]}`")
    if tag is not None and tag not in members:
        yield Violation(f"{pointer}/{pointer_token(tag)}", f"Object missing required field `{tag}`")
    for outside, name in fields:
        if outside in members:
            yield from _faults(getattr(value, name), members[outside], f"{pointer}/{pointer_token(outside)}")


def _of_array_like(value: msgspec.Struct, items: list[Any], pointer: str) -> Iterator[Violation]:
    tagged = value.__struct_config__.tag is not None
    names = ((None,) if tagged else ()) + value.__struct_fields__
    if len(items) > len(names):
        yield Violation(pointer, f"expected an array of at most {len(names)} items, got {len(items)}")
    for at, (name, item) in enumerate(zip(names, items, strict=False)):
        if name is not None:
            yield from _faults(getattr(value, name), item, f"{pointer}/{at}")


def _of_set(value: frozenset[Any], items: list[Any], pointer: str) -> Iterator[Violation]:
    if len(value) < len(items):  # or two texts of one value, such as 1.0 and 1.00: both are in the set
        seen: set[Hashable] = set()
        for at, item in enumerate(items):
            key = _key(item)
            if key in seen:
                yield Violation(f"{pointer}/{at}", "expected each item once")
            seen.add(key)
    for at, item in enumerate(items):  # their order is lost: one of the values has to fit
        faults = [next(_faults(part, item, f"{pointer}/{at}"), None) for part in value]
        if faults and None not in faults:
            yield next(fault for fault in faults if fault is not None)


def _key(tree: Any) -> Hashable:
    """Return a key that is equal for equal JSON values: 1 and 1.0 are, 1 and true are not."""
    if isinstance(tree, dict):
        return frozenset((name, _key(item)) for name, item in cast(dict[str, Any], tree).items())
    if isinstance(tree, list):
        return tuple(_key(item) for item in cast(list[Any], tree))
    if isinstance(tree, _Number | float) or type(tree) is int:
        return Decimal(str(tree))
    return isinstance(tree, bool), tree
