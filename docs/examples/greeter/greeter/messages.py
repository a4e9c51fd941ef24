from runtime import Contract, Event, Request, ServiceError, Struct

greeter = Contract("greeter")


class Greeting(Struct):  # immutable, with typed fields that are validated on arrival
    text: str
    count: int


@greeter.message
class Greet(Request[Greeting]):  # a request, with the type of its reply
    """Say hello."""

    name: str


@greeter.message
class Greeted(Event):  # a durable event
    name: str


@greeter.message
class TooRude(ServiceError):  # callers catch this very class, across processes too
    """We do not greet everybody."""

    code, status = "too-rude", 409
    name: str
