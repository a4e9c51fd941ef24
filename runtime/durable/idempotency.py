"""Idempotent requests: a `once` request takes effect once per idempotency key, however often it is made.

A handler that makes no requests inserts the key's row as the first statement of its transaction: a duplicate waits for the
first and then gets the stored answer. A handler that makes requests commits a claim before it runs, and its final commit
requires that it still owns the claim. If the owner is gone or the lease has expired, the next arrival takes the claim and
starts afresh. So a zombie can neither commit nor undo what another attempt holds.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from runtime.clock import Clock, Random
from runtime.contract.errors import ErrorData, InProgress, KeyReused, RemoteError, ServiceError, is_answer
from runtime.durable.fingerprint import Fingerprint
from runtime.repeats import Repeats
from runtime.storage.database import Database, Guard, Row, Statement, Superseded
from runtime.tasks import finish

KEEP_SECONDS = 24 * 3600
"""How long answers are stored for replay, in seconds."""
RETRY_KEY = "try "
"""How the keys begin that a caller draws for its own retries. No client outside can send such a key."""
_KEEP_AFTER_RETRIES = 60.0
"""The seconds after the deadline of its caller during which an answer under such a key is stored."""
_LONGEST_DEADLINE = 300.0
"""The longest deadline of a caller that counts, in seconds."""
_MARGIN = 5.0
"""The seconds by which a claim outlasts the deadline of its caller."""

_WHERE = "caller = $1 AND subject = $2 AND request = $3 AND key = $4"


class Scope(NamedTuple):
    """What an idempotency key identifies: it belongs to one calling service, one user, and one request."""

    caller: str
    subject: str
    request: str
    key: str


class Claim(NamedTuple):
    """The right to run a request, which one attempt holds. `calls` counts the requests of that attempt by type."""

    scope: Scope
    attempt: int
    calls: dict[str, int]

    def key_for(self, request: str) -> str:
        """Return the idempotency key of this attempt's next call of `request`."""
        self.calls[request] = ordinal = self.calls.get(request, 0) + 1
        return RETRY_KEY + derived_key(*self.scope, self.attempt, request, ordinal)  # another attempt has other keys


class Answer(NamedTuple):
    """The stored answer of a finished request: the state `reply` or `error`, and its JSON text."""

    state: str
    text: str


class StoredReply(NamedTuple):
    """The JSON text of a stored reply. It is sent as it was stored, whatever the type of the reply has become since."""

    text: bytes


def replayed(answer: Answer) -> StoredReply:
    """Return a stored reply, or raise the stored error, which keeps the fields that were stored."""
    if answer.state == "reply":
        return StoredReply(answer.text.encode())
    raise RemoteError(msgspec.json.decode(answer.text, type=ErrorData))


Run = Callable[[Guard, Callable[[Any], Statement], Claim | None], Awaitable[Any]]
"""Runs the handler in a transaction that begins with the guard and ends with a statement made from the reply."""


def derived_key(*parts: object) -> str:
    """Return a key that is the same for the same parts."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:32]


class Once:
    """The `once` requests of one instance.

    Args:
        owner: the random id of the instance.
        alive: returns whether the instance with an id is still live.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        random: Random,
        owner: str,
        alive: Callable[[str], bool],
        log: logging.Logger,
        repeats: Repeats,
    ) -> None:
        self._database = database
        self._clock = clock
        self._random = random
        self._owner = owner
        self._alive = alive
        self._log = log
        self._repeats = repeats

    async def run(self, scope: Scope, fingerprint: Fingerprint, run: Run, remaining: float) -> Any:
        """Return the reply of a request: from its handler the first time, and from the database afterwards.

        Args:
            remaining: the seconds until the caller stops waiting.

        Raises:
            KeyReused: if the key was used with another body.
            ServiceError: the handler's answer. It is stored like a reply unless it is retryable or the runtime's own.
        """
        keep = _keep_seconds(scope, remaining)
        guard = Guard(
            "INSERT INTO callboard_once (caller, subject, request, key, digest, state, attempt, owner, lease) "
            "VALUES ($1, $2, $3, $4, $5, 'claimed', 1, $6, $7) ON CONFLICT DO NOTHING",
            (*scope, str(fingerprint), self._owner, self._keep_until(keep)),
        )
        overtaken = False
        while True:
            stored = await self._stored(scope, fingerprint, overtaken)
            if stored is not None:
                return replayed(stored)
            try:
                return await run(guard, self._finisher(scope, 1, keep), None)
            except Superseded:
                overtaken = True
            except ServiceError as error:
                if is_answer(error) and not await self._database.execute(
                        "INSERT INTO callboard_once (caller, subject, request, key, digest, state, attempt, owner, lease, answer) "
                        "VALUES ($1, $2, $3, $4, $5, 'error', 1, $6, $7, $8) ON CONFLICT DO NOTHING",
                        *scope, str(fingerprint), self._owner, self._keep_until(keep), _text(error.data()),
                    ):  # fmt: skip
                    overtaken = True
                    continue  # a duplicate has stored another answer in the meantime, which counts for both
                raise

    async def run_claimed(self, scope: Scope, fingerprint: Fingerprint, run: Run, deadline: Callable[[], float]) -> Any:
        """Return the reply of a request whose handler makes requests. Raises like `run`.

        Args:
            deadline: returns the seconds that remain until the caller stops waiting.

        Raises:
            InProgress: if another attempt was still running shortly before the deadline.
        """
        keep = _keep_seconds(scope, deadline())
        while True:
            claim = await self._claim_or_let_go(scope, fingerprint, deadline())
            if isinstance(claim, Answer):
                return replayed(claim)
            if claim is None:
                if deadline() < 0.1:
                    raise InProgress
                await self._clock.sleep(self._random.jitter(0.05))
                continue
            try:
                return await run(self._still_ours(claim), self._finisher(scope, claim.attempt, keep), claim)
            except Superseded:
                message = "attempt %d at %s lost its claim to a later attempt"
                self._repeats.log(self._log, logging.WARNING, ("claim", scope.request), message, claim.attempt, scope.request)
            except ServiceError as error:
                await finish(self._settle(claim, error if is_answer(error) else None, keep))
                raise
            except BaseException:
                await finish(self._settle(claim, None, keep))
                raise

    async def _claim_or_let_go(self, scope: Scope, fingerprint: Fingerprint, remaining: float) -> Claim | Answer | None:
        """Take the claim like `_claim`. A claim that was committed while the caller was cancelled is released."""
        claiming = asyncio.ensure_future(self._claim(scope, fingerprint, remaining))
        try:
            return await finish(claiming)
        except asyncio.CancelledError:
            if claiming.done() and not claiming.cancelled() and claiming.exception() is None:
                claim = claiming.result()
                if isinstance(claim, Claim):
                    await finish(self._settle(claim, None, _KEEP_AFTER_RETRIES))
            raise

    async def _claim(self, scope: Scope, fingerprint: Fingerprint, remaining: float) -> Claim | Answer | None:
        """Take the claim if it is free. Otherwise return the stored answer, or None if another attempt is running."""
        now = self._clock.steady()
        lease = now + min(remaining, _LONGEST_DEADLINE) + _MARGIN
        async with self._database.transaction() as tx:
            row = await tx.fetch_one(
                f"SELECT digest, state, attempt, owner, lease, answer FROM callboard_once WHERE {_WHERE}", *scope
            )
            if row is None:
                await tx.execute(
                    "INSERT INTO callboard_once (caller, subject, request, key, digest, state, attempt, owner, lease) "
                    "VALUES ($1, $2, $3, $4, $5, 'claimed', 1, $6, $7)",
                    *scope, str(fingerprint), self._owner, lease,
                )  # fmt: skip
                return Claim(scope, 1, {})
            answer = _answer(row, fingerprint)
            if answer is not None:
                return answer
            if (
                row["state"] == "claimed"
                and now < row["lease"] <= now + _LONGEST_DEADLINE + _MARGIN
                and self._alive(row["owner"])
            ):
                return None
            attempt = row["attempt"] + 1
            await tx.execute(
                f"UPDATE callboard_once SET state = 'claimed', attempt = $5, owner = $6, lease = $7 WHERE {_WHERE}",
                *scope,
                attempt,
                self._owner,
                lease,
            )
            return Claim(scope, attempt, {})

    async def _stored(self, scope: Scope, fingerprint: Fingerprint, overtaken: bool) -> Answer | None:
        if not overtaken:
            row = await self._database.fetch_one(f"SELECT digest, state, answer FROM callboard_once WHERE {_WHERE}", *scope)
            return None if row is None else _answer(row, fingerprint)
        # The other attempt may not be committed yet; this transaction gets its turn after that
        async with self._database.transaction() as tx:
            row = await tx.fetch_one(f"SELECT digest, state, answer, lease, owner FROM callboard_once WHERE {_WHERE}", *scope)
            answer = None if row is None else _answer(row, fingerprint)
            if row is not None and answer is None and (row["state"] == "free" or not self._alive(row["owner"])):
                await tx.execute(
                    f"DELETE FROM callboard_once WHERE {_WHERE}", *scope
                )  # a claim left by an older version of the handler, which made requests
        if row is not None and answer is None:
            await self._clock.sleep(self._random.jitter(0.05))
        return answer

    def _still_ours(self, claim: Claim) -> Guard:
        return Guard(
            f"UPDATE callboard_once SET attempt = attempt WHERE {_WHERE} AND attempt = $5 AND owner = $6 AND state = 'claimed'",
            (*claim.scope, claim.attempt, self._owner),
        )

    def _finisher(self, scope: Scope, attempt: int, keep: float) -> Callable[[Any], Statement]:
        """Return a function that makes the statement that stores the reply of an attempt."""
        sql = f"UPDATE callboard_once SET state = 'reply', answer = $6, lease = $7 WHERE {_WHERE} AND attempt = $5"
        return lambda reply: (sql, (*scope, attempt, _text(reply), self._keep_until(keep)))

    async def _settle(self, claim: Claim, error: ServiceError | None, keep: float) -> None:
        """End a claim without a reply: store the error, or release the claim for the next arrival."""
        state, text = ("free", None) if error is None else ("error", _text(error.data()))
        await self._database.execute(
            f"UPDATE callboard_once SET state = $6, answer = $7, lease = $8 WHERE {_WHERE} AND attempt = $5 AND owner = $9 AND state = 'claimed'",
            *claim.scope, claim.attempt, state, text, self._keep_until(keep), self._owner,
        )  # fmt: skip

    def _keep_until(self, seconds: float) -> float:
        return self._clock.steady() + seconds

    async def stored(self, scope: Scope, fingerprint: Fingerprint) -> StoredReply | None:
        """Return the stored reply of a request, or None if there is no answer yet, or only to another request with this key.

        Raises:
            ServiceError: the stored error.
        """
        try:
            answer = await self._stored(scope, fingerprint, False)
        except KeyReused:
            return None
        return None if answer is None else replayed(answer)

    async def prune(self) -> int:
        """Delete answers that have expired, and claims that were abandoned. Return how many."""
        now = self._clock.steady()
        # Stored before a restart, while the clock was ahead: kept from now on
        await self._database.execute("UPDATE callboard_once SET lease = $1 WHERE lease > $1", now + KEEP_SECONDS)
        return await self._database.delete_in_steps(
            "callboard_once", "caller, subject, request, key",
            "lease < $1 AND (state <> 'claimed' OR lease < $2)", now, now - KEEP_SECONDS,
        )  # fmt: skip


def _keep_seconds(scope: Scope, remaining: float) -> float:
    """Return how long the answer of a request is stored: as long as a client, or else the caller itself, may repeat it."""
    if scope.key.startswith(RETRY_KEY):
        return min(max(remaining, 0.0), _LONGEST_DEADLINE) + _KEEP_AFTER_RETRIES
    return KEEP_SECONDS


def _answer(row: Row, fingerprint: Fingerprint) -> Answer | None:
    if not fingerprint.matches(row["digest"]):
        raise KeyReused
    return Answer(row["state"], row["answer"]) if row["state"] in ("reply", "error") else None


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
