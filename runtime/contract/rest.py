"""REST bindings: the route of a request, and how path, query, and body become the message.

The gateway passes all three on unchanged. The service owns the contract and decodes them: the body strictly (unknown
fields are errors), parameters of path and query from their strings. Header fields, cookies, and the texts of a form are
parameters as well.
"""

import functools
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from runtime.contract.byte_stream import ByteStream, stream_field
from runtime.contract.codec import Codec
from runtime.contract.errors import DefinitionError, Invalid, Malformed, Violation
from runtime.contract.http_parts import MULTIPART, BodyKind, Input, Output, RawBody, inputs_of, outputs_of, uploads_of
from runtime.contract.json_values import pointer_token
from runtime.contract.messages import MessageSpec
from runtime.contract.parameters import Params, parameter_fields
from runtime.contract.strict import check_text

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
RESERVED = ("docs", "console", "live", "healthz", "readyz", "metrics", "openapi.json", ".well-known")
"""First path segments that belong to the gateway itself."""

_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[a-z][A-Za-z0-9_-]*(:path)?\}")
_ANNOUNCED_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[A-Za-z0-9._~-]+(:path)?\}")
_CONVERTER = re.compile(r"\{(\w+):(\w*)\}")
REST = ":path}"
"""How a path segment ends that matches the rest of a path, with its slashes."""
_COOKIE = re.compile(rb"; *")
_EXPECTED = f"expected e.g. 'POST /rides/{{id}}/end' with one of {', '.join(METHODS)}"
_NAME = re.compile(r"[A-Za-z0-9._~-]+")
_BODYLESS = ("GET", "DELETE")


class RestParts(NamedTuple):
    """The parts of a REST request beside its JSON.

    Attributes:
        values: the values of the path's parameters, in order.
        query: the parameters of the query.
        fields: the header fields, by their lower-case names.
        convert: turns a body of another media type into JSON and the texts of a form; None if it is JSON.
        stream: the body, for the versions of a request that take it as a stream.
    """

    values: tuple[str, ...]
    query: Params
    fields: Mapping[bytes, bytes]
    convert: "Callable[[HttpBinding, bytes], tuple[bytes, Params]] | None" = None
    stream: ByteStream | None = None


class HttpBinding(msgspec.Struct, frozen=True):
    """The route of a request. Fields have the names that they have outside, which `rename=` of the message may set.

    Attributes:
        method: the HTTP method.
        path: the path, with `{field}` where a segment becomes a field of the message.
        status: the status of a successful response.
        path_fields: the fields that come from the path.
        query_fields: the fields that come from the query.
        body_fields: the fields that come from the JSON body, or from what the gateway makes of another one.
        inputs: the fields that come from header fields and cookies.
        media_types: what the body may be, if it is not JSON: a form, or what becomes `raw_field`.
        raw_field: the field that is the whole body.
        raw_kind: what that field is.
        form_fields: the fields that come from the texts of a form. Its files are in `body_fields`.
        many_files: those of the files that may occur repeatedly.
        outputs: the fields of the reply that are not in the body of the response, or are all of it.
    """

    method: str
    path: str
    status: int
    path_fields: tuple[str, ...] = ()
    query_fields: tuple[str, ...] = ()
    body_fields: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    media_types: tuple[str, ...] = ()
    raw_field: str = ""
    raw_kind: BodyKind = "bytes"
    form_fields: tuple[str, ...] = ()
    many_files: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()

    @property
    def shape(self) -> tuple[str, str]:
        """The method and the path without the names of its parameters. Two routes of one shape match the same requests."""
        return self.method, "/".join(map(shape_of, self.path.split("/")))

    @property
    def stream(self) -> Output | None:
        """The field of the reply that is a stream of bytes."""
        return next((found for found in self.outputs if found.kind == "stream"), None)

    @property
    def route(self) -> str:
        """The shape as text, such as `GET /rides/{}`."""
        return " ".join(self.shape)

    def read(self, parts: RestParts, body: bytes) -> tuple[Params, bytes]:
        """Return the parameters and the JSON body of a request.

        Raises:
            Invalid: if the query has a parameter that comes from elsewhere, or a form does not fit.
            Malformed: if a header field is not UTF-8, or a form cannot be read.
        """
        query = parts.query
        if parts.convert is not None and self.media_types:
            body, texts = parts.convert(self, body)
            if self.form_fields and query:
                raise Invalid(tuple(Violation(f"/{pointer_token(name)}", "unknown parameter") for name, _ in query))
            query += texts
        params = tuple(zip(self.path_fields, parts.values, strict=True)) + query
        return params + tuple(_given(self.inputs, query, parts.fields)) if self.inputs else params, body

    @classmethod
    def parse(cls, where: str, route: str, status: int, message: type[Any], reply: Any = None) -> "HttpBinding":
        """Check a route such as `"POST /rides/{id}/end"` against the fields of a message.

        Args:
            where: the class and method, for error messages.
            reply: the type of the reply.

        Raises:
            DefinitionError: if it is not a route, or its parameters are not fields that a string can become.
        """
        method, _, path = route.partition(" ")
        segments = path.split("/")[1:]
        if converter := _CONVERTER.search(path.replace(REST, "}")):
            raise DefinitionError(
                f"{where}: http={route!r}: {converter[0]}: the type comes from the field {converter[1]} of {message.__name__}: "
                f"write {{{converter[1]}}}, or {{{converter[1]}:path}} for the rest of the path"
            )
        fault = route_fault(method, path) or (None if all(map(_SEGMENT.fullmatch, segments)) else _EXPECTED)
        if fault is not None:
            raise DefinitionError(f"{where}: http={route!r}: {fault}")
        if message.__struct_config__.array_like:
            raise DefinitionError(f"{where}: http={route!r}: {message.__name__} is array_like: a REST request needs named fields")
        outside = dict(zip(message.__struct_fields__, message.__struct_encode_fields__, strict=True))
        in_path = tuple(_outside_name(where, route, message, outside, segment) for segment in segments if segment.startswith("{"))
        inputs, outputs, raw, uploads = cls._parts(where, route, message, reply)
        _require_bound(where, route, message, "" if raw is None else raw.kind)
        _require_bound(where, route, reply, next((found.kind for found in outputs if found.kind == "stream"), ""))
        elsewhere = {found.field for found in outputs}
        if status == 204 and reply is not None and not (outputs and elsewhere >= set(reply.__struct_encode_fields__)):
            raise DefinitionError(f"{where}: status=204: a response without a body, but the reply has one: use Request[None]")
        bound = tuple(found.field for found in inputs)
        raw_field = "" if raw is None else raw.field
        if taken := [name for name in in_path if name in (*bound, raw_field, *uploads)]:
            raise DefinitionError(f"{where}: http={route!r}: {{{taken[0]}}} is bound to another part of the request: choose one")
        rest = tuple(name for name in outside.values() if name not in in_path and name not in bound)
        media: tuple[str, ...] = (MULTIPART,) if uploads else () if raw is None else raw.media_types
        if media and method in _BODYLESS:
            raise DefinitionError(f"{where}: http={route!r}: a {method} has no body: use POST or PUT")
        if raw is not None and (uploads or len(rest) > 1):
            raise DefinitionError(
                f"{where}: http={route!r}: {raw_field} is the whole body, so the other fields have to come from elsewhere: "
                "the path, or Header(…) and Cookie(…)"
            )
        query = rest if method in _BODYLESS else ()
        form = tuple(name for name in rest if name not in uploads) if uploads else ()
        body = tuple(name for name in rest if name not in query + form)
        try:
            parameters = parameter_fields(message, in_path + query + form + bound)
        except TypeError as error:
            raise DefinitionError(f"{where}: http={route!r}: {message.__name__}.{error}") from None
        for name in in_path:
            if parameters[name].many:
                raise DefinitionError(f"{where}: http={route!r}: {{{name}}} is a collection: a path segment holds one value")
        names = iter(in_path)
        path = "".join(
            f"/{{{next(names)}{REST if segment.endswith(REST) else '}'}" if segment.startswith("{") else f"/{segment}"
            for segment in segments
        )
        many = tuple(name for name, several in uploads.items() if several)
        kind = "bytes" if raw is None else raw.kind
        return cls(method, path, status, in_path, query, body, inputs, media, raw_field, kind, form, many, outputs)

    @staticmethod
    def _parts(
        where: str, route: str, message: type[Any], reply: Any
    ) -> "tuple[tuple[Input, ...], tuple[Output, ...], RawBody | None, dict[str, bool]]":
        """Return what header fields, cookies, and bodies of other media types are bound to. Raises DefinitionError."""
        what = message.__name__
        try:
            found = list(inputs_of(message))
            uploads = uploads_of(message)
            what = getattr(reply, "__name__", str(reply))
            outputs = tuple(outputs_of(reply))
        except ValueError as error:
            raise DefinitionError(f"{where}: http={route!r}: {what}.{error}") from None
        raw = next((given for given in found if isinstance(given, RawBody)), None)
        return tuple(given for given in found if isinstance(given, Input)), outputs, raw, uploads


def _require_bound(where: str, route: str, cls: Any, body: str) -> None:
    """Check that a stream of bytes is the body: JSON cannot contain it. Raises DefinitionError."""
    name = stream_field(cls)
    if name is not None and body != "stream":
        raise DefinitionError(
            f"{where}: http={route!r}: {cls.__name__}.{name} is a ByteStream, which is the whole body: Annotated[ByteStream, Body('image/*')]"
        )


def shape_of(segment: str) -> str:
    """Return a segment of a route's path without the name of its parameter: `{}`, or `{*}` for the rest of the path."""
    return segment if not segment.startswith("{") or segment == "{*}" else "{*}" if segment.endswith(REST) else "{}"


def _given(inputs: tuple[Input, ...], query: Params, fields: Mapping[bytes, bytes]) -> Iterator[tuple[str, str]]:
    """Yield the parameters that a request's header fields and cookies are. Raises like `HttpBinding.read`."""
    elsewhere = {found.field for found in inputs}
    if wrong := [name for name, _ in query if name in elsewhere]:
        raise Invalid(tuple(Violation(f"/{pointer_token(name)}", "unknown parameter") for name in wrong))
    cookies: dict[bytes, bytes] | None = None
    for found in inputs:
        if found.kind == "header":
            value = fields.get(found.name.lower().encode())
        else:
            if cookies is None:
                pairs = (pair.partition(b"=") for pair in _COOKIE.split(fields.get(b"cookie", b"")))
                cookies = {name: given.strip(b'"') for name, _, given in pairs}
            value = cookies.get(found.name.encode())
        if value is None:
            continue
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise Malformed(f"the {found.kind} {found.name} is not UTF-8") from None
        if found.is_date:
            text = _date(text)
        for part in filter(None, map(str.strip, text.split(","))) if found.many else (text.strip(),):
            yield found.field, part


def _date(text: str) -> str:
    """Return a time of HTTP (RFC 9110, section 5.6.7), which is in UTC, as JSON has it; any other text as it is."""
    try:
        found = parsedate_to_datetime(text)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).isoformat()
    except (ValueError, OverflowError):
        return text


def route_fault(method: str, path: str) -> str | None:
    """Return what is wrong with a method and path in which fields have their outside names, or None if they can be a route."""
    segments = path.split("/")[1:]
    if method not in METHODS or not path.startswith("/") or not all(map(_ANNOUNCED_SEGMENT.fullmatch, segments)):
        return _EXPECTED
    if any(segment.endswith(REST) for segment in segments[:-1]):
        return "only the last segment can match the rest of the path"
    if segments[0] in RESERVED:
        return f"/{segments[0]} is reserved by the gateway: choose another path"
    parameters = [segment for segment in segments if segment.startswith("{")]
    twice = next((parameter for parameter in parameters if parameters.count(parameter) > 1), None)
    return None if twice is None else f"{twice} occurs twice: name a different field for each parameter"


def _outside_name(where: str, route: str, message: type[Any], outside: Mapping[str, str], segment: str) -> str:
    """Return the outside name of the field that a path segment names, by this name or by its name in Python."""
    name = segment[1:-1].removesuffix(REST[:-1])
    name = name if name in outside.values() else outside.get(name, "")
    if not _NAME.fullmatch(name):
        raise DefinitionError(f"{where}: http={route!r}: {segment} is no field of {message.__name__}")
    return name


class RestDecoder:
    """Decodes one kind of message from the parts of a REST request."""

    def __init__(self, message: type[Any], binding: HttpBinding) -> None:
        info = inspect.type_info(message)
        assert isinstance(info, inspect.StructType)
        self._message = message
        inputs = tuple(found.field for found in binding.inputs)
        self._parameters = parameter_fields(message, binding.path_fields + binding.query_fields + binding.form_fields + inputs)
        self._labels = {found.field: found.name for found in binding.inputs}
        fields = [field for field in info.fields if field.encode_name in binding.body_fields]
        self._body_fields = [field.name for field in fields]
        self._needs_body = any(field.required for field in fields)
        annotations = typing.get_type_hints(message, include_extras=True)
        body = msgspec.defstruct(
            f"{message.__name__}Body",
            [_body_field(field, annotations[field.name]) for field in fields],
            kw_only=True,
            rename={field.name: field.encode_name for field in fields},
            tag=info.tag,
            tag_field=info.tag_field,
        )
        self._body = Codec(body, f"the body of {message.__name__}", int64=True)

    def __call__(self, params: Params, body: bytes) -> Any:
        """Return the message.

        Raises:
            Malformed: if the body is not JSON.
            Invalid: if the body or a parameter does not fit; every faulty parameter is named.
        """
        values: dict[str, Any] = {}
        if params or self._parameters:
            self._convert(params, values)
        if body or self._needs_body:
            decoded = self._body.decode(body)
            check_text(body, decoded, self._body.times)
            for name in self._body_fields:
                values[name] = getattr(decoded, name)
        try:
            return self._message(**values)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise Invalid((Violation("", str(error)),)) from None

    def _convert(self, params: Params, values: dict[str, Any]) -> None:
        faults: list[Violation] = []

        def note(name: str, detail: str) -> None:
            label = self._labels.get(name, name)
            faults.append(Violation(f"/{pointer_token(label)}", detail))

        given: dict[str, list[str]] = {}
        for name, text in params:
            given.setdefault(name, []).append(text)
        for name, texts in given.items():
            parameter = self._parameters.get(name)
            if parameter is None:
                note(name, "unknown parameter")
                continue
            try:
                values[parameter.field.name] = parameter.value(texts)
            except ValueError as error:
                note(name, str(error))
        if len(given) < len(self._parameters):
            for name, parameter in self._parameters.items():
                if name not in given and parameter.field.required:
                    note(name, "missing required parameter")
        if faults:
            raise Invalid(tuple(faults))


def _body_field(field: inspect.Field, annotation: Any) -> Any:
    if field.required:
        return field.name, annotation
    if field.default_factory is not msgspec.NODEFAULT:
        return field.name, annotation, msgspec.field(default_factory=field.default_factory)
    return field.name, annotation, msgspec.UNSET if field.default is msgspec.NODEFAULT else field.default


@functools.cache
def rest_decoder(spec: MessageSpec, binding: HttpBinding) -> RestDecoder:
    """Return the decoder of a kind of message. It is the same one for all instances of a service in this process."""
    return RestDecoder(spec.cls, binding)
