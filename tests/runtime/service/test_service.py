"""Errors in the definition of a service are found when its class is defined, and name the remedy."""

from runtime import ANYONE, Context, Contract, Service, handles
from tests.runtime.definitions import Buy, Item, Look, assert_refused, shop


def test_a_service_needs_a_contract() -> None:
    assert_refused(lambda: type("Bad", (Service,), {}), "Bad", "contract = Contract('name')")


def test_calls_must_be_contracts() -> None:
    assert_refused(
        lambda: type("Bad", (Service,), {"contract": Contract("mine"), "calls": ("shop",)}), "Bad", "tuple of contracts"
    )


def test_a_request_must_not_have_two_handlers() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

            @handles(allow=ANYONE)
            async def acquire(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "shop.Buy is handled twice", "acquire", "buy")


def test_every_request_of_the_contract_needs_a_handler() -> None:
    assert_refused(lambda: type("Bad", (Service,), {"contract": shop}), "Bad", "nobody handles shop.Buy", "@handles")


def test_a_service_handles_only_requests_of_its_contract() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @handles(allow=ANYONE)
            async def look(self, message: Look, ctx: Context) -> int: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.look", "other.Look belongs to the contract 'other'")
