"""Times in the format that their field asks for: in JSON text, in schemas, and in errors."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec import Meta, inspect

from runtime import Contract, DefinitionError, Invalid, ServiceError, Struct, UsageError, time_format
from runtime.contract.codec import Codec
from runtime.contract.errors import rebuild_error
from runtime.contract.schema import Schemas
from runtime.contract.time_formats import format_of
from tests.runtime.contract.shapes import define, request_of

WHEN = datetime(2026, 2, 18, 3, 22, 56, 637_000, tzinfo=UTC)
FORMS = (
    "unix",
    "unix-ms",
    "iso-s",
    "iso-ms",
    "http",
    "%Y-%m-%d %H:%M:%S",
    "%d.%m.%Y %H:%M:%S.%f %z",
    "%Y%m%d",
    "100%% %Y/%m/%dT%H",
)
PRECISION = {"unix-ms": 1000, "iso-ms": 1000, "%d.%m.%Y %H:%M:%S.%f %z": 1}
"""Microseconds that a format keeps, of those that do not only keep seconds."""


class Leaf(Struct, tag="leaf"):
    at: Annotated[datetime, time_format("unix")]


class Other(Struct, tag="other"):
    at: datetime


class Row(Struct, array_like=True):
    name: str
    at: Annotated[datetime, time_format("unix-ms")] | None = None


class Deep(Struct, rename="camel"):
    plain_at: datetime
    created_at: Annotated[datetime | None, time_format("iso-ms"), Meta(description="When it was made.")] = None
    many: tuple[Annotated[datetime, time_format("unix")], ...] = ()
    pair: tuple[int, Annotated[datetime, time_format("unix")]] | None = None
    either: Leaf | Other | None = None
    rows: tuple[Row, ...] = ()
    children: "tuple[Deep, ...]" = ()
    big: int = 0


def codec(form: str) -> Codec:
    return Codec(Annotated[datetime, time_format(form)], "a time")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("unix", "1771384976"),
        ("unix-ms", "1771384976637"),
        ("iso-s", '"2026-02-18T03:22:56Z"'),
        ("iso-ms", '"2026-02-18T03:22:56.637Z"'),
        ("http", '"Wed, 18 Feb 2026 03:22:56 GMT"'),
        ("%Y-%m-%d %H:%M:%S", '"2026-02-18 03:22:56"'),
        ("%d.%m.%Y %H:%M %z", '"18.02.2026 03:22 +0000"'),
    ],
)
def test_a_time_is_written_in_its_format(form: str, text: str) -> None:
    assert codec(form).encode(WHEN).decode() == text
    assert codec(form).encode(codec(form).decode(text.encode())).decode() == text


times = st.datetimes(
    datetime(1, 1, 3),  # noqa: DTZ001  # hypothesis takes limits without a zone
    datetime(9999, 12, 29),  # noqa: DTZ001
    timezones=st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)


@given(st.sampled_from(FORMS), times)
def test_a_time_survives_up_to_the_precision_of_its_format(form: str, when: datetime) -> None:
    made = codec(form)
    text = made.encode(when)
    found = made.decode(text)
    assert made.encode(found) == text
    if "%Y%m%d" not in form and "T%H" not in form:
        assert timedelta(0) <= when - found < timedelta(microseconds=PRECISION.get(form, 1_000_000))
    schema = Schemas("x").of(Annotated[datetime, time_format(form)])
    Draft202012Validator(schema).validate(json.loads(text))


@given(
    st.sampled_from(FORMS),
    st.one_of(
        st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none(), st.booleans(), st.lists(st.none())
    ),
)
def test_anything_else_is_refused_with_an_example(form: str, value: Any) -> None:
    made = codec(form)
    try:
        found = made.decode(json.dumps(value).encode())
    except Invalid as error:
        (violation,) = error.violations
        assert (
            violation.detail.startswith("expected a time such as ")
            or form.startswith("iso")
            or "Expected `datetime`" in violation.detail
        )
    else:
        assert not isinstance(value, bool)
        assert isinstance(found, datetime)


def test_formats_reach_into_every_part_of_a_message() -> None:
    made = Codec(Deep, "deep")
    second = WHEN.replace(microsecond=0)
    value = Deep(
        WHEN,
        WHEN,
        (second, second),
        (1, second),
        Leaf(second),
        (Row("a", WHEN), Row("b")),
        (Deep(WHEN, either=Other(WHEN)),),
        2**70,
    )
    text = made.encode(value)
    found = json.loads(text)
    assert found["createdAt"] == "2026-02-18T03:22:56.637Z"
    assert found["plainAt"] == "2026-02-18T03:22:56.637000Z"
    assert found["many"] == [1771384976, 1771384976]
    assert found["pair"] == [1, 1771384976]
    assert found["either"] == {"type": "leaf", "at": 1771384976}
    assert found["rows"] == [["a", 1771384976637], ["b", None]]
    assert found["children"][0]["either"]["at"] == "2026-02-18T03:22:56.637000Z"
    assert made.decode(text) == value, "and everything else is unchanged, large numbers, too"
    assert made.encode_checked(value) == text


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        ('{"plainAt": "2026-02-18T03:22:56Z", "many": [1, "x"]}', "/many/1"),
        ('{"plainAt": "2026-02-18T03:22:56Z", "rows": [["a", "x"]]}', "/rows/0/1"),
        ('{"plainAt": "2026-02-18T03:22:56Z", "either": {"type": "leaf", "at": 1.5}}', "/either/at"),
        ('{"plainAt": "2026-02-18T03:22:56Z", "children": [{"plainAt": 1}]}', "/children/0/plainAt"),
        ('{"plainAt": "2026-02-18T03:22:56Z", "createdAt": 7}', "/createdAt"),
        ('{"plainAt": "2026-02-18T03:22:56Z", "many": 7}', "/many"),
        ('{"many": [1]}', "/plainAt"),
        ("[]", ""),
    ],
)
def test_the_field_that_does_not_fit_is_named(text: str, pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        Codec(Deep, "deep").decode(text.encode())
    assert [violation.pointer for violation in caught.value.violations] == [pointer]


@pytest.mark.parametrize("tag", ["[]", "{}", "1.5", "null", '"zz"'])
def test_a_tag_that_is_none_is_refused(tag: str) -> None:
    text = f'{{"plainAt": "2026-02-18T03:22:56Z", "either": {{"type": {tag}, "at": 5}}}}'
    with pytest.raises(Invalid):
        Codec(Deep, "deep").decode(text.encode())


@pytest.mark.parametrize(
    "text", ["     ", "Wed, 18 Foo 2026 03:22:56 GMT", "Thu, 18 Feb 2026 03:22:56 GMT", "Wed, 18 Feb 2026 03:22:56 UTC"]
)
def test_a_date_of_http_has_one_form(text: str) -> None:
    with pytest.raises(Invalid, match="expected a time such as"):
        codec("http").decode(json.dumps(text).encode())


def test_a_percent_sign_is_one() -> None:
    assert codec("%%Y %Y%m%d").encode(WHEN) == b'"%Y 20260218"'


def test_a_time_that_no_format_can_write_is_named() -> None:
    first = datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))
    for form in FORMS:
        if "%z" not in form:
            with pytest.raises(UsageError, match="outside of the years"):
                codec(form).encode(first)
    with pytest.raises(UsageError, match=r"deep: /createdAt: .*outside"):
        Codec(Deep, "deep").encode(Deep(WHEN, first))


def test_a_time_without_offset_cannot_be_sent() -> None:
    for form in FORMS:
        with pytest.raises(UsageError, match="UTC offset"):
            codec(form).encode(datetime(2026, 1, 1))  # noqa: DTZ001  # that is the fault


@pytest.mark.parametrize("pattern", ["", "seconds", "%Y", "%Y-%m-%d %A", "%Y-%m-%d %Y", "%Y-%m-%d %", "%H:%M"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected unix, unix-ms"):
        time_format(pattern)


class Wrong(Struct):
    at: Annotated[int, time_format("unix")]


class Beside(Struct):
    at: Annotated[datetime, time_format("unix")] | int


class Naive(Struct):
    at: Annotated[datetime, Meta(tz=False), time_format("unix")]


@pytest.mark.parametrize("reply", [Wrong, Beside, Naive])
def test_something_else_than_a_time_has_no_format(reply: type[Struct]) -> None:
    with pytest.raises(DefinitionError, match=rf"{reply.__name__}\.at: .*time"):
        Contract("clock").message(define(request_of(reply), {}))


def test_schemas_and_their_defaults_are_in_the_format() -> None:
    class Filter(Struct):
        since: Annotated[datetime, time_format("unix")] = datetime(1970, 1, 2, tzinfo=UTC)

    schemas = Schemas("x")
    assert schemas.fields_of(Filter)["properties"]["since"]["default"] == 86_400
    found = schemas.fields_of(Deep)["properties"]["createdAt"]
    assert found["description"] == "When it was made."
    assert found["anyOf"][1] == {"type": "null"}
    examples: Sequence[Any] = found["anyOf"][0]["examples"]
    assert examples == ["2026-01-31T12:00:00.000Z"]


def test_errors_carry_formatted_times() -> None:
    made = Contract("clock")

    @made.message
    class Closed(ServiceError):
        """The shop is closed."""

        code, status = "closed", 409
        until: Annotated[datetime, time_format("unix")]

    data = Closed(WHEN.replace(microsecond=0)).data()
    assert msgspec.json.decode(data.fields) == {"until": 1771384976}
    found = rebuild_error(data, lambda contract, code: Closed)
    assert isinstance(found, Closed)
    assert found.until == WHEN.replace(microsecond=0)
    foreign = msgspec.structs.replace(data, fields=msgspec.Raw(b'{"until":"x"}'))
    assert not isinstance(rebuild_error(foreign, lambda contract, code: Closed), Closed), "of another version"


def test_an_annotation_without_a_format_has_none() -> None:
    assert format_of(inspect.type_info(Annotated[datetime, Meta(tz=True)])) is None
    assert Codec(Other, "other").times is None
