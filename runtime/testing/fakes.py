"""Fakes of services that a test does not run."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from runtime.contract.access import ANYONE, SERVICES
from runtime.contract.errors import ServiceError
from runtime.contract.messages import Contract, Event, MessageSpec, Request, Signal
from runtime.service.context import Context
from runtime.service.handlers import handles
from runtime.service.service import Service

Answer = Callable[..., Any]
"""Returns the reply to a request, or an awaitable of it, given the message, and the context if it takes two arguments."""


class FakeService(Service):
    """The base class of fakes, which `fake` makes."""

    contract: ClassVar[Contract] = Contract("fake")
    answers: ClassVar[Mapping[type[Any], Answer]] = {}

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self.received: list[Any] = []
        """The requests that have come, in order."""

    def received_of(self, kind: type[Any]) -> list[Any]:
        """Return the requests of one class."""
        return [message for message in self.received if isinstance(message, kind)]

    async def publish(self, *messages: Event | Signal) -> None:
        """Publish events and signals of the contract, as the real service would."""
        if events := [message for message in messages if isinstance(message, Event)]:
            async with self.db.transaction() as tx:
                for event in events:
                    await tx.publish(event)
        for message in messages:
            if isinstance(message, Signal):
                await self._context.publish(message)

    async def on_start(self, ctx: Context) -> None:
        self._context = ctx

    async def answer(self, message: Any, ctx: Context) -> Any:
        """Return the reply to a request.

        Raises:
            NotFaked: if the fake has no answer to it.
        """
        self.received.append(message)
        kind: type[Any] = message.__class__
        answer = self.answers.get(kind)
        if answer is None:
            raise NotFaked(f"{self.contract.name}.{kind.__name__}")
        reply = answer(message, ctx) if _takes_context(answer) else answer(message)
        return await reply if inspect.isawaitable(reply) else reply


def _takes_context(answer: Answer) -> bool:
    """Return whether an answer has a second parameter that it needs."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(answer).parameters.values()
    return sum(found.kind in kinds and found.default is inspect.Parameter.empty for found in parameters) > 1


class NotFaked(ServiceError):
    """The fake has no answer to this request: add one to `fake(…)`."""

    contract: ClassVar[str] = "callboard"
    code: ClassVar[str] = "not-faked"
    status: ClassVar[int] = 501
    request: str


def fake(contract: Contract, answers: Mapping[type[Request[Any]], Answer] | None = None) -> type[FakeService]:
    """Return a service that stands in for another one: `fake(wallet, {Hold: lambda message: Held("h1")})`.

    Give it to the node in the place of the real service. An answer may be a function or a coroutine function, take the context as
    its second argument, and raise a `ServiceError` of the contract. A request without an answer is answered with 501.

    With a contract that the test itself defines under the same name, it is another version of the service: old and new messages
    side by side.

    Args:
        contract: the messages of the service.
        answers: what is answered to requests, by their classes.
    """
    given = dict(answers or {})
    members: dict[str, Any] = {"contract": contract, "answers": given, "__doc__": f"Stands in for {contract.name}."}
    for spec in contract.messages.values():
        if spec.kind == "request":
            members[f"answer_{spec.name}"] = _handler(spec, tuple(contract.errors.values()))
    return type(f"Fake{contract.name.title().replace('-', '')}", (FakeService,), members)


def _handler(spec: MessageSpec, errors: tuple[type[ServiceError], ...]) -> Any:
    async def handle(self: FakeService, message: Any, ctx: Context) -> Any:
        return await self.answer(message, ctx)

    handle.__name__ = f"answer_{spec.name}"
    handle.__annotations__ = {"message": spec.cls, "ctx": Context, "return": spec.reply}
    return handles(allow=ANYONE | SERVICES, idempotent=True, raises=errors)(handle)
