"""Parts of a REST request or response other than JSON: header fields, cookies, bodies of other media types, and files.

A field of a message is bound to one by its annotation, as in `if_match: Annotated[str, Header("If-Match")] = ""`. Between services
it is a field like any other.
"""

import re
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from runtime.contract.byte_stream import ByteStream, contains
from runtime.contract.messages import Struct
from runtime.contract.time_formats import time_fields

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/([A-Za-z0-9!#$&^_.+-]+|\*)|\*/\*")
_PATH = re.compile(r"/[\x21-\x3a\x3c-\x7e]*")
_OURS_IN = frozenset(
    [
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
"""Request header fields that the gateway reads itself, or that are about one connection."""
_OURS_OUT = frozenset(
    [
        "connection",
        "content-encoding",
        "content-length",
        "date",
        "keep-alive",
        "set-cookie",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "www-authenticate",
        "x-request-id",
    ]
)
"""The same of responses."""
MULTIPART = "multipart/form-data"


class Upload(Struct):
    """A file that came with a form (`multipart/form-data`, RFC 7578). A message with such a field takes a form instead of JSON."""

    name: str
    """The file name that the client gave. It can be anything: never use it as a path."""
    content_type: str
    content: bytes


class Header:
    """Binds a field of a request to a header field, or a field of a reply to one of the response.

    The value of a header field that is left out is the field's default. A reply's field is left out of the body; `None` and an
    empty collection leave out the header field.

    Args:
        name: the name of the header field, such as `If-Match`.
    """

    def __init__(self, name: str) -> None:
        self.name: str = name

    def __repr__(self) -> str:
        return f"Header({self.name!r})"


class Cookie:
    """Binds a field of a request to a cookie, or a field of a reply to one that the response sets (RFC 6265).

    Of a reply, an empty text deletes the cookie, and `None` leaves it as it is.

    Args:
        name: the name of the cookie.
        max_age: for how many seconds the client keeps it; None for the session of the browser.
        path: the path below which it is sent.
        http_only: whether scripts cannot read it.
        secure: whether it is sent over HTTPS only.
        same_site: on which requests of other sites' pages it is sent.
    """

    def __init__(
        self,
        name: str,
        *,
        max_age: int | None = None,
        path: str = "/",
        http_only: bool = True,
        secure: bool = True,
        same_site: Literal["Strict", "Lax", "None"] = "Lax",
    ) -> None:
        self.name: str = name
        self.max_age: int | None = max_age
        self.path: str = path
        given = [f"Path={path}", *(["HttpOnly"] if http_only else []), *(["Secure"] if secure else []), f"SameSite={same_site}"]
        self.attributes: str = "; ".join(given)

    def __repr__(self) -> str:
        return f"Cookie({self.name!r})"


class Body:
    """Binds a field to the whole body: `bytes` to any, `str` to text in UTF-8, and `ByteStream` to one that is passed on in pieces.

    Args:
        media_types: what a request may have as `Content-Type`, such as `image/png` or `image/*`; of a reply, the one that it has.
    """

    def __init__(self, *media_types: str) -> None:
        self.media_types: tuple[str, ...] = media_types

    def __repr__(self) -> str:
        return f"Body({', '.join(map(repr, self.media_types))})"


class Input(msgspec.Struct, frozen=True):
    """A field of a request that comes from a header field or a cookie. `field` is the name that it has outside.

    Attributes:
        many: whether it takes a list, whose parts are separated by commas.
        is_date: whether it is a time, which HTTP writes in its own way (RFC 9110, section 5.6.7).
    """

    field: str
    kind: Literal["header", "cookie"]
    name: str
    many: bool = False
    is_date: bool = False


class Output(msgspec.Struct, frozen=True):
    """A field of a reply that goes elsewhere than into the JSON body. `field` is the name that it has outside.

    Attributes:
        name: the name of the header field or cookie; the media type of a body.
        attributes: those of a cookie.
        is_date: whether it is a time.
    """

    field: str
    kind: Literal["header", "cookie", "bytes", "text", "stream"]
    name: str
    attributes: str = ""
    max_age: int | None = None
    is_date: bool = False


class Bound(typing.NamedTuple):
    """A field of a struct, with what it is bound to. `annotation` is its type with everything that is said of it."""

    name: str
    outside: str
    part: Header | Cookie | Body
    type: Any
    annotation: Any


def bound_fields(cls: Any) -> Iterator[Bound]:
    """Yield the fields of a struct that are bound to parts of HTTP.

    Raises:
        ValueError: if the part cannot have such a name, a field is bound twice, or one is bound where only a part of the value is.
    """
    if not (isinstance(cls, type) and issubclass(cls, msgspec.Struct)):
        for variant in get_args(cls) if get_origin(cls) in (Union, types.UnionType) else ():
            if next(bound_fields(get_origin(variant) or variant), None) is not None:
                raise ValueError(
                    f"{variant.__name__} has fields that are bound to parts of HTTP: then it has to be the whole type"
                )
        return
    outside = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    seen: set[tuple[type[Any], str]] = set()
    for name, annotation in typing.get_type_hints(cls, include_extras=True).items():
        if name not in outside:
            continue
        found = list(_parts(annotation))
        if len(list(_anywhere(annotation))) > len(found):
            raise ValueError(f"{name}: a part of HTTP is bound to the whole field: Annotated[tuple[str, ...], Header(…)]")
        if not found:
            continue
        if cls.__struct_config__.array_like:
            raise ValueError(f"{name} is bound to {found[0]!r}, but {cls.__name__} is array_like: its fields need names")
        if len(found) > 1:
            raise ValueError(f"{name} is bound to {found[0]!r} and to {found[1]!r}: choose one")
        part = found[0]
        for key in _keys(name, part):
            if key in seen:
                raise ValueError(f"{name}: another field is bound to {part!r} too")
            seen.add(key)
        yield Bound(name, outside[name], part, _without_none(annotation), annotation)


def _keys(name: str, part: Header | Cookie | Body) -> list[tuple[type[Any], str]]:
    if isinstance(part, Body):
        faulty = [given for given in part.media_types if not _MEDIA_TYPE.fullmatch(given)]
        if MULTIPART in part.media_types:
            raise ValueError(
                f"{name}: {part!r}: the fields of a form are those of the message, and its files have the type Upload"
            )
        if faulty or not part.media_types:
            raise ValueError(f"{name}: {part!r}: expected media types, as Body('image/png', 'image/jpeg')")
        return [(Body, "")]
    if not _NAME.fullmatch(part.name):
        raise ValueError(f"{name}: {part!r}: expected a name of letters, digits, and hyphens")
    if isinstance(part, Cookie) and not _PATH.fullmatch(part.path):
        raise ValueError(f"{name}: {part!r}: path={part.path!r} contains characters that a cookie's path cannot have")
    return [(type(part), part.name.lower() if isinstance(part, Header) else part.name)]


BodyKind = Literal["bytes", "text", "stream"]
"""What a field is that is the whole body."""


class RawBody(typing.NamedTuple):
    """The field of a request that is the whole body. `field` is the name that it has outside."""

    field: str
    kind: BodyKind
    media_types: tuple[str, ...]


def inputs_of(message: type[Any]) -> Iterator[Input | RawBody]:
    """Yield the fields of a request that come from header fields and cookies, and the one that is the body.

    Raises:
        ValueError: if one cannot be bound so.
    """
    for field in bound_fields(message):
        if isinstance(field.part, Body):
            yield RawBody(field.outside, _body_kind(field), field.part.media_types)
            continue
        kind: Literal["header", "cookie"] = "header" if isinstance(field.part, Header) else "cookie"
        if kind == "header" and field.part.name.lower() in _OURS_IN:
            raise ValueError(f"{field.name}: the gateway itself reads {field.part.name}: see ctx for what it says")
        plain = _plain(field.type)
        yield Input(field.outside, kind, field.part.name, get_origin(plain) in (tuple, frozenset), _is_date(field))


def outputs_of(reply: Any) -> Iterator[Output]:
    """Yield the fields of a reply that go elsewhere than into the JSON body.

    Raises:
        ValueError: if one cannot be bound so.
    """
    origin = get_origin(reply)
    bound = list(bound_fields(origin if isinstance(origin, type) and issubclass(origin, msgspec.Struct) else reply))
    has_body = any(isinstance(field.part, Body) for field in bound)
    if has_body and (rest := [name for name in reply.__struct_fields__ if name not in {field.name for field in bound}]):
        raise ValueError(f"{rest[0]} has no place in the response: another field is the whole body")
    for field in bound:
        part = field.part
        if isinstance(part, Body):
            kind = _body_kind(field)
            (media_type, *others) = part.media_types
            if others or media_type.endswith("*"):
                raise ValueError(
                    f"{field.name}: {part!r}: a reply has one media type (another one goes into Header('Content-Type'))"
                )
            yield Output(field.outside, kind, media_type)
        elif isinstance(part, Cookie):
            if _plain(field.type) is not str:
                raise ValueError(f"{field.name}: a cookie that is set is a text")
            yield Output(field.outside, "cookie", part.name, part.attributes, part.max_age)
        elif part.name.lower() == "content-type" and not has_body:
            raise ValueError(f"{field.name}: the body is JSON, unless another field is bound to Body(…)")
        elif part.name.lower() in _OURS_OUT or part.name.lower().startswith("access-control-"):
            raise ValueError(f"{field.name}: the gateway itself sends {part.name}")
        else:
            yield Output(field.outside, "header", part.name, is_date=_is_date(field))


def uploads_of(message: type[Any]) -> dict[str, bool]:
    """Return the outside names of the fields of a request that are files, and whether each takes several.

    Raises:
        ValueError: if a file is elsewhere than in such a field.
    """
    outside = dict(zip(message.__struct_fields__, message.__struct_encode_fields__, strict=True))
    found: dict[str, bool] = {}
    for name, tp in typing.get_type_hints(message).items():
        if name not in outside:
            continue
        plain = _without_none(tp)
        many = plain == tuple[Upload, ...]
        if many or plain is Upload:
            found[outside[name]] = many
        elif contains(tp, Upload):
            raise ValueError(f"{name}: files are fields of the types Upload, Upload | None, or tuple[Upload, ...]")
    return found


def _body_kind(field: Bound) -> BodyKind:
    kind = _BODY_KINDS.get(_plain(field.type))
    if kind is None:
        raise ValueError(f"{field.name}: {field.part!r} binds a field of the type bytes, str, or ByteStream")
    return kind


_BODY_KINDS: Mapping[Any, BodyKind] = {bytes: "bytes", str: "text", ByteStream: "stream"}


def _is_date(field: Bound) -> bool:
    """Return whether a field is a time, without a format of its own."""
    return _plain(field.type) is datetime and time_fields(inspect.type_info(field.annotation)) is None


def _parts(annotation: Any) -> Iterator[Header | Cookie | Body]:
    if get_origin(annotation) is Annotated:
        yield from (part for part in annotation.__metadata__ if isinstance(part, Header | Cookie | Body))
        yield from _parts(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for variant in get_args(annotation):
            yield from _parts(variant)


def _anywhere(annotation: Any) -> Iterator[Any]:
    """Yield the parts in an annotation, also in those of its items."""
    yield from (part for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Header | Cookie | Body))
    for argument in get_args(annotation) if get_origin(annotation) is not Annotated else get_args(annotation)[:1]:
        yield from _anywhere(argument)


def _plain(tp: Any) -> Any:
    return _plain(get_args(tp)[0]) if get_origin(tp) is Annotated else tp


def _without_none(annotation: Any) -> Any:
    plain = _plain(annotation)
    if get_origin(plain) in (Union, types.UnionType):
        rest = [variant for variant in get_args(plain) if variant not in (type(None), msgspec.UnsetType)]
        return _plain(rest[0]) if len(rest) == 1 else plain
    return plain
