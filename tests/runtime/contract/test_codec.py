"""What JSON text cannot carry unchanged is refused with the name of the field: at the sender, and from a stranger."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from runtime import Contract, Event, Invalid, Malformed, Request, ServiceError, Signal, Struct, UsageError
from runtime.contract.messages import spec_of
from runtime.contract.rest import HttpBinding, RestDecoder
from tests.runtime.contract.shapes import Page, Tree, define, request_of
from tests.runtime.definitions import assert_refused

WITH_SECONDS = timezone(timedelta(hours=1, seconds=30))
UNSENDABLE = [
    (float, float("nan"), "NaN"),
    (float | None, float("inf"), "infinities"),
    (Decimal, Decimal("NaN"), "NaN"),
    (Decimal | None, Decimal("-Infinity"), "infinities"),
    (datetime, datetime(2026, 1, 1), "UTC offset"),  # noqa: DTZ001
    (datetime | None, datetime(2026, 1, 1), "UTC offset"),  # noqa: DTZ001
    (datetime, datetime(2026, 1, 1, tzinfo=WITH_SECONDS), "whole minutes"),
    (tuple[float, ...], (1.0, float("nan")), "NaN"),
    (tuple[int, Decimal], (1, Decimal("sNaN")), "NaN"),
    (frozenset[float], frozenset([float("inf")]), "infinities"),
    (str, "\ud800", "surrogates"),
]


@pytest.mark.parametrize(("tp", "value", "reason"), UNSENDABLE, ids=lambda case: str(case)[:20])
def test_the_sender_gets_an_error_that_names_the_field(tp: Any, value: Any, reason: str) -> None:
    inner: Any = define(Struct, {"some_part": tp}, "camel")
    for base in (request_of(None), Event, Signal):
        cls = define(base, {"outer": inner})
        Contract("shop").message(cls)
        with pytest.raises(UsageError, match=rf"shop.Generated: /outer/somePart.*{reason}"):
            spec_of(cls).codec.encode(cls(inner(value)))


@pytest.mark.parametrize("wrong", ["text", None, 1.5])
def test_a_value_of_the_wrong_type_is_not_published(wrong: Any) -> None:
    cls = define(Event, {"count": int})
    Contract("shop").message(cls)
    with pytest.raises(UsageError, match=r"shop\.Generated: /count"):
        spec_of(cls).codec.encode_checked(cls(wrong))


@pytest.mark.parametrize(
    ("tp", "text", "reason"),
    [
        (datetime, '"2026-01-01T00:00:00"', "UTC offset"), (datetime | None, '"2026-01-01 00:00:00"', "UTC offset"), (Decimal, '"NaN"', "NaN"),
        (Decimal, '"sNaN"', "NaN"), (Decimal, '"Infinity"', "infinities"), (tuple[datetime, ...], '["2026-01-01T00:00:00"]', "UTC offset"),
    ],
)  # fmt: skip
def test_a_stranger_gets_an_error_that_names_the_field(tp: Any, text: str, reason: str) -> None:
    cls = define(request_of(None), {"partOf": tp})
    Contract("shop").message(cls)
    whole = f'{{"partOf":{text}}}'.encode()
    for decode in (
        spec_of(cls).codec.decode,
        lambda body: RestDecoder(cls, HttpBinding.parse("x", "POST /x", 200, cls))((), body),
    ):
        with pytest.raises(Invalid) as refused:
            decode(whole)
        (violation,) = refused.value.violations
        assert violation.pointer.startswith("/partOf")
        assert reason in violation.detail


@pytest.mark.parametrize(
    ("annotation", "query"),
    [
        (Decimal, "NaN"), (Decimal, "Infinity"), (datetime, "2026-01-01T00:00:00"), (Annotated[datetime, Meta(tz=False)], "2026-01-01T00:00:00Z"),
        (Annotated[tuple[int, ...], Meta(max_length=1)], "1 2"), (Annotated[frozenset[str], Meta(min_length=2)], "a"),
        (Annotated[str, Meta(pattern="^a$")], "b"), (int, "9223372036854775808"), (Annotated[tuple[int, ...], Meta(min_length=3)], "1 2"),
    ],
)  # fmt: skip
def test_a_query_has_the_constraints_of_its_types(annotation: Any, query: str) -> None:
    cls = define(request_of(None), {"part": annotation})
    decode = RestDecoder(cls, HttpBinding.parse("x", "GET /x", 200, cls))
    with pytest.raises(Invalid) as refused:
        decode(tuple(("part", text) for text in query.split(" ")), b"")
    assert [violation.pointer for violation in refused.value.violations] == ["/part"]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
@pytest.mark.parametrize("tp", [int, int | None, tuple[int, ...]])
def test_an_integer_of_more_than_64_bits_is_refused_unless_the_type_can_hold_it(tp: Any, number: int) -> None:
    cls = define(request_of(None), {"part": tp})
    decode = RestDecoder(cls, HttpBinding.parse("x", "POST /x", 200, cls))
    body = f'{{"part":{[number] if tp == tuple[int, ...] else number}}}'.encode()
    with pytest.raises(Invalid, match="/part") as refused:
        decode((), body)
    assert "64 bits" in refused.value.explained()
    large = define(request_of(None), {"part": Decimal, "other": float, "either": int | float})
    decode = RestDecoder(large, HttpBinding.parse("x", "POST /x", 200, large))
    got = decode((), f'{{"part":"{number}","other":{number},"either":{number}}}'.encode())
    assert (got.part, got.other, got.either) == (Decimal(number), float(number), number)


@pytest.mark.parametrize("body", [b'{"a":1,"a":2}', b'{"a":1,"inner":{"b":1,"b":1}}', b'{"a":1,"\\u0061":1}'])
def test_an_object_with_one_name_twice_is_malformed(body: bytes) -> None:
    inner: Any = define(Struct, {"b": int})
    cls = define(request_of(None), {"a": int, "inner": inner | None}, inner=None)
    with pytest.raises(Malformed, match="twice"):
        RestDecoder(cls, HttpBinding.parse("x", "POST /x", 200, cls))((), body)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"tree":{"name":"a"},"x":1}', "/x"), (b'{"tree":{"name":"a","x/y":1}}', "/tree/x~1y"),
        (b'{"tree":{"name":"a","children":[{"name":"b"},{"name":"c","parent":{"name":"d","x":1}}]}}', "/tree/children/1/parent/x"),
        (b'{"tree":{"name":"a"},"page":{"items":[{"name":"b","x":1}]}}', "/page/items/0/x"),
    ],
)  # fmt: skip
def test_an_unknown_field_is_named_at_any_depth(body: bytes, pointer: str) -> None:
    cls = define(request_of(None), {"tree": Tree, "page": Page[Tree] | None}, page=None)
    with pytest.raises(Invalid) as refused:
        RestDecoder(cls, HttpBinding.parse("x", "POST /x", 200, cls))((), body)
    assert [violation.pointer for violation in refused.value.violations] == [pointer]


@pytest.mark.parametrize("depth", [500, 5_000, 50_000])
def test_a_body_of_any_depth_is_read_or_refused(depth: int) -> None:
    cls = define(request_of(None), {"tree": Tree})
    decode = RestDecoder(cls, HttpBinding.parse("x", "POST /x", 200, cls))
    body = b'{"tree":' + b'{"name":"a","parent":' * depth + b"null" + b"}" * depth + b"}"
    try:
        decode((), body)
    except Malformed as refused:
        assert "nested too deeply" in refused.detail  # noqa: PT017  # a shallow one is read


def test_missing_and_null_differ_where_a_field_may_be_unset() -> None:
    cls = define(request_of(None), {"id": str, "name": str | msgspec.UnsetType | None}, name=msgspec.UNSET)
    decode = RestDecoder(cls, HttpBinding.parse("x", "PATCH /users/{id}", 200, cls))
    path = (("id", "1"),)
    assert decode(path, b"{}").name is msgspec.UNSET
    assert decode(path, b'{"name":null}').name is None
    assert decode(path, b'{"name":"a"}').name == "a"


def test_an_empty_body_is_enough_where_every_field_has_a_default() -> None:
    cls = define(request_of(None), {"note": str, "count": int}, note="none", count=3)
    decode = RestDecoder(cls, HttpBinding.parse("x", "POST /x", 200, cls))
    assert decode((), b"") == cls() == decode((), b"{}")
    needs = define(request_of(None), {"note": str})
    with pytest.raises(Malformed, match="empty"):
        RestDecoder(needs, HttpBinding.parse("x", "POST /x", 200, needs))((), b"")


def test_names_outside_are_those_of_rename() -> None:
    cls = define(request_of(None), {"ride_id": str, "ends_at": datetime}, "camel")
    for route in ("POST /rides/{ride_id}/end", "POST /rides/{rideId}/end"):
        binding = HttpBinding.parse("x", route, 200, cls)
        assert (binding.path, binding.path_fields, binding.body_fields) == ("/rides/{rideId}/end", ("rideId",), ("endsAt",))
    decode = RestDecoder(cls, binding)
    assert decode((("rideId", "1"),), b'{"endsAt":"2026-01-01T00:00:00Z"}') == cls("1", datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(Invalid, match="/endsAt"):
        decode((("rideId", "1"),), b"{}")
    with pytest.raises(Invalid, match="/ends_at"):
        decode((("rideId", "1"),), b'{"endsAt":"2026-01-01T00:00:00Z","ends_at":1}')


@pytest.mark.parametrize(
    ("tp", "remedy"),
    [(Annotated[Decimal, Meta(ge=0)], "__post_init__"), (Annotated[int, Meta(le=2**64)], "int64"), (str | bytes, "str-like")],
)
def test_a_type_that_msgspec_refuses_is_named_with_its_field(tp: Any, remedy: str) -> None:
    def definition(base: Any) -> Callable[[], object]:
        return lambda: Contract("shop").message(define(base, {"right": int, "wrong": tp}))

    for base in (request_of(None), Event, Signal):
        assert_refused(definition(base), "Generated.wrong", remedy)


def test_the_fields_of_an_error_keep_inherited_defaults() -> None:
    class Refused(ServiceError):
        code, status = "refused", 409
        reason: str
        tries: int = 3

    class RefusedLater(Refused):
        code = "refused-later"
        wait: int = 5

    error = RefusedLater("full")
    assert (error.reason, error.tries, error.wait) == ("full", 3, 5)


TAKEN = [
    "title",
    "type",
    "status",
    "code",
    "data",
    "contract",
    "request_id",
    "errors",
    "instance",
    "retryable",
    "maybe_delivered",
    "args",
    "add_note",
    "fields",
]


@pytest.mark.parametrize("name", TAKEN)
def test_a_field_of_an_error_cannot_have_a_name_that_means_something_else(name: str) -> None:
    assert_refused(
        lambda: type("Bad", (ServiceError,), {"code": "x", "status": 409, "__annotations__": {name: int}, "__module__": "shop"}),
        f"Bad.{name}",
    )


def test_an_error_that_would_not_arrive_as_itself_is_refused() -> None:
    class Renamed(ServiceError):
        code, status = "renamed", 409
        reason: str

    class Own(ServiceError):
        code, status = "own", 409
        reason: str

        def __init__(self) -> None:
            super().__init__("fixed")

    Contract("shop").message(Renamed)
    assert_refused(lambda: Contract("bank").message(Renamed), "bank.Renamed", "contract shop already")
    assert_refused(lambda: Contract("shop").message(Own), "shop.Own", "__init__")
    for code in ("", "a b", "a\nb", "ü"):
        bad = type("Bad", (ServiceError,), {"code": code, "status": 409, "__module__": "shop"})
        assert_refused(lambda: Contract("shop").message(bad), "shop.Bad", "code=")  # noqa: B023  # called at once
    annotations = {"reason": str}
    named = {
        "code": "x",
        "status": 409,
        "__annotations__": annotations,
        "__module__": "shop",
        "reason": msgspec.field(name="title"),
    }
    assert_refused(lambda: type("Bad", (ServiceError,), named), "Bad.reason")


def test_a_request_with_a_route_needs_named_fields() -> None:
    class Bad(Request[None], array_like=True):
        part: int

    assert_refused(lambda: HttpBinding.parse("Shop.buy", "POST /x", 200, Bad), "Shop.buy", "array_like")
    many = define(request_of(None), {"ids": tuple[int, ...]})
    assert_refused(lambda: HttpBinding.parse("Shop.buy", "GET /x/{ids}", 200, many), "{ids} is a collection")
