"""The fields of an error class, and the names that they cannot have."""

import inspect
from collections.abc import Collection, Iterable
from typing import Any

_DOCUMENT = frozenset(
    ("type", "title", "status", "detail", "instance", "code", "contract", "request_id", "errors", "retryable", "maybe_delivered", "fields")
)  # fmt: skip
"""The members of a problem document, which an error's fields would hide."""


def own_fields(cls: type[Any]) -> Iterable[tuple[str, Any]]:
    """Return the fields that a class adds to those of its base, as pairs of name and annotation."""
    for name, annotation in inspect.get_annotations(cls).items():
        if "ClassVar" not in str(annotation):
            yield name, annotation


def why_taken(name: str, annotation: Any, attributes: Collection[str]) -> str | None:
    """Return what to do about a field whose name means something else, or None if an error may have the field.

    Args:
        attributes: the names that every error has in Python.
    """
    if name == "detail" and annotation in (str, "str"):
        return None  # it is shown as the document's own detail
    if name in ("code", "status", "retryable", "contract"):
        return "annotate it as ClassVar, or not at all"
    return "name it otherwise" if name in _DOCUMENT or name in attributes or name.startswith("_") else None
