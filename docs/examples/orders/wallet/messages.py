from runtime import Contract, Event, Request, ServiceError, Struct

wallet = Contract("wallet")


class Held(Struct):
    id: str


@wallet.message
class Hold(Request[Held]):
    """Set money aside."""

    user: str
    cents: int


@wallet.message
class Paid(Event):
    order_id: str


@wallet.message
class TooLittle(ServiceError):
    """There is not enough money."""

    code, status = "too-little", 402
