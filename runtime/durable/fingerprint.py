"""The fingerprint of a `once` request: what tells its repetition from another request with the same idempotency key.

A repetition may arrive after a deployment or a roll-back, which has changed the type of the request. So the fingerprint is made
of what the caller sent: the values in the path, the query, and the body, none of which a new version changes. A second part
is made of what the service understood, without fields that have their defaults. By that, a repetition counts as one that
says the same in other words, such as `1.0` for `1`, or that was sent by a newer version of the caller, whose type has one more
optional field.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from runtime.contract.codec import to_canonical_json
from runtime.contract.parameters import Params

_Default = Callable[[], Any]
_fields: dict[type[msgspec.Struct], list[tuple[str, str, _Default]]] = {}


class Fingerprint:
    """The fingerprint of one request.

    Args:
        received: the parameters and the body of the request, as they came; None if it came as an object.
        path: how many of the parameters are in the path.
        message: the message; None if what came in does not fit the type of this version.
    """

    __slots__ = ("_message", "_received", "_understood")

    def __init__(self, received: tuple[Params | None, bytes] | None, path: int, message: Any) -> None:
        self._message = message
        self._received = "" if received is None else _digest(_canonical(received, path))
        self._understood = "" if message is None else _digest(to_canonical_json(_without_defaults(message)))

    def __str__(self) -> str:
        """Return the fingerprint as it is stored."""
        return f"{self._received}:{self._understood}"

    def matches(self, stored: str) -> bool:
        """Return whether a stored fingerprint is of the same request."""
        received, separator, understood = stored.partition(":")
        if not separator:  # stored by an earlier version of the runtime: of the message, with its defaults
            return self._message is not None and stored == hashlib.sha256(to_canonical_json(self._message)).hexdigest()
        return received == self._received != "" or understood == self._understood != ""


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]


def _canonical(received: tuple[Params | None, bytes], path: int) -> bytes:
    """Return what came in, without what has no meaning: white space, the order of members, and the names of the path's parameters."""
    params, body = received
    values = [value for _, value in (params or ())[:path]]
    query = sorted((params or ())[path:], key=lambda pair: pair[0])
    try:
        content = to_canonical_json(msgspec.json.decode(body)) if body else b""
    except (msgspec.MsgspecError, ValueError, RecursionError):
        content = body
    return to_canonical_json((values, query)) + content


def _without_defaults(value: Any) -> Any:
    """Return a value with each struct as a dict that lacks the fields with their defaults."""
    if isinstance(value, msgspec.Struct):
        cls = type(value)
        known = _fields.get(cls)
        if known is None:
            known = _fields[cls] = [(field.name, field.encode_name, _default(field)) for field in msgspec.structs.fields(cls)]
        found: dict[str, Any] = {}
        for name, outside, default in known:
            part, usual = getattr(value, name), default()
            if part.__class__ is not usual.__class__ or part != usual:
                found[outside] = _without_defaults(part)
        if cls.__struct_config__.tag is not None:
            found[cls.__struct_config__.tag_field or "type"] = cls.__struct_config__.tag
        return found
    if isinstance(value, tuple):
        return [_without_defaults(item) for item in cast(tuple[Any, ...], value)]
    if isinstance(value, frozenset):
        return sorted((_without_defaults(item) for item in cast(frozenset[Any], value)), key=to_canonical_json)
    if isinstance(value, Mapping):
        return {key: _without_defaults(item) for key, item in cast(Mapping[Any, Any], value).items()}
    return value


def _default(field: msgspec.structs.FieldInfo) -> _Default:
    if field.default_factory is not msgspec.NODEFAULT:
        return cast(_Default, field.default_factory)
    return lambda: field.default
