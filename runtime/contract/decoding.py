"""Faults in JSON text: what msgspec says about it, as errors that name the field, and what msgspec does not look for."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from runtime.contract.errors import Invalid, Malformed, Violation
from runtime.contract.json_values import pointer_token

_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(?:\.\.\.)?\]")
_LONGEST = 300
"""The length, in characters, up to which msgspec's message is parsed. It contains a field name that the client chooses."""


def decode_failure(text: str) -> Violation:
    """Return the violation that the text of a `msgspec.ValidationError` describes."""
    if len(text) > _LONGEST:
        return Violation("", text[:_LONGEST] + "…")
    what, at, path = text.rpartition(" - at `$")
    if not at or not path.endswith("`"):
        what, path = text, ""
    pointer = "".join("/" + pointer_token(name or index or "-") for name, index in _STEP.findall(path[:-1]))
    field = _FIELD.fullmatch(what)
    return Violation(f"{pointer}/{pointer_token(field['name'])}" if field else pointer, what)


def invalid_json(body: bytes, error: Exception) -> Malformed | Invalid:
    """Return the error for a body that could not be parsed."""
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


def check_members(body: bytes, value: Any) -> None:
    """Check the objects in JSON text that was decoded: their names are unique, and are fields of the decoded structs.

    Args:
        value: what the text was decoded to.

    Raises:
        Malformed: if an object has the same name twice (RFC 8259, section 4).
        Invalid: if an object has a member that its struct does not have.
    """
    try:
        tree = json.loads(body, object_pairs_hook=_unique, parse_int=str, parse_float=str)
        unknown = next(_unknown_members(value, tree, ""), None)
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None
    if unknown is not None:
        raise Invalid((unknown,))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"the body names {twice[:40]!r} twice in one object: expected each name once")
    return members


def _unknown_members(value: Any, tree: Any, pointer: str) -> Iterator[Violation]:
    if isinstance(value, msgspec.Struct):
        if isinstance(tree, dict):
            yield from _of_object(value, cast(dict[str, Any], tree), pointer)
        elif isinstance(tree, list):  # array_like
            for at, (name, item) in enumerate(zip(value.__struct_fields__, cast(list[Any], tree), strict=False)):
                yield from _unknown_members(getattr(value, name), item, f"{pointer}/{at}")
    elif isinstance(value, tuple) and isinstance(tree, list):
        for at, (part, item) in enumerate(zip(cast(tuple[Any, ...], value), cast(list[Any], tree), strict=False)):
            yield from _unknown_members(part, item, f"{pointer}/{at}")
    elif isinstance(value, frozenset) and isinstance(tree, list):
        parts = cast(frozenset[Any], value)
        for at, item in enumerate(cast(list[Any], tree)):  # their order is lost: one of them has to fit
            faults = [next(_unknown_members(part, item, f"{pointer}/{at}"), None) for part in parts]
            if faults and None not in faults:
                yield next(fault for fault in faults if fault is not None)


def _of_object(value: msgspec.Struct, members: Mapping[str, Any], pointer: str) -> Iterator[Violation]:
    config = value.__struct_config__
    fields: Sequence[tuple[str, str]] = list(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
    names = {outside for outside, _ in fields}
    for name in members:
        if name not in names and name != config.tag_field:
            yield Violation(f"{pointer}/{pointer_token(name)}", f"Object contains unknown field `{name[:40]}`")
    for outside, name in fields:
        if outside in members:
            yield from _unknown_members(getattr(value, name), members[outside], f"{pointer}/{pointer_token(outside)}")


class _NotFinite(float):
    pass


def _not_finite(body: bytes) -> str | None:
    """Return a pointer to the first NaN or infinity if the body would be JSON without them, else None."""
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
