"""Every value that a type admits arrives equal, or the sender gets an error that names the field."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtime import Contract, Event, Request, ServiceError, Signal
from runtime.contract.errors import rebuild_error
from runtime.contract.rest import HttpBinding, RestDecoder
from tests.runtime.contract.shapes import PROPERTY, Shape, anything, define, renames, request_of, scalars, texts, to_texts


@PROPERTY
@given(st.data(), anything, anything, renames)
def test_messages_and_replies_arrive_equal(data: st.DataObject, one: Shape, other: Shape, rename: str | None) -> None:
    request = define(request_of(one.annotation), {"first_field": one.annotation, "b": other.annotation}, rename)
    for cls in (request, define(Event, request.__annotations__, rename), define(Signal, request.__annotations__, rename)):
        spec = _spec(cls)
        message = cls(data.draw(one.values), data.draw(other.values))
        assert spec.codec.decode(spec.codec.encode_checked(message)) == message
        if spec.kind == "request":
            reply = data.draw(one.values)
            assert spec.reply_codec.decode(spec.reply_codec.encode_checked(reply)) == reply


@PROPERTY
@given(st.data(), anything, scalars, renames)
def test_a_body_arrives_equal(data: st.DataObject, inside: Shape, in_path: Shape, rename: str | None) -> None:
    cls = define(Request[None], {"some_id": in_path.annotation, "some_value": inside.annotation}, rename)
    spec = _spec(cls)
    message = cls(data.draw(in_path.values), data.draw(inside.values))
    whole = HttpBinding.parse("test", "POST /things", 200, cls)
    assert RestDecoder(cls, whole)((), spec.codec.encode(message)) == message

    binding = HttpBinding.parse("test", "POST /things/{some_id}", 200, cls)
    (name,) = binding.path_fields
    body_of = define(Request[None], {"some_value": inside.annotation}, rename)
    body = _spec(body_of).codec.encode(body_of(message.some_value))
    (text,) = to_texts(message.some_id)
    assert RestDecoder(cls, binding)(((name, text),), body) == message


@PROPERTY
@given(st.data(), texts, texts, renames)
def test_a_query_arrives_equal(data: st.DataObject, one: Shape, other: Shape, rename: str | None) -> None:
    cls = define(Request[None], {"one": one.annotation, "the_other": other.annotation | None}, rename, the_other=None)
    message = cls(data.draw(one.values), data.draw(st.none() | other.values))
    binding = HttpBinding.parse("test", "GET /things", 200, cls)
    names = dict(zip(cls.__struct_fields__, binding.query_fields, strict=True))
    params = tuple(
        (names[field], text)
        for field in cls.__struct_fields__
        if (value := getattr(message, field)) is not None
        for text in to_texts(value)
    )
    if message.one in ((), frozenset()) or message.the_other in ((), frozenset()):
        return  # a URL cannot say that a collection is empty: it is then absent
    assert RestDecoder(cls, binding)(params, b"") == message


@PROPERTY
@given(st.data(), anything, anything)
def test_the_fields_of_an_error_arrive_equal(data: st.DataObject, one: Shape, other: Shape) -> None:
    annotations = {"first_field": one.annotation, "other": other.annotation}
    error_class: Any = type(
        "Failed", (ServiceError,), {"code": "failed", "status": 409, "__annotations__": annotations, "__module__": __name__}
    )
    Contract("values").message(error_class)
    error = error_class(data.draw(one.values), data.draw(other.values))
    rebuilt = rebuild_error(error.data(), lambda contract, code: error_class)
    assert type(rebuilt) is error_class
    assert rebuilt == error


def _spec(cls: Any) -> Any:
    return Contract("values").message(cls).__message__
