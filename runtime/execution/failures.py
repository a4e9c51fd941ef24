"""What becomes of a handler that failed: what it asked for is undone, and callers get to see an error of ours."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from runtime.contract.errors import DatabaseUnavailable, InternalError, NotDelivered, RemoteError, ServiceError, answers_in
from runtime.execution.environment import Environment
from runtime.service.context import Context
from runtime.service.handlers import Handler
from runtime.storage.database import DatabaseError, StatementError, Superseded
from runtime.tasks import finish


class Failures:
    """The failures of one instance's handlers.

    Args:
        context: makes a context in which nobody waits: for compensations.
    """

    def __init__(self, service: str, environment: Environment, log: logging.Logger, context: Callable[[], Context]) -> None:
        self._service = service
        self._environment = environment
        self._log = log
        self._context = context
        self._undeclared: set[tuple[str, str]] = set()

    async def seen(self, error: BaseException, ctx: Context, place: str, handler: Handler | None = None) -> BaseException:
        """Compensates what a failed handler asked others for, and gives the error as callers may see it.

        Args:
            place: class and method, for the log.
            handler: of a request: its undeclared errors are told of.
        """
        if isinstance(error, GeneratorExit):
            return error
        undo, ctx.compensations = ctx.compensations, None
        if undo:
            try:
                await finish(self.compensate(undo))
            except asyncio.CancelledError as cancelled:
                error = cancelled
        if isinstance(error, ExceptionGroup):  # of a task group in the handler
            group = cast("ExceptionGroup[Exception]", error)
            error = next(iter(answers_in(group)), group)
        if isinstance(error, ServiceError):
            if isinstance(error, NotDelivered) and getattr(error, "service", "") != self._service:
                error.may_have_run()  # whom it asked has not; this handler has
            if handler is not None and error.contract != "callboard":
                self._note(error, handler, place)
            return error
        if isinstance(error, Superseded):
            return error
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                return error  # somebody stopped waiting; else the handler awaited something that was cancelled
        elif not isinstance(error, Exception):
            return error
        metrics = self._environment.metrics
        if isinstance(error, DatabaseError) and not isinstance(error, StatementError):
            self._log.error("%s: the database failed: %s", place, error)
            metrics.count("database_errors_total", service=self._service)
            return DatabaseUnavailable(self._service)
        incident = self._environment.random.hex(16)
        metrics.count("incidents_total", service=self._service)
        self._log.error("incident %s: %s failed: %r", incident, place, error, exc_info=error)
        return InternalError(incident)

    def _note(self, error: ServiceError, handler: Handler, place: str) -> None:
        """Says once what callers and OpenAPI do not know of."""
        known = isinstance(error, (*handler.raises, RemoteError)) or handler.spec.contract.name != self._service
        if not known and (handler.name, error.code) not in self._undeclared:
            self._undeclared.add((handler.name, error.code))
            self._log.warning(
                "%s raised %s, which its raises= does not name: add it, so that callers and OpenAPI know of it",
                place,
                type(error).__name__,
            )

    async def compensate(self, undo: list[Any]) -> None:
        """Makes the requests that undo others, the last first."""
        ctx = self._context()
        for request in reversed(undo):
            try:
                await ctx.request(request, timeout=self._environment.settings.undo_timeout)
            except Exception as error:  # the others are still to be made
                self._environment.metrics.count("undo_failed_total", service=self._service)
                self._log.warning("%s could not be undone and is left to expire: %s", type(request).__name__, error)
