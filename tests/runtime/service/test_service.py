"""Errors in the definition of a service are found when its class is defined, and name the remedy."""

from pathlib import Path

from runtime import ANYONE, Context, Contract, Node, Request, Service, handles
from tests.runtime.definitions import Buy, Item, Look, assert_refused, shop
from transports.memory import MemoryTransport


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


# Where the definition is


def line_of(text: str) -> int:
    """Return the number of the first line of this file that contains a text."""
    return next(number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def test_an_error_in_a_method_names_the_line_of_the_method() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def first_wrong(self, message: Buy, ctx: Context): ...  # type: ignore[no-untyped-def]

        return Bad

    assert_refused(define, f"test_service.py:{line_of('async def first_wrong(') - 1}: ", "annotate the reply")


def test_an_error_in_a_class_names_the_line_of_the_class() -> None:
    def define() -> object:
        class SecondWrong(Service):
            contract = shop

        return SecondWrong

    assert_refused(define, f"test_service.py:{line_of('class SecondWrong(')}: ", "SecondWrong: nobody handles")


def test_an_error_in_a_decorator_names_its_line() -> None:
    def define() -> object:
        @handles(allow=None)
        async def third_wrong(self: object, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return third_wrong

    assert_refused(define, f"test_service.py:{line_of('@handles(allow=None)')}: ", "say who may call")


def test_an_error_in_a_message_names_its_line() -> None:
    def define() -> object:
        @shop.message
        class FourthWrong(Request[None]):
            items: list[str]

        return FourthWrong

    assert_refused(define, f"test_service.py:{line_of('class FourthWrong(') - 1}: ", "FourthWrong.items")


def test_services_that_do_not_fit_together_name_the_line_of_one_of_them() -> None:
    class FifthWrong(Service):
        contract = Contract("fifth")

    place = f"test_service.py:{line_of('class FifthWrong(')}: "
    assert_refused(lambda: Node([FifthWrong, FifthWrong], MemoryTransport()), place, "two services have the contract 'fifth'")
