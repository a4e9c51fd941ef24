"""The endpoint: a handler of a running instance, and the one way into it."""

import asyncio
from abc import ABC, abstractmethod
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, NoReturn

from runtime.contract.errors import CallboardError, CallCycle, DeadlineExceeded
from runtime.execution.deadlines import Deadlines
from runtime.execution.failures import Failures, HandlerAborted, name_field
from runtime.execution.mailbox import Mailbox
from runtime.metrics import Histogram
from runtime.service.context import Context
from runtime.service.host import Host
from runtime.storage.values import UnstorableValue
from runtime.tasks import SimulatedCrash
from runtime.telemetry import current
from runtime.tracing import Begun, Tracing

Call = Callable[[Any, Context], Awaitable[Any]]
"""Runs a handler with a message and its context."""


class WrongReply(CallboardError):
    """A handler returned a value that does not match its contract."""


class Endpoint(ABC):
    """A handler of a running instance.

    Every message enters through `enter`: a local call, a request from the network or the gateway, a pull of the stream,
    events, a signal, a tick of a timer, and a lifecycle hook. The subclasses only fill in its steps.

    Args:
        host: the instance.
        title: class and method, for logs.
        mailbox: the mailbox, whose slots bound how many handlers run at once.
        failures: turns what the handler raises into its outcome.
        deadlines: enforces deadlines; None under a debugger.
        measured: gets the seconds that each message has taken, with the wait for a slot.
    """

    __slots__ = (
        "call",
        "deadlines",
        "failures",
        "host",
        "key",
        "mailbox",
        "measured",
        "reply_class",
        "restricted",
        "stopwatch",
        "time_limit",
        "title",
    )

    call: Call
    """Runs the handler with a message: the method itself, or what wraps it in a transaction."""

    def __init__(
        self,
        host: Host,
        title: str,
        mailbox: Mailbox,
        failures: Failures,
        deadlines: Deadlines | None,
        measured: Histogram | None = None,
    ) -> None:
        self.host: Host = host
        self.measured: Histogram | None = measured
        self.stopwatch: Callable[[], float] = host.clock.stopwatch
        self.title: str = title
        self.mailbox: Mailbox = mailbox
        self.failures: Failures = failures
        self.key: str | None = None
        """The field of the message whose values are handled one at a time."""
        self.restricted: bool = False
        """Whether `authorize` has to be called."""
        self.reply_class: type[Any] | None = type(None)
        self.time_limit: float | None = None
        """The seconds that the handler may take from its start. Only for handlers without a waiting caller."""
        self.deadlines: Deadlines | None = deadlines

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.title} of {self.host.address}>"

    async def enter(
        self,
        ctx: Context,
        message: Any,
        decode: Callable[[Any], Any] | None = None,
        encode: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Authorize, decode, take a slot in the mailbox, run the handler until its deadline, and return its outcome.

        Nothing is decoded before the caller is authorized. The handler runs in the current task. If it raises or is
        cancelled, its compensations run first; then the outcome is raised.

        Args:
            ctx: the context of the message.
            message: the message, or what `decode` turns into one.
            decode: the decoding step; None if `message` can be passed to the handler as it is.
            encode: the encoding step, which also checks the reply; None to check only the reply's class.

        Returns:
            The reply.

        Raises:
            ServiceError: the error that the caller receives.
            CancelledError: if the caller has stopped waiting.
            Exception: of handlers that nobody calls (events, timers, hooks), what the handler raised.
        """
        began = self.stopwatch()
        tracing = self.host.tracing
        span = None if tracing is None else self.begin_span(tracing, ctx)
        parent = ctx.parent
        if ctx.unbounded or (ctx.fixed_deadline is None and parent is not None and parent.enforced):
            deadlines = None  # there is no deadline, or a caller in this task has the same one
        else:
            deadlines = self.deadlines
        if deadlines is not None:
            deadlines.start(ctx)
        mailbox = self.mailbox
        key: Hashable = None
        try:
            if self.restricted:
                await self.authorize(ctx)
            if decode is not None:
                message = decode(message)
            if self.key is None and mailbox.running < mailbox.limit:
                mailbox.running += 1
            else:
                key = await self.take_slot(ctx, message)
            try:
                if self.time_limit is not None and self.deadlines is not None:
                    deadlines = self.deadlines
                    ctx.unbounded, ctx.fixed_deadline = False, self.host.clock.monotonic() + self.time_limit
                    deadlines.start(ctx)
                reply = await self.call(message, ctx)
            finally:
                if key is None:  # `mailbox.leave`, without the call
                    mailbox.running -= 1
                    if mailbox.must_wake:
                        mailbox.wake()
                else:
                    mailbox.leave(key)
            if encode is not None:
                reply = encode(reply)
            elif reply.__class__ is not self.reply_class:
                self.check_class(reply)
        except BaseException as error:
            await self.fail(error, message, ctx, deadlines, began, span)
        if span is not None:
            span.end()
        if self.measured is not None:
            self.measured.observe(self.stopwatch() - began)
        if deadlines is not None and deadlines.unarmed.pop(ctx, None) is None:
            deadlines.stop(ctx)
        return reply

    async def enter_nested(
        self,
        ctx: Context,
        message: Any,
        decode: Callable[[Any], Any] | None = None,
        encode: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Enter in the task of another handler, whose log records name it again afterwards. Like `enter`."""
        before = current.get()
        current.set(ctx)
        try:
            return await self.enter(ctx, message, decode, encode)
        finally:
            current.set(before)

    async def fail(
        self,
        error: BaseException,
        message: Any,
        ctx: Context,
        deadlines: Deadlines | None,
        began: float,
        span: Begun | None = None,
    ) -> NoReturn:
        """Raise the outcome of a handler that has raised `error`. Raises like `enter`."""
        if self.measured is not None:
            self.measured.observe(self.stopwatch() - began)
        raised = error
        if deadlines is not None and deadlines.stop(ctx) and isinstance(error, CancelledError):
            raised = self.deadline_error()
        elif isinstance(error, UnstorableValue):
            raised = name_field(error, message)
        outcome = await self.handle_failure(raised, ctx)
        if span is not None:
            span.end(outcome, getattr(outcome, "code", ""))
        if outcome is error:
            raise error
        raise outcome from outcome.__cause__

    def begin_span(self, tracing: Tracing, ctx: Context) -> Begun | None:
        """Begin the span of a message; None if it gets none."""
        return None

    async def take_slot(self, ctx: Context, message: Any) -> Hashable:
        """Wait for a slot in the mailbox, and return the key that is held with it.

        Raises:
            Overloaded: if too many messages wait already.
            Draining: if the instance is stopping.
            CallCycle: if the slot is held by a handler that waits for this one.
        """
        key = None
        if self.key is not None:
            value = getattr(message, self.key)
            key = (self.key, value)
            ctx.held_key = f"{self.key}={value}"
        if self.mailbox.must_wait(key):
            self._refuse_cycle(ctx)
        await self.mailbox.enter(key)
        return key

    def _refuse_cycle(self, ctx: Context) -> None:
        waiting = ctx.path[:-1]
        if ctx.held_key is not None and ctx.slot in waiting:
            raise CallCycle(ctx.path)
        instance = str(self.host.address)
        if self.mailbox.concurrency == 1 and any(slot.partition("#")[0] == instance for slot in waiting):
            raise CallCycle(ctx.path)

    async def authorize(self, ctx: Context) -> None:  # noqa: B027  # most endpoints need no check
        """Check that the sender may send this message. Called if `restricted` is set; raises if not."""

    def check_class(self, reply: Any) -> None:  # noqa: B027  # only requests have replies
        """Check a reply whose class is not `reply_class`. Raises `WrongReply`."""

    def deadline_error(self) -> Exception:
        """Return the error of a handler that was cancelled at its deadline."""
        return DeadlineExceeded(self.host.name)

    @abstractmethod
    async def handle_failure(self, error: BaseException, ctx: Context) -> BaseException:
        """Run the compensations of a handler that raised `error`, and return its outcome."""


class Unattended(Endpoint):
    """The base of endpoints for handlers that nobody calls: their outcome is what the handler raised."""

    __slots__ = ()

    async def enter_in_task(self, ctx: Context, message: Any) -> Any:
        """Enter in a separate task, and return what `call` returns. What the handler does to its task, such as cancelling it, does not reach the loop that calls this.

        Raises:
            CancelledError: if the caller is cancelled.
            Exception: what the handler raised.
        """
        before = current.set(ctx)
        task = asyncio.create_task(self.enter(ctx, message))
        current.reset(before)
        try:
            return await task
        except BaseException as error:
            own = asyncio.current_task()
            if isinstance(error, Exception | SimulatedCrash) or (own is not None and own.cancelling()):
                raise
            raise HandlerAborted(f"{self.title} ended with {error!r}, although nothing cancelled it") from error

    async def handle_failure(self, error: BaseException, ctx: Context) -> BaseException:
        return error if isinstance(error, GeneratorExit) else await self.failures.compensated(error, ctx, self.title)


class TimerEndpoint(Unattended):
    """A method that runs periodically. Each tick takes a slot in the mailbox, like a message. It has no deadline.

    Attributes:
        running: the task of the last run.
    """

    __slots__ = ("running",)

    def __init__(
        self, host: Host, title: str, mailbox: Mailbox, failures: Failures, method: Callable[[Context], Awaitable[None]]
    ) -> None:
        super().__init__(host, title, mailbox, failures, None)
        self.running: asyncio.Task[Any] | None = None

        def run(_: Any, ctx: Context) -> Awaitable[None]:
            self.running = asyncio.current_task()
            return method(ctx)

        self.call: Call = run

    def begin_span(self, tracing: Tracing, ctx: Context) -> Begun | None:
        return _begin_root(tracing, self.host.name, self.title, ctx)

    async def tick(self, ctx: Context) -> None:
        """Run the method once."""
        ctx.holds_slot = True
        await self.enter_in_task(ctx, None)


class HookEndpoint(Unattended):
    """A lifecycle hook. It runs before the instance's mailbox opens or after it has closed, so it has its own mailbox."""

    __slots__ = ()

    def __init__(self, host: Host, title: str, failures: Failures, method: Callable[[Context], Awaitable[None]]) -> None:
        super().__init__(host, title, Mailbox(host.name, 1, 0), failures, None)
        self.call: Call = lambda _, ctx: method(ctx)

    def begin_span(self, tracing: Tracing, ctx: Context) -> Begun | None:
        return _begin_root(tracing, self.host.name, self.title, ctx)


def _begin_root(tracing: Tracing, service: str, title: str, ctx: Context) -> Begun | None:
    """Begin the span of work that no message has caused."""
    span = tracing.begin(service, title, "INTERNAL", None, {"code.function.name": title})
    if span is not None:
        ctx.within(span.trace)
    return span
