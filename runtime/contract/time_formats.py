"""The formats of points in time that an API asks for, such as Unix seconds, where JSON text usually has RFC 3339.

msgspec writes a `datetime` in one way only. So the JSON text of a type with such fields is rewritten: after msgspec has encoded it, and
before msgspec decodes it. Everything else in the text stays as it is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import inspect

from runtime.contract.text_forms import DATE_TIME

_NAME = "time_format"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = -62_135_596_800, 253_402_300_799
"""The Unix times of the first and the last second that a `datetime` can be."""
_DIRECTIVES = {
    "Y": "[0-9]{4}", "m": "(?:0[1-9]|1[0-2])", "d": "(?:0[1-9]|[12][0-9]|3[01])", "H": "(?:[01][0-9]|2[0-3])", "M": "[0-5][0-9]",
    "S": "[0-5][0-9]", "f": "[0-9]{6}", "z": "[+-](?:[01][0-9]|2[0-3])[0-5][0-9]", "%": "%",
}  # fmt: skip
"""The directives of `strftime` that a pattern may have, as regular expressions. None of them depends on a language."""
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
_EXAMPLE = datetime(2026, 1, 31, 12, tzinfo=UTC)
_DAYS, _MONTHS = "Mon|Tue|Wed|Thu|Fri|Sat|Sun", "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_NUMBERS: Mapping[str, int] = {name: number for number, name in enumerate(_MONTHS.split("|"), 1)}
_HTTP = f"^(?:{_DAYS}), (?:0[1-9]|[12][0-9]|3[01]) (?:{_MONTHS}) [0-9]{{4}} (?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9] GMT$"
_ISO = re.compile(DATE_TIME.pattern.removesuffix("$")).fullmatch

Schema = dict[str, Any]


class TimeFormat(NamedTuple):
    """How points in time are written.

    Attributes:
        write: returns the JSON value of a point in time.
        read: returns the point in time of a JSON value. Raises ValueError.
        schema: the JSON Schema of such values.
    """

    write: Callable[[datetime], int | str]
    read: Callable[[Any], datetime]
    schema: Schema

    @property
    def expected(self) -> str:
        """What a value has to be, for error messages."""
        return f"expected a time such as {msgspec.json.encode(self.write(_EXAMPLE)).decode()}"


class Misfit(ValueError):
    """A value in JSON text is not in the format of its field.

    Attributes:
        path: where it is: names and positions, from the outside in.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.path: list[str] = []


def time_format(form: str) -> msgspec.Meta:
    """Return the annotation of a `datetime` that is written in a format of its own, as `Annotated[datetime, time_format("unix")]`.

    It holds on every transport, in the schemas, and in paths and queries. What a format leaves out is lost on the way, such as the
    microseconds in `unix`. A time without a UTC offset cannot be written.

    Args:
        form: `unix` (seconds since 1970, an integer), `unix-ms` (milliseconds), `iso-s` and `iso-ms` (RFC 3339 in UTC, with no or three
            digits after the second), `http` (RFC 9110, section 5.6.7), or a pattern of `strftime` with the directives %Y, %m, %d,
            %H, %M, %S, %f, and %z. A pattern without %z is in UTC.

    Raises:
        ValueError: if it is none of these.
    """
    found = _FORMATS.get(form)
    if found is None:
        found = _of_pattern(form)
    return msgspec.Meta(extra={_NAME: found})


def format_of(info: inspect.Type) -> TimeFormat | None:
    """Return the format that an annotation asks for, or None."""
    extra = cast("dict[str, Any] | None", info.extra) if isinstance(info, inspect.Metadata) else None
    return None if extra is None else extra.get(_NAME)


def _of_pattern(pattern: str) -> TimeFormat:
    used = _DIRECTIVE.findall(pattern)
    if (
        not {"Y", "m", "d"} <= set(used)
        or not set(used) <= _DIRECTIVES.keys()
        or len(used) != len(set(used) - {"%"}) + used.count("%")
    ):
        raise ValueError(
            f"time_format({pattern!r}): expected unix, unix-ms, iso-s, iso-ms, http, or a pattern such as '%Y-%m-%d %H:%M:%S' with each of "
            "%Y, %m, and %d once, and of %H, %M, %S, %f, and %z at most once"
        )
    has_zone = "z" in used

    def write(value: datetime) -> str:
        value = value if has_zone else value.astimezone(UTC)
        # Linux does not pad years
        return value.strftime(_DIRECTIVE.sub(lambda found: f"{value.year:04}" if found[1] == "Y" else found[0], pattern))

    def read(value: Any) -> datetime:
        found = datetime.strptime(value, pattern)  # noqa: DTZ007  # the pattern may have a zone
        return found if has_zone else found.replace(tzinfo=UTC)

    text, at = "", 0
    for directive in _DIRECTIVE.finditer(pattern):
        text += re.escape(pattern[at : directive.start()]) + _DIRECTIVES[directive[1]]
        at = directive.end()
    return _textual(write, read, {"type": "string", "pattern": f"^{text}{re.escape(pattern[at:])}$"})


def _textual(write: Callable[[datetime], str], read: Callable[[str], datetime], schema: Schema) -> TimeFormat:
    """Return the format of texts of which each is the only one of its time."""

    def only(value: Any) -> datetime:
        if not isinstance(value, str):
            raise ValueError
        found = read(value)
        if write(found) != value:
            raise ValueError
        return found

    return TimeFormat(write, only, schema | {"examples": [write(_EXAMPLE)]})


def _unix(per_second: int, what: str) -> TimeFormat:
    unit = timedelta(seconds=1) / per_second

    def write(value: datetime) -> int:
        number = (value - _EPOCH) // unit
        if not _FIRST * per_second <= number < (_LAST + 1) * per_second:
            raise OverflowError("date value out of range")
        return number

    def read(value: Any) -> datetime:
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if type(number) is not int or not _FIRST * per_second <= number < (_LAST + 1) * per_second:
            raise ValueError
        return _EPOCH + number * unit

    bounds = {"minimum": _FIRST * per_second, "maximum": (_LAST + 1) * per_second - 1}
    description = f"{what} since 1970-01-01T00:00:00Z"
    return TimeFormat(write, read, {"type": "integer", "format": "int64", **bounds, "description": description})


def _iso(digits: int) -> TimeFormat:
    spec = "milliseconds" if digits else "seconds"

    def write(value: datetime) -> str:
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=spec) + "Z"

    def read(value: Any) -> datetime:
        if not isinstance(value, str) or not _ISO(value):
            raise ValueError
        try:
            return msgspec.convert(value, datetime)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None

    return TimeFormat(write, read, {"type": "string", "format": "date-time", "examples": [write(_EXAMPLE)]})


def _write_http(value: datetime) -> str:
    return format_datetime(value.astimezone(UTC), usegmt=True)


def _read_http(value: str) -> datetime:
    _, day, month, year, time, _ = value.split(" ")
    if month not in _NUMBERS:
        raise ValueError
    return datetime.fromisoformat(f"{year}-{_NUMBERS[month]:02}-{day}T{time}+00:00")


_FORMATS: Mapping[str, TimeFormat] = {
    "unix": _unix(1, "seconds"),
    "unix-ms": _unix(1000, "milliseconds"),
    "iso-s": _iso(0),
    "iso-ms": _iso(3),
    "http": _textual(_write_http, _read_http, {"type": "string", "pattern": _HTTP}),
}

# Rewriting JSON text

Text = bytes | msgspec.Raw
_Leaf = Callable[[TimeFormat, Text], Text]
_Step = Callable[[Text, _Leaf], Text]
"""Rewrites the part of a JSON text that is of one type."""


class TimeFields:
    """The fields of a type that are written in a format of their own. Use `time_fields` to find them."""

    def __init__(self, step: _Step) -> None:
        self._step = step

    def write(self, text: bytes) -> bytes:
        """Return JSON text with each such time in its format, from text in which msgspec has written it.

        Raises:
            Misfit: if one cannot be written in its format.
        """
        return bytes(self._step(text, _written))

    def read(self, text: bytes | str) -> bytes:
        """Return JSON text with each such time as msgspec reads it.

        Text that does not fit the type for another reason is returned as it is.

        Raises:
            Misfit: if one is not in its format.
        """
        return bytes(self._step(text.encode() if isinstance(text, str) else text, _read))


def time_fields(info: inspect.Type) -> TimeFields | None:
    """Return the fields of a type that are written in a format of their own, or None if there are none.

    Raises:
        ValueError: if something else than a point in time is annotated with a format, or a time beside values of other types.
    """
    return TimeFields(_Builder().step(info)) if _has_format(info, set()) else None


def _written(form: TimeFormat, text: Text) -> Text:
    try:
        return msgspec.json.encode(form.write(msgspec.json.decode(text, type=datetime)))
    except OverflowError:
        raise Misfit(
            f"{bytes(text).decode()} is outside of the years 1 to 9999 in UTC, and cannot be written as {form.expected[9:]}"
        ) from None


def _read(form: TimeFormat, text: Text) -> Text:
    try:
        return msgspec.json.encode(form.read(msgspec.json.decode(text)))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if not bytes(text).startswith(b'"'):
            return text  # not JSON, which the decoder says better
        raise Misfit(f"{form.expected}, got {bytes(text)[:40].decode(errors='replace')}") from None
    except (ValueError, TypeError, OverflowError):
        raise Misfit(f"{form.expected}, got {bytes(text)[:40].decode(errors='replace')}") from None


def _has_format(info: inspect.Type, seen: set[Any]) -> bool:
    if format_of(info) is not None:
        return True
    if isinstance(info, inspect.StructType):
        if info.cls in seen:
            return False
        seen.add(info.cls)
    return any(_has_format(part, seen) for part in _parts(info))


def _parts(info: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(info, inspect.Metadata):
        yield info.type
    elif isinstance(info, inspect.UnionType):
        yield from info.types
    elif isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
        yield info.item_type
    elif isinstance(info, inspect.TupleType):
        yield from info.item_types
    elif isinstance(info, inspect.StructType):
        yield from (field.type for field in info.fields)


class _Builder:
    """Builds what rewrites the text of a type from what rewrites its parts."""

    def __init__(self) -> None:
        self._structs: dict[Any, _Step] = {}

    def step(self, info: inspect.Type) -> _Step:
        """Return what rewrites the text of a type that has formats. Raises like `time_fields`."""
        form = format_of(info)
        if form is not None:
            assert isinstance(info, inspect.Metadata)
            return self._leaf(info.type, form)
        if isinstance(info, inspect.Metadata):
            return self.step(info.type)
        if isinstance(info, inspect.UnionType):
            return self._union(info)
        if isinstance(info, inspect.StructType):
            return self._struct(info)
        if isinstance(info, inspect.TupleType):
            return _array({at: self.step(part) for at, part in enumerate(info.item_types) if _has_format(part, set())})
        (item,) = _parts(info)
        return _items(self.step(item))

    def _leaf(self, info: inspect.Type, form: TimeFormat) -> _Step:
        kinds = [part for part in (info.types if isinstance(info, inspect.UnionType) else (info,)) if not _is_none(part)]
        if len(kinds) != 1 or not isinstance(kinds[0], inspect.DateTimeType) or kinds[0].tz is False:
            raise ValueError("time_format(…) annotates a datetime with a UTC offset, or one or None")
        return lambda text, leaf: text if bytes(text) == b"null" else leaf(form, text)

    def _union(self, info: inspect.UnionType) -> _Step:
        parts = [part for part in info.types if not _is_none(part)]
        if len(parts) == 1:
            step = self.step(parts[0])
            return lambda text, leaf: text if bytes(text) == b"null" else step(text, leaf)
        structs = [part for part in parts if isinstance(part, inspect.StructType)]
        if any(_has_format(part, set()) for part in parts if not isinstance(part, inspect.StructType)):
            raise ValueError("a time with time_format(…) cannot be beside values of other types: only None may be")
        steps = {part.tag: self.step(part) for part in structs if _has_format(part, set())}
        field = next((part.tag_field for part in structs if part.tag_field is not None), None)
        is_array = any(part.array_like for part in structs)
        if field is None:
            (step,) = steps.values()
            return step

        def rewrite(text: Text, leaf: _Leaf) -> Text:
            given: Any = _decoded(text, list[msgspec.Raw] if is_array else dict[str, msgspec.Raw])
            raw = None if not given else given[0] if is_array else given.get(field)
            tag: Any = None if raw is None else msgspec.json.decode(raw)
            step = steps.get(tag) if isinstance(tag, str | int) else None
            return text if step is None else step(text, leaf)

        return rewrite

    def _struct(self, info: inspect.StructType) -> _Step:
        if info.cls in self._structs:
            return self._structs[info.cls]
        self._structs[info.cls] = partial(self._later, info.cls)  # what a recursive type finds
        steps = [(field, self._field(info, field)) for field in info.fields if _has_format(field.type, set())]
        if info.array_like:
            first = 0 if info.tag is None else 1
            positions = {field.name: at for at, field in enumerate(info.fields, first)}
            made = _array({positions[field.name]: step for field, step in steps})
        else:
            made = _object({field.encode_name: step for field, step in steps})
        self._structs[info.cls] = made
        return made

    def _later(self, cls: Any, text: Text, leaf: _Leaf) -> Text:
        return self._structs[cls](text, leaf)

    def _field(self, info: inspect.StructType, field: inspect.Field) -> _Step:
        try:
            return self.step(field.type)
        except ValueError as error:
            raise ValueError(f"{getattr(info.cls, '__name__', info.cls)}.{field.name}: {error}") from None


def _is_none(info: inspect.Type) -> bool:
    return isinstance(info, inspect.NoneType)


def _decoded(text: Text, tp: Any) -> Any:
    """Return the parts of a JSON text, or None if it is something else, which the decoder says better."""
    try:
        return msgspec.json.decode(text, type=tp)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _part(step: _Step, text: Text, leaf: _Leaf, name: str) -> msgspec.Raw:
    try:
        return msgspec.Raw(bytes(step(text, leaf)))
    except Misfit as misfit:
        misfit.path.insert(0, name)
        raise


def _object(steps: Mapping[str, _Step]) -> _Step:
    def rewrite(text: Text, leaf: _Leaf) -> Text:
        given: dict[str, msgspec.Raw] | None = _decoded(text, dict[str, msgspec.Raw])
        if given is None:
            return text
        for name in given.keys() & steps.keys():
            given[name] = _part(steps[name], given[name], leaf, name)
        return msgspec.json.encode(given)

    return rewrite


def _array(steps: Mapping[int, _Step]) -> _Step:
    def rewrite(text: Text, leaf: _Leaf) -> Text:
        given: list[msgspec.Raw] | None = _decoded(text, list[msgspec.Raw])
        if given is None:
            return text
        for at, step in steps.items():
            if at < len(given):
                given[at] = _part(step, given[at], leaf, str(at))
        return msgspec.json.encode(given)

    return rewrite


def _items(step: _Step) -> _Step:
    def rewrite(text: Text, leaf: _Leaf) -> Text:
        given: list[msgspec.Raw] | None = _decoded(text, list[msgspec.Raw])
        if given is None:
            return text
        return msgspec.json.encode([_part(step, item, leaf, str(at)) for at, item in enumerate(given)])

    return rewrite
