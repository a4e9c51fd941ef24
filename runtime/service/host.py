"""The host: the running instance, as its service and the contexts of its handlers see it."""

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.clock import Clock, Random
from runtime.contract.byte_stream import ByteStream
from runtime.contract.messages import Contract, Request, Signal
from runtime.network.envelope import Address
from runtime.tracing import Tracing

if TYPE_CHECKING:
    from runtime.service.context import Context, Registered

T = TypeVar("T")

LocalCall = Callable[["Context", Request[Any]], Coroutine[Any, Any, Any]]
"""Makes a request to an instance in this process, given the caller's context and the message."""


class Host(ABC):
    """One running instance, as its service and the contexts of its handlers see it.

    Attributes:
        name: the name of the service.
        address: the service and the node.
        clock: the node's clock.
        random: the node's random values.
        log: the service's logger.
        takes_requests: whether other services can call this instance, so that a cycle of calls is possible.
        request_timeout: how long a request may take whose caller has no deadline, in seconds.
        tracing: begins spans; None if there are none.
        local_calls: the ways to handlers in this process, by the class of the request.
    """

    name: str
    address: Address
    clock: Clock
    random: Random
    log: logging.Logger
    takes_requests: bool
    request_timeout: float
    local_calls: dict[type[Any], LocalCall]
    tracing: Tracing | None

    @abstractmethod
    def request(self, ctx: "Context", message: Any, timeout: float | None, key: str | None) -> Coroutine[Any, Any, Any]:
        """Make a request for a handler. Raises like `Context.request`."""

    @abstractmethod
    def note_compensations(self, registered: "Registered") -> None:
        """Remember the compensations of a handler that has registered its first one."""

    @abstractmethod
    def require_publishable(self, signal: Signal) -> None:
        """Check a signal that is published later. Raises UsageError if it cannot be."""

    @abstractmethod
    async def publish(self, ctx: "Context", signal: Signal) -> None:
        """Publish a signal now."""

    @abstractmethod
    async def caught_up(self, ctx: "Context", contract: Contract) -> bool:
        """Return whether this service has applied every event that the contract's service had committed."""

    @abstractmethod
    def offer(self, ctx: "Context", chunks: AsyncIterable[bytes], size: int | None) -> ByteStream:
        """Offer a stream of bytes, to the caller or to whom a request with it goes."""

    @abstractmethod
    def read(self, ctx: "Context", stream: ByteStream) -> AsyncGenerator[bytes, None]:
        """Read a stream of bytes. Raises like `Context.read`."""

    @abstractmethod
    def new_id(self) -> str:
        """Return an id for a message."""

    @abstractmethod
    def new_trace(self) -> str:
        """Return a new W3C `traceparent`."""


class Work(ABC):
    """What a handler with a transaction has under way."""

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether the transaction has run a statement."""

    @abstractmethod
    def key_for(self, request: str) -> str | None:
        """Return the idempotency key of the handler's next call of `request`, or None if nothing determines it."""

    @abstractmethod
    def publish(self, signal: Signal) -> None:
        """Publish a signal after the commit."""

    @abstractmethod
    def track(self, name: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return a coroutine that does `work`, and that has to be awaited before the commit. Its name is for errors."""
