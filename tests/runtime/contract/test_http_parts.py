"""Fields that are bound to parts of HTTP other than JSON: what a definition may say."""

import types
from typing import Annotated, Any

import pytest

from runtime import ANYONE, Body, Context, Contract, Cookie, DefinitionError, Header, Request, Service, Struct, Upload, handles


class Inner(Struct):
    number: int


class Holder(Struct):
    file: Upload


def refused(http: str, text: str, request: Any, reply: Any = int) -> None:
    contract = Contract("faulty")
    with pytest.raises(DefinitionError, match=text):
        fields = {"__annotations__": request, "__module__": __name__}
        message = contract.message(types.new_class("Message", (Request[reply],), exec_body=lambda body: body.update(fields)))

        async def handle(self: Any, message: Any, ctx: Context) -> Any: ...

        handle.__annotations__ = {"message": message, "ctx": Context, "return": reply}
        type("Faulty", (Service,), {"contract": contract, "handle": handles(http=http, allow=ANYONE)(handle)})


class TwoBodies(Struct):
    a: Annotated[bytes, Body("image/png", "image/gif")]


@pytest.mark.parametrize(
    ("http", "text", "request_fields"),
    [
        ("GET /x", "the gateway itself reads Authorization", {"a": Annotated[str, Header("Authorization")]}),
        ("GET /x", "the gateway itself reads cookie", {"a": Annotated[str, Header("cookie")]}),
        ("GET /x", "expected a name", {"a": Annotated[str, Header("If Match")]}),
        ("GET /x", "expected a name", {"a": Annotated[str, Cookie("a\r\nb")]}),
        ("GET /x", "another field is bound", {"a": Annotated[str, Header("X-A")], "b": Annotated[str, Header("x-a")]}),
        ("GET /x", "choose one", {"a": Annotated[str, Header("X-A"), Cookie("a")]}),
        ("GET /x/{a}", "bound to another part", {"a": Annotated[str, Header("X-A")]}),
        ("GET /x", "a GET has no body", {"a": Annotated[bytes, Body("image/png")]}),
        ("DELETE /x", "a DELETE has no body", {"a": Upload}),
        ("POST /x", "a is the whole body", {"a": Annotated[bytes, Body("image/png")], "b": int}),
        ("POST /x", "bytes, str, or ByteStream", {"a": Annotated[int, Body("image/png")]}),
        ("POST /x", "expected media types", {"a": Annotated[bytes, Body()]}),
        ("POST /x", "expected media types", {"a": Annotated[bytes, Body("png")]}),
        ("GET /x", "cannot be made from", {"a": Annotated[Inner, Header("X-A")]}),
        ("GET /x/{a:path}/y", "only the last segment", {"a": str}),
        ("GET /x", "bound to the whole field", {"a": tuple[Annotated[str, Header("X-A")], ...]}),
        ("POST /x", "files are fields of the types", {"a": frozenset[Upload]}),
        ("POST /x", "files are fields of the types", {"a": Upload | str}),
        ("POST /x", "files are fields of the types", {"a": Holder}),
        ("POST /x", "the fields of a form are those of the message", {"a": Annotated[bytes, Body("multipart/form-data")]}),
        ("GET /x/{a:int}", "the type comes from the field a", {"a": int}),
    ],
)
def test_a_binding_that_cannot_work_is_refused(http: str, text: str, request_fields: dict[str, Any]) -> None:
    refused(http, text, request_fields)


class WithDate(Struct):
    a: Annotated[str, Header("Date")]


class WithNumber(Struct):
    a: Annotated[int, Cookie("a")]


class WithEtag(Struct):
    a: int
    etag: Annotated[str, Header("ETag")]


class InAnArray(Struct, array_like=True):
    etag: Annotated[str, Header("ETag")]


class WithType(Struct):
    a: int
    kind: Annotated[str, Header("Content-Type")]


class WithOrigin(Struct):
    a: Annotated[str, Header("Access-Control-Allow-Origin")]


class WithMore(Struct):
    image: Annotated[bytes, Body("image/png")]
    title: str


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (TwoBodies, "one media type"),
        (WithDate, "the gateway itself sends Date"),
        (WithNumber, "is a text"),
        (WithEtag | None, "the whole type"),
        (InAnArray, "array_like"),
        (WithType, "the body is JSON"),
        (WithOrigin, "the gateway itself sends Access-Control-Allow-Origin"),
        (WithMore, "title has no place"),
    ],
)
def test_a_reply_that_cannot_be_sent_is_refused(reply: Any, text: str) -> None:
    refused("GET /x", text, {}, reply)


@pytest.mark.parametrize("reply", [int, WithEtag])
def test_a_status_without_a_body_is_refused_for_a_reply_that_has_one(reply: Any) -> None:
    contract = Contract("faulty")
    message = contract.message(types.new_class("Message", (Request[reply],)))

    async def handle(self: Any, message: Any, ctx: Context) -> Any: ...

    handle.__annotations__ = {"message": message, "ctx": Context, "return": reply}
    with pytest.raises(DefinitionError, match="status=204"):
        members = {"contract": contract, "handle": handles(http="GET /x", status=204, allow=ANYONE)(handle)}
        type("Faulty", (Service,), members)


def test_two_routes_that_openapi_cannot_tell_apart_are_refused() -> None:
    own = Contract("faulty")

    @own.message
    class One(Request[int]):
        a: str

    @own.message
    class Rest(Request[int]):
        b: str

    with pytest.raises(DefinitionError, match="is the route of one and rest"):

        class Faulty(Service):
            contract = own

            @handles(http="GET /f/{a}", allow=ANYONE)
            async def one(self, message: One, ctx: Context) -> int:
                return 1

            @handles(http="GET /f/{b:path}", allow=ANYONE)
            async def rest(self, message: Rest, ctx: Context) -> int:
                return 2
