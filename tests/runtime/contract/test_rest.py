"""Errors in REST bindings are found when the class is defined, and name the remedy."""

from typing import Any

import pytest

from runtime import ANYONE, SERVICES, Context, Service, handles, services
from tests.runtime.definitions import Buy, Item, assert_refused, shop


@pytest.mark.parametrize("route", ["POST", "FETCH /x", "POST x", "POST /a//b", "POST /a b", "POST /{Id}", "/x", "POST /a/{id}x"])
def test_a_malformed_route_is_refused(route: str) -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, http=route)
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", repr(route), "expected e.g.")


def test_a_path_parameter_must_be_a_field_of_the_request() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, http="POST /items/{colour}")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "{colour} is no field of Buy")


def test_a_path_parameter_may_be_named_once() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, http="POST /items/{id}/parts/{id}")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "{id} occurs twice")


@pytest.mark.parametrize("prefix", ["docs", "console", "live", "healthz", "readyz", "metrics", "openapi.json", ".well-known"])
def test_a_path_that_the_gateway_reserves_is_refused(prefix: str) -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, http=f"POST /{prefix}/x")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "reserved by the gateway")


@pytest.mark.parametrize("allow", [SERVICES, services("rides")])
def test_a_route_that_only_services_may_call_is_refused(allow: Any) -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=allow, http="POST /items")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "lets only services in")


def test_a_status_without_a_route_is_refused() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, status=201)
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "status=201 without http=")
