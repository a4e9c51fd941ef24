"""Errors in the definitions of messages and contracts are found at once, and name the remedy."""

from typing import Any, TypeVar

import msgspec
import pytest

from runtime import Contract, Event, Request, ServiceError, Signal, Struct
from tests.runtime.definitions import assert_refused

R = TypeVar("R")


class Mutable(msgspec.Struct):
    items: tuple[int, ...]


@pytest.mark.parametrize("name", ["", "Shop", "a/b", "a.b", "1st", "a b", "#"])
def test_a_contract_name_must_fit_topics_and_paths(name: str) -> None:
    assert_refused(lambda: Contract(name), "expected lower-case letters")


def test_the_name_of_the_runtimes_errors_is_refused() -> None:
    assert_refused(lambda: Contract("callboard"), "choose another one")


@pytest.mark.parametrize(
    "annotation", [list[int], dict[str, int], set[int], Any, bytearray, tuple[list[int], ...], Mutable, object]
)
def test_a_field_must_be_deeply_immutable(annotation: Any) -> None:
    def define() -> object:
        return Contract("x").message(type("Bad", (Event,), {"__annotations__": {"field": annotation}, "__module__": __name__}))

    assert_refused(define, "x.Bad", "field", "immutable")


def test_a_reply_must_be_deeply_immutable() -> None:
    class Bad(Request[list[int]]):
        pass

    assert_refused(lambda: Contract("x").message(Bad), "reply of x.Bad", "list")


def test_a_request_must_name_its_reply() -> None:
    class Bad(Request[R]):
        pass

    assert_refused(lambda: Contract("x").message(Bad), "Bad", "Request[None]")


def test_the_error_names_a_type_that_cannot_be_resolved() -> None:
    class Bad(Event):
        field: "Nowhere"  # type: ignore[name-defined]  # noqa: F821

    assert_refused(lambda: Contract("x").message(Bad), "Bad", "Nowhere", "module level")


def test_a_message_must_be_of_one_of_four_kinds() -> None:
    assert_refused(
        lambda: Contract("x").message(type("Plain", (Struct,), {})), "x.Plain", "Request[Reply], Event, Signal or ServiceError"
    )


def test_a_contract_refuses_two_messages_with_one_name() -> None:
    contract = Contract("x")
    contract.message(type("One", (Event,), {}))
    assert_refused(lambda: contract.message(type("One", (Event,), {})), "x.One", "twice")


def test_an_error_needs_a_code_and_a_status() -> None:
    assert_refused(lambda: Contract("x").message(type("Bad", (ServiceError,), {})), "x.Bad", "code, status")


def test_a_contract_refuses_two_errors_with_one_code() -> None:
    contract = Contract("x")
    contract.message(type("One", (ServiceError,), {"code": "one", "status": 409}))
    assert_refused(lambda: contract.message(type("Two", (ServiceError,), {"code": "one", "status": 409})), "one", "twice")


def test_the_fields_of_an_error_must_be_immutable() -> None:
    bad = type("Bad", (ServiceError,), {"code": "bad", "status": 409, "__annotations__": {"items": list[int]}})
    assert_refused(lambda: Contract("x").message(bad), "x.Bad.items", "list")


def test_the_key_of_a_signal_must_name_a_field() -> None:
    assert_refused(lambda: Contract("x").message(key="nope")(type("Bad", (Signal,), {})), "key='nope'")
