"""Every definition error of DESIGN section 4 is found when the class is defined or the node starts, and names the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from runtime import (
    ANYONE,
    SERVICES,
    Context,
    Contract,
    DefinitionError,
    Event,
    Node,
    Request,
    Service,
    ServiceError,
    Signal,
    Struct,
    Transaction,
    every,
    handles,
    roles,
    services,
    subscribes,
)
from runtime.node.node import check_together
from transports.memory import MemoryTransport

R = TypeVar("R")

shop = Contract("shop")
other = Contract("other")


class Item(Struct):
    id: str


@shop.message
class Buy(Request[Item]):
    id: str


@shop.message
class Sold(Event):
    id: str


@shop.message
class Bell(Signal):
    id: str


@other.message
class Look(Request[int]):
    id: str


class Mutable(msgspec.Struct):
    items: tuple[int, ...]


class Unregistered(Request[int]):
    id: str


def refused(define: Callable[[], object], *parts: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        define()
    for part in parts:
        assert part in str(caught.value)


# Messages and contracts


@pytest.mark.parametrize("name", ["", "Shop", "a/b", "a.b", "1st", "a b", "#"])
def test_a_contract_name_must_fit_topics_and_paths(name: str) -> None:
    refused(lambda: Contract(name), "expected lower-case letters")


@pytest.mark.parametrize(
    "annotation", [list[int], dict[str, int], set[int], Any, bytearray, tuple[list[int], ...], Mutable, object]
)
def test_a_field_must_be_deeply_immutable(annotation: Any) -> None:
    def define() -> object:
        return Contract("x").message(type("Bad", (Event,), {"__annotations__": {"field": annotation}, "__module__": __name__}))

    refused(define, "x.Bad", "field", "immutable")


def test_a_reply_must_be_deeply_immutable() -> None:
    class Bad(Request[list[int]]):
        pass

    refused(lambda: Contract("x").message(Bad), "reply of x.Bad", "list")


def test_a_request_must_name_its_reply() -> None:
    class Bad(Request[R]):
        pass

    refused(lambda: Contract("x").message(Bad), "Bad", "Request[None]")


def test_a_type_that_cannot_be_resolved_is_named() -> None:
    class Bad(Event):
        field: "Nowhere"  # type: ignore[name-defined]  # noqa: F821

    refused(lambda: Contract("x").message(Bad), "Bad", "Nowhere", "module level")


def test_a_message_belongs_to_one_of_four_kinds() -> None:
    refused(
        lambda: Contract("x").message(type("Plain", (Struct,), {})), "x.Plain", "Request[Reply], Event, Signal or ServiceError"
    )


def test_a_name_is_defined_once() -> None:
    contract = Contract("x")
    contract.message(type("One", (Event,), {}))
    refused(lambda: contract.message(type("One", (Event,), {})), "x.One", "twice")


def test_an_error_needs_code_and_status() -> None:
    refused(lambda: Contract("x").message(type("Bad", (ServiceError,), {})), "x.Bad", "code, status")


def test_an_error_code_is_defined_once() -> None:
    contract = Contract("x")
    contract.message(type("One", (ServiceError,), {"code": "one", "status": 409}))
    refused(lambda: contract.message(type("Two", (ServiceError,), {"code": "one", "status": 409})), "one", "twice")


def test_an_error_carries_immutable_fields() -> None:
    bad = type("Bad", (ServiceError,), {"code": "bad", "status": 409, "__annotations__": {"items": list[int]}})
    refused(lambda: Contract("x").message(bad), "x.Bad.items", "list")


def test_a_key_names_a_string_field_of_a_signal() -> None:
    refused(lambda: Contract("x").message(key="nope")(type("Bad", (Signal,), {})), "key='nope'")


# Handlers


def test_a_handler_must_say_who_may_call() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles()
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "allow=roles('rider')")


def test_a_handler_without_an_annotation() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message, ctx: Context) -> Item:  # type: ignore[no-untyped-def]
                return Item("")

        return Bad

    refused(define, "Bad.buy", "'message' has no annotation")


def test_a_handler_without_a_reply_annotation() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message: Buy, ctx: Context): ...  # type: ignore[no-untyped-def]

        return Bad

    refused(define, "Bad.buy", "-> Item")


def test_a_reply_annotation_that_differs() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message: Buy, ctx: Context) -> str: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "returns str", "answered by Item")


def test_a_handler_that_is_no_coroutine_function() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)  # type: ignore[type-var]
            def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "async def")


def test_a_handler_with_other_parameters() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message: Buy) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "(self, message: SomeMessage, ctx: Context)")


def test_a_message_of_no_contract() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def look(self, message: Unregistered, ctx: Context) -> int: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.look", "Unregistered belongs to no contract", "@contract.message")


def test_a_request_handled_twice() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

            @handles(allow=ANYONE)
            async def acquire(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "shop.Buy is handled twice", "acquire", "buy")


def test_a_request_not_handled_at_all() -> None:
    refused(lambda: type("Bad", (Service,), {"contract": shop}), "Bad", "nobody handles shop.Buy", "@handles")


def test_a_request_of_another_contract() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @handles(allow=ANYONE)
            async def look(self, message: Look, ctx: Context) -> int: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.look", "other.Look belongs to the contract 'other'")


def test_an_event_handler_without_tx() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @subscribes
            async def on_sold(self, event: Sold, ctx: Context) -> None: ...

        return Bad

    refused(define, "Bad.on_sold", "tx: Transaction")


def test_subscribing_to_a_request() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @subscribes
            async def on_buy(self, event: Buy, ctx: Context) -> None: ...

        return Bad

    refused(define, "Bad.on_buy", "@handles")


def test_handling_an_event() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @handles(allow=ANYONE)
            async def on_sold(self, event: Sold, ctx: Context) -> None: ...

        return Bad

    refused(define, "Bad.on_sold", "@subscribes")


def test_a_broadcast_event() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @subscribes(broadcast=True)
            async def on_sold(self, event: Sold, ctx: Context, tx: Transaction) -> None: ...

        return Bad

    refused(define, "Bad.on_sold", "broadcast=True is for signals")


def test_once_without_tx() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, once=True)
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "once=True needs `tx: Transaction`")


def test_a_key_that_is_no_field() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, key="colour")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "key='colour'", "shop.Buy")


@pytest.mark.parametrize("route", ["POST", "FETCH /x", "POST x", "POST /a//b", "POST /a b", "POST /{Id}", "/x", "POST /a/{id}x"])
def test_a_route_that_is_none(route: str) -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, http=route)
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", repr(route), "expected e.g.")


def test_a_path_parameter_that_is_no_field() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, http="POST /items/{colour}")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "{colour} is no field of Buy")


@pytest.mark.parametrize("prefix", ["docs", "console", "live", "healthz", "readyz", "metrics", "openapi.json", ".well-known"])
def test_a_path_that_the_gateway_keeps(prefix: str) -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, http=f"POST /{prefix}/x")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "reserved by the gateway")


@pytest.mark.parametrize("allow", [SERVICES, services("rides")])
def test_a_route_that_nobody_outside_may_use(allow: Any) -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=allow, http="POST /items")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "lets only services in")


def test_a_status_without_a_route() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, status=201)
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    refused(define, "Bad.buy", "status=201 without http=")


def test_a_timer_with_a_message() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @every(seconds=1)
            async def tick(self, message: Bell, ctx: Context) -> None: ...

        return Bad

    refused(define, "Bad.tick", "(self, ctx: Context)")


@pytest.mark.parametrize("make", [roles, services])
def test_roles_and_services_need_names(make: Callable[[], object]) -> None:
    refused(make, "at least one")


def test_a_service_without_a_contract() -> None:
    refused(lambda: type("Bad", (Service,), {}), "Bad", "contract = Contract('name')")


def test_calls_must_be_contracts() -> None:
    refused(lambda: type("Bad", (Service,), {"contract": Contract("mine"), "calls": ("shop",)}), "Bad", "tuple of contracts")


# Together


class Shop(Service):
    contract = shop

    @handles(allow=ANYONE, http="POST /items/{id}")
    async def buy(self, message: Buy, ctx: Context) -> Item:
        return Item(message.id)


class Rival(Service):
    contract = other

    @handles(allow=ANYONE, http="POST /items/{id}")
    async def look(self, message: Look, ctx: Context) -> int:
        return 1


def test_a_route_taken_by_another_service() -> None:
    refused(lambda: check_together([Shop.definition, Rival.definition]), "POST /items/{id}", "taken by shop")


def test_one_service_twice_on_a_node() -> None:
    refused(lambda: check_together([Shop.definition, Shop.definition]), "two services have the contract 'shop'")


async def test_a_service_that_keeps_state_needs_a_database() -> None:
    refused(lambda: Node([Shop], MemoryTransport()), "Shop keeps state", "databases=")


async def test_a_migration_without_a_number(tmp_path: Path) -> None:
    from runtime.storage.migrations import migrate
    from runtime.storage.sqlite import SqliteDatabase

    (tmp_path / "users.sql").write_text("CREATE TABLE x (id TEXT);")
    database = SqliteDatabase(tmp_path / "x.sqlite")
    await database.open()
    try:
        with pytest.raises(DefinitionError, match="0001_create_accounts"):
            await migrate(database, tmp_path, "x")
    finally:
        await database.close()
