"""The quick way between two instances on one node, for handlers that need no transaction, key or user.

`Context.request` walks it inline: the handler runs in the caller's own task, its first step without any timer; the
deadline's timer is armed only if it waits for something.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from runtime.contract.errors import DeadlineExceeded, KnownErrors, ServiceError, rebuild_error
from runtime.execution.endpoint import Endpoint
from runtime.execution.failures import Failures
from runtime.execution.mailbox import Mailbox
from runtime.service.context import Context
from runtime.tasks import Started

T = TypeVar("T")


class Target(Protocol):
    """The instance that a local route leads to."""

    name: str
    mailbox: Mailbox
    failures: Failures


class LocalRoute:
    """The way from one instance to a handler of another on the same node."""

    __slots__ = (
        "_deadlines",
        "_handler",
        "_known",
        "_place",
        "call",
        "checks_user",
        "copy_reply",
        "copy_request",
        "host",
        "mailbox",
    )

    def __init__(self, target: Target, endpoint: Endpoint, known: KnownErrors, *, zero_copy: bool, deadlines: bool) -> None:
        self.host = target
        self.mailbox = target.mailbox
        self.call: Callable[[Any, Context], Coroutine[Any, Any, Any]] = endpoint.method  # type: ignore[assignment]
        self.checks_user = not endpoint.handler.allow.anyone
        self.copy_request = None if zero_copy else endpoint.copy
        self.copy_reply = None if zero_copy else endpoint.copy_reply
        self._handler = endpoint.handler
        self._known = known
        self._place = endpoint.place
        self._deadlines = deadlines

    async def resume(self, work: Coroutine[Any, Any, Any], waits_for: Any, ctx: Context) -> Any:
        """Goes on with a handler that waits for something, until its deadline."""
        return await timed(ctx, Started(work, waits_for), self._deadlines)

    async def failed(self, error: BaseException, ctx: Context) -> BaseException:
        """What the caller gets to see of an error."""
        error = await self.host.failures.seen(error, ctx, self._place, self._handler)
        if isinstance(error, ServiceError):
            return as_seen(error, self._known, copy=self.copy_request is not None)
        return error


async def within(ctx: Context, work: Coroutine[Any, Any, T], deadlines: bool) -> T:
    """Awaits work in this task until the context's deadline. The timer is armed when it first waits for something.

    Raises:
        DeadlineExceeded: it was cancelled, because the deadline has come.
    """
    try:
        waits_for = work.send(None)
    except StopIteration as done:
        reply: T = done.value
        return reply
    return await timed(ctx, Started(work, waits_for), deadlines)


async def timed(ctx: Context, work: Awaitable[T], deadlines: bool) -> T:
    """The same for work that has begun. A context that shares its caller's deadline needs no timer: the caller's is armed."""
    if not deadlines or ctx.shares_deadline:
        return await work
    timer = asyncio.timeout_at(ctx.deadline)
    try:
        async with timer:
            return await work
    except TimeoutError:
        if not timer.expired():
            raise
        raise DeadlineExceeded(ctx.service) from None


def as_seen(error: ServiceError, known: KnownErrors, *, copy: bool) -> ServiceError:
    """A callee's error as the caller sees it: what it does not import is a `RemoteError`, as across a network."""
    if not copy and (error.contract == "callboard" or known(error.contract, error.code) is type(error)):
        return error
    return rebuild_error(error.data(), known)
