"""Streams of bytes in requests and replies: bodies that are too large, or last too long, for one message."""

import typing
from typing import Any, get_args, get_origin

import msgspec


class ByteStream(msgspec.Struct, frozen=True):
    """Bytes that follow a message in pieces: a field of a request or of a reply. Make one with `ctx.offer`, and read it with `ctx.read`.

    Attributes:
        id: names the stream. Only the service that gets the message can read it, and only once.
        size: the number of bytes, if it is known before.
    """

    id: str
    size: int | None = None


def stream_field(cls: Any) -> str | None:
    """Return the name of the field of a struct that is a stream of bytes, or None.

    Raises:
        ValueError: if there are several, or one is elsewhere than in a field of its own.
    """
    struct = get_origin(cls) or cls
    if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct)) or struct is ByteStream:
        if contains(cls, ByteStream):
            raise ValueError("a ByteStream is a field of a struct, not in a tuple or a union")
        return None
    hints = {name: tp for name, tp in typing.get_type_hints(struct).items() if name in struct.__struct_fields__}
    found = [name for name, tp in hints.items() if set(get_args(tp) or (tp,)) - {type(None)} == {ByteStream}]
    if other := [name for name, tp in hints.items() if name not in found and contains(tp, ByteStream)]:
        raise ValueError(f"{other[0]}: a ByteStream is a field of the message or the reply itself, not of a part of it")
    if len(found) > 1:
        raise ValueError(f"{found[1]}: {found[0]} is a ByteStream already: a message has one")
    return found[0] if found else None


def contains(tp: Any, wanted: type[Any]) -> bool:
    """Return whether a type is a class, or contains it, also in the fields of structs."""
    stack, seen = [tp], list[Any]()
    while stack:
        found = stack.pop()
        if found is wanted:
            return True
        if found in seen:
            continue
        seen.append(found)
        stack += get_args(found)
        origin = get_origin(found) or found
        if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
            stack += typing.get_type_hints(origin).values()
    return False


def stream_of(field: str, reply: bytes) -> ByteStream | None:
    """Return the stream in a field of a reply that is JSON text."""
    raw = msgspec.json.decode(reply, type=dict[str, msgspec.Raw]).get(field)
    return None if raw is None else msgspec.json.decode(raw, type=ByteStream | None)
