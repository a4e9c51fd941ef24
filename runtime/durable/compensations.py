"""Compensations that nobody has answered yet: they are stored, and made again until the callee answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from runtime.clock import Clock, Random
from runtime.contract.errors import MaybeDelivered, NotDelivered, ServiceError, UnknownRequest, is_answer
from runtime.contract.messages import MessageSpec, Request, spec_of
from runtime.metrics import Metrics
from runtime.storage.database import Database, DatabaseError
from runtime.tasks import Backoff, wait_for_event

_PAUSE = Backoff(0.5, 30.0)
_POLL_SECONDS = 30.0
"""How often the database is read without a reason: another instance of the service may have stored a compensation and ended."""
_AT_ONCE = 100
"""How many compensations of one callee are read at once."""

Ask = Callable[[Request[Any], str], Awaitable[Any]]
"""Makes a request with an idempotency key. Raises `ServiceError`."""


class Compensation(msgspec.Struct, frozen=True):
    """A request of `ctx.undo` that nobody has answered yet.

    Attributes:
        id: its idempotency key, the same at every attempt.
        callee: the service that is asked.
        request: the full name of the request.
        body: the request as JSON text.
        at: when the handler failed, in seconds since 1970.
        attempts: how often it was made.
        error: the error of the last attempt.
    """

    id: str
    callee: str
    request: str
    body: str
    at: float
    attempts: int
    error: str


class Compensations:
    """The compensations of one service that wait for an answer.

    Args:
        ask: makes a request with an idempotency key.
        find: returns what is known about a request with a full name; None if the service does not call it any more.
    """

    def __init__(
        self,
        database: Database,
        *,
        service: str,
        ask: Ask,
        find: Callable[[str], MessageSpec | None],
        clock: Clock,
        random: Random,
        metrics: Metrics,
        log: logging.Logger,
    ) -> None:
        self._database = database
        self._service = service
        self._ask = ask
        self._find = find
        self._clock = clock
        self._random = random
        self._metrics = metrics
        self._log = log
        self._wake = asyncio.Event()
        self._failures = 0
        self._waiting = 0
        metrics.gauge("compensations_waiting", lambda: self._waiting, service=service)

    def __repr__(self) -> str:
        return f"<Compensations of {self._service}: {self._waiting} wait>"

    async def add(self, request: Request[Any], key: str, error: ServiceError | None) -> None:
        """Store a compensation that was not answered.

        Args:
            key: the idempotency key with which it was made.
            error: its error; None if it was not made yet, because the same callee has just not answered.

        Raises:
            DatabaseError: if it cannot be stored.
        """
        spec = spec_of(type(request))
        await self._database.execute(
            "INSERT INTO callboard_compensations (id, callee, request, body, at, attempts, error) VALUES ($1, $2, $3, $4, $5, $6, $7)",
            key, spec.contract.name, spec.full_name, spec.codec.encode(request).decode(), self._clock.timestamp(), int(error is not None), _text(error),
        )  # fmt: skip
        if not self._waiting:
            self._failures = 0
            self._wake.set()
        self._waiting += 1

    def hint(self) -> None:
        """Make all of them now instead of after the pause: a callee may be back."""
        if self._waiting:
            self._failures = 0
            self._wake.set()

    async def run(self) -> None:
        """Make the compensations, with a pause after each round, until cancelled."""
        while True:
            self._wake.clear()
            try:
                answered = await self._make_all()
            except DatabaseError as error:
                self._log.warning("compensations cannot be read, and are tried again: %s", error)
                answered = 0
            self._failures = 0 if answered else self._failures + 1
            pause = _PAUSE.delay(self._failures, self._random) if self._waiting else self._random.jitter(_POLL_SECONDS)
            await wait_for_event(self._wake, pause)

    async def _make_all(self) -> int:
        """Make the compensations, of each callee until it does not answer. Return how many were answered."""
        answered = 0
        for callee in await self._database.fetch("SELECT DISTINCT callee FROM callboard_compensations"):
            rows = await self._database.fetch(
                "SELECT * FROM callboard_compensations WHERE callee = $1 ORDER BY attempts, at LIMIT $2",
                callee["callee"],
                _AT_ONCE,
            )
            for row in rows:
                error = await self._make(Compensation(**row))
                answered += error is None
                if isinstance(error, NotDelivered | MaybeDelivered | UnknownRequest):
                    break
        self._waiting = (await self._database.fetch("SELECT COUNT(*) AS n FROM callboard_compensations"))[0]["n"]
        return answered

    async def _make(self, compensation: Compensation) -> ServiceError | None:
        """Make a compensation, unless another instance does. Return None if its callee has answered, and otherwise the error."""
        attempts = compensation.attempts + 1
        if not await self._database.execute(
            "UPDATE callboard_compensations SET attempts = $2 WHERE id = $1 AND attempts = $3",
            compensation.id, attempts, compensation.attempts,
        ):  # fmt: skip
            return None
        spec = self._find(compensation.request)
        try:
            if spec is None:
                raise UnknownRequest(compensation.request)
            await self._ask(spec.codec.decode(compensation.body.encode()), compensation.id)
        except ServiceError as error:
            if not is_answer(error):
                await self._database.execute(
                    "UPDATE callboard_compensations SET error = $2 WHERE id = $1", compensation.id, _text(error)
                )
                return error
            self._log.warning("%s: %s was answered with %s", self._service, compensation.request, _text(error))
        await drop_compensation(self._database, compensation.id)
        self._metrics.count("compensations_answered_late_total", service=self._service)
        self._log.info("%s was answered at attempt %d", compensation.request, attempts)
        return None


async def all_compensations(database: Database) -> list[Compensation]:
    """Return all compensations that wait in a service's database, oldest first."""
    rows = await database.fetch("SELECT * FROM callboard_compensations ORDER BY at, id")
    return [Compensation(**row) for row in rows]


async def drop_compensation(database: Database, id: str) -> bool:
    """Delete a compensation from a service's database. Return whether there was one with this id."""
    return bool(await database.execute("DELETE FROM callboard_compensations WHERE id = $1", id))


def _text(error: Exception | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {error}"[:2000]
