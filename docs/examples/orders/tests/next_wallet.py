"""The messages of the next version of the wallet, which has more fields."""

from runtime import Contract, Event, Request, Struct

wallet = Contract("wallet")


class Held(Struct):
    id: str
    currency: str


@wallet.message
class Hold(Request[Held]):
    user: str
    cents: int
    currency: str = "EUR"


@wallet.message
class Paid(Event):
    order_id: str
    cents: int
