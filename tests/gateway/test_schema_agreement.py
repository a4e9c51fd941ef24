"""The OpenAPI document and the decoder agree: what the schemas call valid is accepted, and what is accepted is valid."""

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import cache, cached_property
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from msgspec import Meta

from gateway.openapi import document
from runtime import ANYONE, Contract, ServiceError
from runtime.contract.errors import Invalid, Malformed, error_fields
from runtime.contract.rest import HttpBinding, RestDecoder
from runtime.contract.schema import Schemas
from runtime.network import ErrorInfo, Manifest, RequestInfo
from tests.runtime.contract.shapes import (
    PROPERTY,
    SCALARS,
    STRUCTS,
    Cat,
    Page,
    Renamed,
    Row,
    Shape,
    define,
    request_of,
    to_texts,
)  # fmt: skip

Json = dict[str, Any]


def _multiple_of(validator: Any, step: float, number: Any, schema: Json) -> Any:
    """Divide as the specification says. jsonschema divides floats in binary and refuses 0.07 as a multiple of 0.01."""
    divided = isinstance(number, float) and (number / step).is_integer()
    if isinstance(number, int | float) and not divided and Fraction(repr(number)) % Fraction(repr(step)):
        yield ValidationError(f"{number} is not a multiple of {step}")


_Validator = extend(Draft202012Validator, {"multipleOf": _multiple_of})
_PRICE = Annotated[float, Meta(multiple_of=0.01, ge=-1e12, le=1e12)]

EXACT = (
    *SCALARS,
    Shape(_PRICE, st.integers(-(10**9), 10**9).map(lambda cents: cents / 100)),
    Shape(Annotated[float, Meta(multiple_of=0.25)], st.integers(-999, 999).map(lambda quarters: quarters / 4)),
    Shape(Annotated[int, Meta(multiple_of=5)], st.integers(-99, 99).map(lambda number: number * 5)),
    Shape(Annotated[bytes, Meta(min_length=1, max_length=4)], st.binary(min_size=1, max_size=4)),
    Shape(Annotated[bytes, Meta(max_length=2)], st.binary(max_size=2)),
)
NESTED = (
    *STRUCTS,
    Shape(frozenset[str], st.frozensets(st.text(), max_size=3)),
    Shape(frozenset[int | float], st.frozensets(st.integers(-9, 9), max_size=3)),
    Shape(tuple[Renamed, ...], st.lists(st.builds(Renamed, st.text()), max_size=2).map(tuple)),
    Shape(tuple[int, bool], st.tuples(st.integers(0, 9), st.booleans())),
    Shape(Cat, st.builds(Cat, st.integers(0, 9))),
    Shape(tuple[Row, ...], st.lists(st.builds(Row, SCALARS[9].values, st.just(0.5)), max_size=2).map(tuple)),
    Shape(Page[_PRICE], st.builds(Page, st.just((0.07, 19.99)), st.none() | st.just(-419908320.62))),
    Shape(Literal[1, "1", None], st.sampled_from([1, "1", None])),
)


class Agreement:
    """The schemas and the decoder of a request that has one field."""

    def __init__(self, annotation: Any, route: str, default: Any = msgspec.NODEFAULT) -> None:
        fields = {} if default is msgspec.NODEFAULT else {"value": default}
        cls = define(request_of(annotation), {"value": annotation}, None, **fields)
        spec = Contract("agree").message(cls).__message__
        binding = HttpBinding.parse("agree", route, 200, cls)
        schemas = Schemas("agree")
        info = RequestInfo(
            "agree.Generated", ANYONE, binding, request=schemas.fields_of(cls), reply=schemas.of(spec.reply),
        )  # fmt: skip
        made = document("", "", [Manifest("agree", "node", "1", requests=(info,), schemas=schemas.named)])
        made = json.loads(json.dumps(made))
        method, _, path = route.partition(" ")
        self.operation: Json = made["paths"][path][method.lower()]
        self.components: Json = made["components"]
        self.decode = RestDecoder(cls, binding)
        self.reply = spec.reply_codec

    @cached_property
    def bodies(self) -> st.SearchStrategy[Any]:
        return generated(self.body, self.components)

    @cached_property
    def parameters(self) -> st.SearchStrategy[Any]:
        return generated(self.parameter, self.components)

    @cached_property
    def body(self) -> Json:
        return self._schema(self.operation["requestBody"]["content"]["application/json"]["schema"])

    @cached_property
    def answer(self) -> Json:
        return self._schema(self.operation["responses"]["200"]["content"]["application/json"]["schema"])

    @cached_property
    def parameter(self) -> Json:
        return self._schema(self.operation["parameters"][0]["schema"])

    def _schema(self, schema: Json) -> Json:
        return {**schema, "components": self.components}

    def accepts(self, body: Any) -> bool:
        return _accepted(lambda: self.decode((), json.dumps(body).encode()))


def _accepted(decode: Callable[[], Any]) -> bool:
    try:
        decode()
    except (Invalid, Malformed):
        return False
    return True


def valid(schema: Json, value: Any) -> bool:
    found: bool = _Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).is_valid(value)
    return found


@cache
def agreement(index: int, route: str = "POST /things") -> Agreement:
    return Agreement((*EXACT, *NESTED)[index].annotation, route)


def generated(schema: Json, components: Json) -> st.SearchStrategy[Any]:
    """Return a strategy of the values that a schema admits, as hypothesis-jsonschema generates them.

    It knows no `prefixItems`, and with the current Hypothesis no objects: those are composed here.
    """
    if "$ref" in schema:
        target = components["schemas"][schema["$ref"].rpartition("/")[2]]
        return st.deferred(lambda: generated(target, components))
    if "anyOf" in schema:
        return st.one_of(*(generated(variant, components) for variant in schema["anyOf"]))
    if schema.get("type") == "object":
        found = {name: generated(part, components) for name, part in schema["properties"].items()}
        required = schema.get("required", ())
        optional = {name: part for name, part in found.items() if name not in required}
        return st.fixed_dictionaries({name: found[name] for name in required}, optional=optional)
    if "prefixItems" in schema:
        return st.tuples(*(generated(part, components) for part in schema["prefixItems"])).map(list)
    if schema.get("type") == "array":
        items = generated(schema["items"], components)
        unique = json.dumps if schema.get("uniqueItems") else None
        return st.lists(items, min_size=schema.get("minItems", 0), max_size=schema.get("maxItems", 3), unique_by=unique)
    return from_schema({key: value for key, value in schema.items() if key != "default"})


_ALL = range(len(EXACT) + len(NESTED))


@PROPERTY
@given(st.data(), st.sampled_from(_ALL))
def test_what_the_schema_of_a_body_generates_is_accepted(data: st.DataObject, index: int) -> None:
    found = agreement(index)
    body = data.draw(found.bodies)
    if valid(found.body, body):
        found.decode((), json.dumps(body).encode())


_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, 1.0, -0.0, 1e3, 2.5, 0.07, 0.075, -419908320.62, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**25,
    "", " ", "1", "01", "+1", "1.", ".5", " 1 ", "1_000", "NaN", "Infinity", "1e5", "1E+5", "٣", "x", "true", "null",
    "2026-01-31", "2026-02-30", "2026-1-1", "20260131", "0000-01-01", "2026-01-31T12:00:00Z", "2026-01-31t12:00:00z",
    "2026-01-31 12:00:00Z", "2026-01-31T12:00:00", "2026-01-31T12:00:00+0100", "2026-01-31T12:00:00+01:00", "2026-02-29T12:00:00",
    "2028-02-29T12:00:00", "2026-01-31T12:00Z", "2026-01-31T12:00:00.123456789Z", "2026-01-31T23:59:60Z", "2026-01-31T24:00:00Z",
    "2026-01-31T12:00:00+24:00", "12:00:00", "12:00", "12:00:00Z", "12:00:00z", "12:00:00.5+01:00", "24:00:00", "12:00:00 Z",
    "P1D", "-P1D", "+P1D", "p1d", "P1W", "P1Y", "P1.5D", "PT1.5H", "PT1.5S", "PT1H1M1S", "PT", "P", "P0D", "P999999999DT86399.5S",
    "00000000-0000-0000-0000-000000000000", "00000000000000000000000000000000", "00000000-0000-0000-0000-00000000000A",
    "AA==", "AB==", "AA", "AAA=", "AAAA", "AAAAAA==", "-_8=", "red", "RED", "cat",
    [], [1], [1, True], [1, True, 1], ["a", "a"], [1, 1.0], ["2026-01-31T12:00:00Z", 0.5, 1], {}, {"type": "cat"}, {"lives": 1},
    {"type": "cat", "lives": 1}, {"type": "dog", "name": "a", "weight": 1.5}, {"type": "dog", "name": "a", "weight": "1.5"},
    {"scooterId": "a", "endsAt": ""}, {"scooterId": "a", "notGiven": None}, {"name": "a", "children": [{"name": 1}]},
)  # fmt: skip
"""JSON values that some decoder accepts and another refuses for some type."""


def _mutated(data: st.DataObject, tree: Any) -> Any:
    """Return a JSON value with one part replaced, removed, added, or written otherwise."""
    if isinstance(tree, dict | list) and tree and data.draw(st.integers(0, 3)):
        at = data.draw(st.sampled_from(sorted(tree) if isinstance(tree, dict) else range(len(tree))))
        changed: Any = tree.copy()
        changed[at] = _mutated(data, tree[at])
        return changed
    match data.draw(st.sampled_from(["replace", "replace", "less", "more", "text"])), tree:
        case "less", dict() if tree:
            return dict(list(tree.items())[1:])
        case "less", list() if tree:
            return tree[1:]
        case "more", dict():
            return {**tree, "unknown": 1}
        case "more", list() if tree:
            return [*tree, tree[0]]
        case "text", bool() | None:
            return str(tree).lower()
        case "text", int() if abs(tree) < 2**53:
            return float(tree)
        case "text", float() if tree.is_integer():
            return int(tree)
        case "text", str() if tree:
            return data.draw(
                st.sampled_from([tree.upper(), tree.lower(), tree[:-1], f"{tree} ", f"{tree}0", f"0{tree}", f"-{tree}"])
            )
    return data.draw(st.sampled_from(_ODD))


@PROPERTY
@given(st.data(), st.sampled_from(_ALL))
def test_a_changed_body_is_accepted_if_it_is_valid(data: st.DataObject, index: int) -> None:
    found = agreement(index)
    value = data.draw((*EXACT, *NESTED)[index].values)
    body = {"value": json.loads(msgspec.json.encode(value))}
    assert found.accepts(body)
    assert valid(found.body, body)
    changed = _mutated(data, body)
    assert found.accepts(changed) == valid(found.body, changed), changed


def test_every_odd_value_is_accepted_if_it_is_valid() -> None:
    for index in _ALL:
        found = agreement(index)
        for odd in _ODD:
            assert found.accepts({"value": odd}) == valid(found.body, {"value": odd}), (found.body, odd)


@PROPERTY
@given(st.data(), st.sampled_from(_ALL))
def test_replies_are_valid(data: st.DataObject, index: int) -> None:
    found = agreement(index)
    value = data.draw((*EXACT, *NESTED)[index].values)
    reply = json.loads(found.reply.encode(value))
    assert valid(found.answer, reply), reply


@cache
def _parameter(index: int, route: str, many: bool) -> Agreement:
    annotation = EXACT[index].annotation
    return Agreement(frozenset[annotation] if many else annotation, route)  # type: ignore[valid-type]


@PROPERTY
@given(st.data(), st.sampled_from(range(len(EXACT))), st.sampled_from(["GET /things", "GET /things/{value}", "many"]))
def test_parameters_are_accepted_if_they_are_valid(data: st.DataObject, index: int, route: str) -> None:
    many = route == "many"
    found = _parameter(index, "GET /things" if many else route, many)
    value = data.draw(found.parameters | st.sampled_from(_ODD if not many else [[odd, odd] for odd in _ODD]))
    if value is None or isinstance(value, dict) or (not many and isinstance(value, list)) or value == []:
        return  # a URL cannot say it
    items: list[Any] = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) or item is None or item == "" for item in items):
        return
    texts = [text for item in items for text in to_texts(item)]
    accepted = _accepted(lambda: found.decode(tuple(("value", text) for text in texts), b""))
    # A text in a URL has no type: it is valid if one of the JSON values that it may mean is
    meant = [texts, [*map(_as_json, texts)], *([] if any(isinstance(item, float) for item in items) else [items])]
    assert accepted == any(valid(found.parameter, one if many else one[0]) for one in meant), (texts, found.parameter)


def _as_json(text: str) -> Any:
    """Return the JSON value that a parameter stands for. `1.0` is a number there and no integer, unlike in a body."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=str) if text == text.strip() else text
    except ValueError:
        return text


@pytest.mark.parametrize(
    ("annotation", "value", "accepted"),
    [
        (int, 1.0, True),
        (int, 1.5, False),
        (_PRICE, 0.07, True),
        (_PRICE, 19.99, True),
        (_PRICE, -419908320.62, True),
        (_PRICE, 0.075, False),
        (Decimal, "", False),
        (Decimal, "1_000", False),
        (Decimal, 1.5, False),
        (UUID, "0" * 32, False),
        (frozenset[str], ["a", "a"], False),
        (frozenset[Decimal], ["1.0", "1.00"], True),
    ],
)
def test_values_on_the_border(annotation: Any, value: Any, accepted: bool) -> None:
    found = Agreement(annotation, "POST /things")
    assert found.accepts({"value": value}) is accepted
    assert valid(found.body, {"value": value}) is accepted


def test_an_error_is_valid_by_its_schema() -> None:
    error: Any = type(
        "Odd",
        (ServiceError,),
        {"code": "very-odd", "status": 409, "__annotations__": {"price": _PRICE, "at": Decimal}, "__module__": __name__},
    )
    Contract("agree").message(error)
    schemas = Schemas("agree")
    info = ErrorInfo("agree.very-odd", 409, "Odd", schemas.fields_of(error_fields(error)))
    cls = define(request_of(None), {"value": int})
    request = RequestInfo(
        "agree.Generated",
        ANYONE,
        HttpBinding("POST", "/things", 200, (), (), ("value",)),
        request=schemas.fields_of(cls),
        errors=(info,),
    )
    made: Json = document("", "", [Manifest("agree", "node", "1", requests=(request,), schemas=schemas.named)])
    schema = {"$ref": "#/components/schemas/agree.VeryOddError", "components": made["components"]}
    problem = {
        "type": "urn:callboard:agree:very-odd", "code": "very-odd", "title": "Odd", "status": 409, "request_id": "1", "retryable": False,
        **json.loads(msgspec.json.encode(error(19.99, Decimal("1.50")).shadow())),
    }  # fmt: skip
    assert valid(schema, problem)
    assert not valid(schema, {**problem, "code": "odd"})
    assert not valid(schema, {**problem, "price": 0.075})
