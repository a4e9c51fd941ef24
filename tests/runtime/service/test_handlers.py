"""Errors in the definition of a handler are found when its class is defined, and name the remedy."""

from runtime import ANYONE, Context, Contract, Request, Service, Transaction, every, handles, subscribes
from tests.runtime.definitions import Bell, Buy, Item, Sold, assert_refused, shop


class Unregistered(Request[int]):
    id: str


def test_a_handler_must_state_who_may_call_it() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles()
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "allow=roles('rider')")


def test_a_handler_needs_an_annotation_for_its_message() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message, ctx: Context) -> Item:  # type: ignore[no-untyped-def]
                return Item("")

        return Bad

    assert_refused(define, "Bad.buy", "'message' has no annotation")


def test_a_handler_needs_a_reply_annotation() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message: Buy, ctx: Context): ...  # type: ignore[no-untyped-def]

        return Bad

    assert_refused(define, "Bad.buy", "-> Item")


def test_the_reply_annotation_must_match_the_request() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message: Buy, ctx: Context) -> str: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "returns str", "answered by Item")


def test_a_handler_must_be_a_coroutine_function() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)  # type: ignore[type-var]
            def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "async def")


def test_a_handler_needs_the_expected_parameters() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def buy(self, message: Buy) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "(self, message: SomeMessage, ctx: Context)")


def test_a_handled_message_must_belong_to_a_contract() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE)
            async def look(self, message: Unregistered, ctx: Context) -> int: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.look", "Unregistered belongs to no contract", "@contract.message")


def test_an_event_handler_needs_a_transaction() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @subscribes
            async def on_sold(self, event: Sold, ctx: Context) -> None: ...

        return Bad

    assert_refused(define, "Bad.on_sold", "tx: Transaction")


def test_subscribing_to_a_request_is_refused() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @subscribes
            async def on_buy(self, event: Buy, ctx: Context) -> None: ...

        return Bad

    assert_refused(define, "Bad.on_buy", "@handles")


def test_an_event_needs_a_subscriber_and_not_a_request_handler() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @handles(allow=ANYONE)
            async def on_sold(self, event: Sold, ctx: Context) -> None: ...

        return Bad

    assert_refused(define, "Bad.on_sold", "@subscribes")


def test_only_signals_can_be_broadcast() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @subscribes(broadcast=True)
            async def on_sold(self, event: Sold, ctx: Context, tx: Transaction) -> None: ...

        return Bad

    assert_refused(define, "Bad.on_sold", "broadcast=True is for signals")


def test_once_needs_a_transaction() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, once=True)
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "once=True needs `tx: Transaction`")


def test_a_key_must_be_a_field_of_the_request() -> None:
    def define() -> object:
        class Bad(Service):
            contract = shop

            @handles(allow=ANYONE, key="colour")
            async def buy(self, message: Buy, ctx: Context) -> Item: ...  # type: ignore[empty-body]

        return Bad

    assert_refused(define, "Bad.buy", "key='colour'", "shop.Buy")


def test_a_timer_takes_no_message() -> None:
    def define() -> object:
        class Bad(Service):
            contract = Contract("mine")

            @every(seconds=1)
            async def tick(self, message: Bell, ctx: Context) -> None: ...

        return Bad

    assert_refused(define, "Bad.tick", "(self, ctx: Context)")
