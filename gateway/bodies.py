"""Bodies that are not JSON: forms and files become the JSON of a request, and a reply becomes header fields and other bodies.

Everything behind the gateway takes and returns JSON.
"""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any, cast

import msgspec
import multipart

from gateway.problems import Headers, Response
from runtime import ByteStream, Invalid, Malformed, Violation
from runtime.contract.http_parts import MULTIPART, Output
from runtime.contract.json_values import pointer_token
from runtime.contract.rest import HttpBinding
from runtime.network import Params

_JSON: Headers = [(b"content-type", b"application/json")]
_MOST_PARTS = 1000
"""The most parts of a form that are read."""
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ENTITY_TAG = re.compile(rb'(?:W/)?("[^"]*")')
_COOKIE_VALUE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
"""What the value of a cookie consists of (RFC 6265, section 4.1.1)."""


def accepts(bindings: Sequence[HttpBinding], content_type: bytes) -> bool:
    """Return whether a body with this `Content-Type` is one that a version of a route takes."""
    essence = content_type.partition(b";")[0].strip().lower().decode("latin-1")
    return any(_accepts(http, essence) for http in bindings)


def _accepts(http: HttpBinding, essence: str) -> bool:
    if http.media_types:
        return any(
            essence == media.lower() or (media.endswith("/*") and essence.startswith(media[:-1].lower())) or media == "*/*"
            for media in http.media_types
        )
    return essence == "application/json" or (essence.startswith("application/") and essence.endswith("+json"))


def expected_types(bindings: Sequence[HttpBinding]) -> str:
    """Return the media types that a route takes, for people."""
    return " or ".join(dict.fromkeys(media for http in bindings for media in http.media_types or ("application/json",)))


def to_json(content_type: bytes, stream: ByteStream | None, http: HttpBinding, body: bytes) -> tuple[bytes, Params]:
    """Return the JSON that a body of another media type becomes, and the texts of a form, which become parameters.

    Args:
        stream: the body, for a request that takes it as a stream.

    Raises:
        Malformed: if it is not the form or the text that it has to be.
        Invalid: if a file comes where a text is expected, or the other way round.
    """
    if MULTIPART in http.media_types:
        return _form(http, content_type.decode("latin-1"), body)
    value: str | ByteStream | None
    if http.raw_kind == "stream":
        value = stream
    elif http.raw_kind == "bytes":
        value = base64.b64encode(body).decode()
    else:
        try:
            value = body.decode()
        except UnicodeDecodeError:
            raise Malformed("the body is not UTF-8") from None
    return msgspec.json.encode({http.raw_field: value}), ()


def _form(http: HttpBinding, content_type: str, body: bytes) -> tuple[bytes, Params]:
    texts: list[tuple[str, str]] = []
    files: dict[str, list[dict[str, str]]] = {}
    faults: list[Violation] = []
    for segment, content in _segments(content_type, body):
        name = segment.name or ""
        if segment.filename == "" and not content:
            continue  # what a browser sends of a file input that was left empty
        if segment.filename is None and name in http.body_fields:
            faults.append(Violation(f"/{pointer_token(name)}", "expected a file, with a filename"))
        elif segment.filename is None:
            try:
                texts.append((name, content.decode()))
            except UnicodeDecodeError:
                raise Malformed(f"the part {name!r} of the form is not UTF-8") from None
        elif name not in http.body_fields:
            faults.append(Violation(f"/{pointer_token(name)}", "expected a text" if name in http.form_fields else "unknown file"))
        else:
            file = {
                "name": segment.filename,
                "content_type": segment.content_type or "application/octet-stream",
                "content": base64.b64encode(content).decode(),
            }
            files.setdefault(name, []).append(file)
            if len(files[name]) > 1 and name not in http.many_files:
                faults.append(Violation(f"/{pointer_token(name)}", "given more than once"))
    if faults:
        raise Invalid(tuple(faults))
    return msgspec.json.encode({name: given if name in http.many_files else given[0] for name, given in files.items()}), tuple(
        texts
    )


def _segments(content_type: str, body: bytes) -> list[tuple[multipart.MultipartSegment, bytes]]:
    options: dict[str, str] = multipart.parse_options_header(content_type)[1]
    boundary = options.get("boundary", "")
    found: list[tuple[multipart.MultipartSegment, bytes]] = []
    pieces: list[bytes] = []
    try:
        if not boundary:
            raise Malformed("the Content-Type of a form needs a boundary")
        with multipart.PushMultipartParser(
            boundary, content_length=len(body), max_segment_count=_MOST_PARTS, strict=True
        ) as parser:
            for event in parser.parse(body):
                if isinstance(event, multipart.MultipartSegment):
                    pieces = []
                    found.append((event, b""))
                elif event is None:
                    found[-1] = (found[-1][0], b"".join(pieces))
                else:
                    pieces.append(bytes(event))
    except (multipart.MultipartError, ValueError, AssertionError) as error:
        raise Malformed(f"the form cannot be read: {error or 'it is not complete'}") from None
    return found


def to_response(http: HttpBinding, reply: bytes) -> Response:
    """Return the response to a request, from its reply as JSON text.

    Raises:
        ValueError: if a value cannot be a header field.
    """
    values = msgspec.json.decode(reply, type=dict[str, msgspec.Raw])
    headers: Headers = []
    body: bytes | None = None
    media_type = b""
    for output in http.outputs:
        if output.kind == "stream":
            body, media_type = b"", output.name.encode()  # which follows
            continue
        raw = values.pop(output.field, None)
        value: Any = None if raw is None else msgspec.json.decode(raw)
        if output.kind in ("bytes", "text"):
            body = b"" if value is None else base64.b64decode(value) if output.kind == "bytes" else str(value).encode()
            media_type = output.name.encode()
        elif output.kind == "cookie":
            if value is not None:
                headers.append((b"set-cookie", _cookie(output, str(value))))
        elif value is not None and value != []:
            headers.append((output.name.lower().encode(), _header(output, value)))
    names = {name for name, _ in headers}
    if b"etag" in names and b"cache-control" not in names:
        headers.append((b"cache-control", b"private, no-cache"))  # it may be kept, to be compared
    if http.status == HTTPStatus.NO_CONTENT:
        return http.status, headers, b""
    if body is None:
        return http.status, [*_JSON, *headers], msgspec.json.encode(values)
    if b"content-type" not in names:
        headers.insert(0, (b"content-type", media_type))
    return http.status, headers, body


def is_unchanged(headers: Headers, if_none_match: bytes | None) -> bool:
    """Return whether a client has what a response contains, by its ETag (RFC 9110, section 13.1.2)."""
    if if_none_match is None:
        return False
    etag = next((value for name, value in headers if name == b"etag"), None)
    if etag is None:
        return False
    return if_none_match.strip() == b"*" or etag.removeprefix(b"W/") in _ENTITY_TAG.findall(if_none_match)


def unchanged(headers: Headers) -> Response:
    """Return the response that says so: 304 with the header fields that a cache needs."""
    kept = (b"etag", b"cache-control", b"vary", b"expires", b"content-location", b"set-cookie")
    return HTTPStatus.NOT_MODIFIED, [pair for pair in headers if pair[0] in kept], b""


def _header(output: Output, value: Any) -> bytes:
    if isinstance(value, list):
        text = ", ".join(map(_text, cast(list[Any], value)))
    elif output.is_date and isinstance(value, str):
        text = format_datetime(datetime.fromisoformat(value).astimezone(UTC), usegmt=True)  # RFC 9110, section 5.6.7
    else:
        text = _text(value)
    if _CONTROL.search(text):
        raise ValueError(f"the reply's field {output.field} contains a control character: it cannot be sent as {output.name}")
    return text.encode()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _cookie(output: Output, value: str) -> bytes:
    if not _COOKIE_VALUE.fullmatch(value):
        raise ValueError(
            f"the reply's field {output.field} contains characters that a cookie cannot have: encode it, as by base64"
        )
    age = 0 if value == "" else output.max_age
    return f"{output.name}={value}; {'' if age is None else f'Max-Age={age}; '}{output.attributes}".encode()
