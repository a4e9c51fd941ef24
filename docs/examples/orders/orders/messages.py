from runtime import Contract, Event, Request, Struct

orders = Contract("orders")


class Order(Struct):
    id: str
    item: str
    state: str


@orders.message
class PlaceOrder(Request[Order]):
    """Order something."""

    item: str
    cents: int


@orders.message
class GetOrder(Request[Order]):
    """One of your orders."""

    id: str


@orders.message
class OrderPlaced(Event):
    id: str
    item: str


@orders.message
class OrderExpired(Event):
    id: str
