"""Faults in JSON text: what msgspec says about it, as errors that name the field, and what msgspec does not look for."""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, cast

from runtime.contract.errors import Invalid, Malformed, Violation
from runtime.contract.json_values import pointer_token

_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(?:\.\.\.)?\]")
_INTEGER_DIGITS = 18
"""The highest exponent of an integer of 64 bits."""
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


def with_integers(body: bytes) -> bytes | None:
    """Return JSON text in which numbers such as `1.0` and `1e3` are written as integers, or None if it has none.

    JSON Schema calls them integers (section 4.2.3 of the 2020-12 core), and some languages write whole numbers this way.
    """
    found: list[int] = []

    def number(text: str) -> int | float:
        exact = Decimal(text)
        if exact.adjusted() > _INTEGER_DIGITS or exact != exact.to_integral_value():
            return float(text)
        found.append(int(exact))
        return found[-1]

    try:
        tree = json.loads(body, parse_float=number)
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return json.dumps(tree).encode() if found else None


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
