"""Failures of handlers: compensations, and the errors that callers receive."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast
from weakref import WeakSet

import msgspec

from runtime.contract.codec import Codec, to_json, too_large
from runtime.contract.errors import (
    CallboardError,
    DatabaseUnavailable,
    InternalError,
    Invalid,
    NotDelivered,
    RemoteError,
    ServiceError,
    UsageError,
    Violation,
    error_fields,
    is_answer,
)
from runtime.contract.json_values import pointer_token
from runtime.contract.messages import spec_of
from runtime.durable.compensations import Compensations
from runtime.execution.environment import Environment
from runtime.repeats import fault
from runtime.service.context import Context, Registered
from runtime.service.handlers import Handler
from runtime.storage.database import CommitUnknown, DatabaseError, StatementError, Superseded
from runtime.storage.values import UnstorableValue
from runtime.tasks import SimulatedCrash, finish


class HandlerAborted(CallboardError):
    """A handler raised SystemExit or KeyboardInterrupt, or a cancellation that the runtime did not send."""


def name_field(error: UnstorableValue, message: Any) -> Exception:
    """Return `Invalid` with the field of a request whose value could not be stored, or the error if it is no field's."""
    pointer = next(_pointers(message, error.value, ""), None)
    return error if pointer is None else Invalid((Violation(pointer, error.reason),))


def _pointers(part: Any, value: object, pointer: str) -> Iterator[str]:
    """Yield a pointer to each place in a message that holds a value."""
    if part is value or (type(part) is type(value) and part == value):
        yield pointer
    elif isinstance(part, msgspec.Struct):
        for name, outside in zip(part.__struct_fields__, part.__struct_encode_fields__, strict=True):
            yield from _pointers(getattr(part, name), value, f"{pointer}/{pointer_token(outside)}")
    elif isinstance(part, tuple | frozenset):
        for index, item in enumerate(cast("tuple[Any, ...]", part)):
            yield from _pointers(item, value, f"{pointer}/{index}")


def _ends_node(error: BaseException) -> bool:
    """Return whether an error, or one in a group of them, asks for the end of the process."""
    if isinstance(error, BaseExceptionGroup):
        return any(_ends_node(part) for part in cast("BaseExceptionGroup[BaseException]", error).exceptions)
    return isinstance(error, SystemExit | KeyboardInterrupt)


class Failures:
    """The failures of the handlers of one instance.

    Args:
        service: the name of the service.
        environment: the environment of its node.
        log: the service's logger.
        context: makes the context in which compensations are requested.
        compensations: stores those that nobody answers; None for a service without a database.
    """

    def __init__(
        self,
        service: str,
        environment: Environment,
        log: logging.Logger,
        context: Callable[[], Context],
        compensations: Compensations | None = None,
    ) -> None:
        self._service = service
        self._environment = environment
        self._log = log
        self._context = context
        self._compensations = compensations
        self.uncommitted: WeakSet[Registered] = WeakSet()
        """The compensations of handlers that have not committed yet."""
        self._is_cut_off = False
        self._undeclared: set[tuple[str, str]] = set()
        self._compensating = 0
        self._settled: asyncio.Event = asyncio.Event()
        self._settled.set()

    async def settled(self) -> None:
        """Wait until no compensations run."""
        await self._settled.wait()

    async def cut_off(self) -> None:
        """Store the compensations of handlers that have not ended in time, before the database is closed.

        A handler whose transaction has begun may still commit, so what it has registered is left to expire.
        """
        self._is_cut_off = True
        for registered in list(self.uncommitted):
            if registered.requests and (registered.work is None or not registered.work.begun):
                undo, registered.requests = registered.requests, []
                await self._compensate(undo)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._environment.settings.undo_timeout + 1.0):
                await self.settled()

    async def compensated(self, error: BaseException, ctx: Context, title: str) -> BaseException:
        """Run the compensations of a failed handler, and return its error.

        SystemExit and KeyboardInterrupt stop the node; they and a stray cancellation become `HandlerAborted`, so that none
        of them ends a loop of the runtime.

        Args:
            title: class and method of the handler, for logs.
        """
        registered, ctx.compensations = ctx.compensations, None
        if registered is not None and registered.requests:
            undo, registered.requests = registered.requests, []
            self._compensating += 1  # before anything else runs: the handler has given up its slot in the mailbox already
            self._settled.clear()
            try:
                await finish(self._compensate(undo))
            except asyncio.CancelledError as cancelled:
                error = cancelled
            finally:
                self._compensating -= 1
                if not self._compensating:
                    self._settled.set()
        if _ends_node(error):
            aborted = HandlerAborted(f"{title} raised {error!r}: the node stops")
            aborted.__cause__ = error
            self._environment.fail(aborted)
            return aborted
        if not isinstance(error, Exception | asyncio.CancelledError | GeneratorExit | SimulatedCrash):
            aborted = HandlerAborted(f"{title} raised {error!r}, which is no Exception")
            aborted.__cause__ = error
            return aborted
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # nobody cancelled the handler: it awaited something cancelled
                aborted = HandlerAborted(f"{title} raised CancelledError, although nothing cancelled it")
                aborted.__cause__ = error
                return aborted
        return error

    async def to_caller_error(
        self, error: BaseException, ctx: Context, title: str, handler: Handler | None = None
    ) -> BaseException:
        """Run the compensations of a failed handler, and return the error that its caller receives.

        Args:
            title: class and method of the handler, for logs.
            handler: the handler of a request; errors that it does not declare are logged once.
        """
        if isinstance(error, GeneratorExit):
            return error
        error = await self.compensated(error, ctx, title)
        if isinstance(error, ExceptionGroup):  # of a task group in the handler
            group = cast("ExceptionGroup[Exception]", error)
            error = next(iter(_answers_in(group)), group)
        if isinstance(error, ServiceError) and error.contract != "callboard":
            error = _if_sendable(error, self._environment.transport.capabilities.max_body)
        if isinstance(error, ServiceError):
            if isinstance(error, NotDelivered) and getattr(error, "service", "") != self._service:
                error.may_have_run()  # the callee has not run, but this handler has
            if handler is not None and error.contract != "callboard":
                self._warn_if_undeclared(error, handler, title)
            return error
        if isinstance(error, Superseded) or not isinstance(error, Exception):
            return error
        metrics = self._environment.metrics
        if isinstance(error, DatabaseError) and not isinstance(error, StatementError):
            failed = ("database", title, type(error))
            self._environment.repeats.log(self._log, logging.ERROR, failed, "%s: the database failed: %s", title, error)
            metrics.count("database_errors_total", service=self._service)
            unavailable = DatabaseUnavailable(self._service)
            return unavailable.may_have_run() if isinstance(error, CommitUnknown) else unavailable
        metrics.count("incidents_total", service=self._service)
        key = ("incident", title, fault(error))
        return InternalError(self._environment.incident(key, "%s failed: %r", title, error, log=self._log, exc_info=error))

    def _warn_if_undeclared(self, error: ServiceError, handler: Handler, title: str) -> None:
        known = isinstance(error, (*handler.raises, RemoteError)) or handler.spec.contract.name != self._service
        if not known and (handler.name, error.code) not in self._undeclared:
            self._undeclared.add((handler.name, error.code))
            self._log.warning(
                "%s raised %s, which its raises= does not name: add it, so that callers and OpenAPI know of it",
                title,
                type(error).__name__,
            )

    async def _compensate(self, undo: list[Any]) -> None:
        """Make the compensations in reverse order. A request that is not answered is stored, and made again later."""
        ctx, environment = self._context(), self._environment
        away: set[str] = set()
        for request in reversed(undo):
            spec, key = spec_of(cast(type[Any], type(request))), environment.random.hex(32)
            error: Exception | None = None
            if self._compensations is None or not (self._is_cut_off or spec.contract.name in away):
                try:
                    await ctx.request(request, timeout=environment.settings.undo_timeout, key=key)
                    continue
                except Exception as failed:  # the others still have to be made
                    error = failed
            if self._compensations is not None and (error is None or (isinstance(error, ServiceError) and not is_answer(error))):
                away.add(spec.contract.name)
                try:
                    await self._compensations.add(request, key, error)
                    continue
                except DatabaseError as unstored:
                    error = unstored
            environment.metrics.count("undo_failed_total", service=self._service)
            environment.repeats.log(
                self._log, logging.WARNING, ("undo", spec.full_name, type(error)),
                "%s could not be undone and is left to expire: %s", spec.full_name, error,
            )  # fmt: skip


def _answers_in(group: "ExceptionGroup[Exception]") -> list[ServiceError]:
    """Return the errors in a task group's failure if all of them contain a `ServiceError`, else an empty list."""
    found: list[ServiceError] = []
    for error in group.exceptions:
        inner = _answers_in(cast("ExceptionGroup[Exception]", error)) if isinstance(error, ExceptionGroup) else [error]
        services = [leaf for leaf in inner if isinstance(leaf, ServiceError)]
        if not services:
            return []
        found += services
    return found


def _if_sendable(error: ServiceError, limit: int) -> ServiceError | UsageError:
    """Return the error if its fields can cross a network, and otherwise an error that names the field that cannot, or the limit."""
    if isinstance(error, RemoteError):
        return error
    cls = type(error)
    codec = _codecs.get(cls)
    if codec is None:
        codec = _codecs[cls] = Codec(error_fields(cls), f"{error.contract}.{cls.__name__}")
    try:
        codec.encode_checked(error.shadow())
        if (size := len(to_json(error.data()))) > limit:
            raise UsageError(too_large(f"the error {codec.title}", size, limit))
    except UsageError as unsendable:
        unsendable.__cause__ = error
        return unsendable
    return error


_codecs: dict[type[ServiceError], Codec] = {}
