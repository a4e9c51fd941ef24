"""The operations on a service's streams and dead letters: the answers to the requests of the console.

A running service answers them itself. Without one, the command line answers them from the service's database.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from runtime.contract.messages import Request
from runtime.durable.console import (
    DeadLetterInfo,
    DeadLetterPage,
    DropDeadLetters,
    Dropped,
    ForgetReader,
    ListDeadLetters,
    Refused,
    Resumed,
    ResumeStream,
    RetryDeadLetter,
    RetryOutcome,
    ShowDeadLetter,
    ShowStreams,
    StreamReader,
    StreamReport,
    StreamSubscription,
)
from runtime.durable.cursor import Cursor, Cursors, digest_of
from runtime.durable.dead_letters import DeadLetter, NeedsNewerVersion, count_dead_letters
from runtime.durable.retention import Retention
from runtime.durable.stream import Position, read_history
from runtime.durable.subscription import Subscription
from runtime.storage.database import Database, Superseded

AskHead = Callable[[str], Awaitable[int | None]]
"""Returns the number of a publisher's last event, or None if it is not known."""


class Operations:
    """Answers the requests of the console about one service's streams and dead letters.

    Args:
        service: the name of the service.
        events: the classes of the events that it takes, by publisher and full name.
        head: returns the head of another service's stream.
        subscriptions: those of the running service; empty if it is not running here.
        retention: what its stream retains.

    Attributes:
        answers: the method that answers each request, by the request's class.
    """

    def __init__(
        self,
        service: str,
        database: Database,
        events: Mapping[str, Mapping[str, type[Any]]],
        log: logging.Logger,
        head: AskHead,
        subscriptions: Mapping[str, Subscription],
        retention: Retention,
    ) -> None:
        self._service = service
        self._database = database
        self._events = events
        self._retention = retention
        self._log = log
        self._head = head
        self._subscriptions = subscriptions
        self.answers: dict[type[Request[Any]], Callable[[Any], Awaitable[Any]]] = {
            ShowStreams: self.show,
            ResumeStream: self.resume,
            ForgetReader: self.forget,
            ListDeadLetters: self.list_dead_letters,
            ShowDeadLetter: self.show_dead_letter,
            RetryDeadLetter: self.retry,
            DropDeadLetters: self.drop,
        }

    # Streams

    async def show(self, message: ShowStreams) -> StreamReport:
        """Return the stream, its readers, and the subscriptions."""
        history = await read_history(self._database)
        limits = await self._database.fetch_one("SELECT pruned FROM callboard_stream_head")
        oldest = 1 if limits is None else limits["pruned"] + 1
        readers = tuple(
            StreamReader(one.subscriber, one.seq, max(history.head - one.seq, 0), one.silent)
            for one in await self._retention.subscribers()
        )
        known = await self._database.fetch("SELECT publisher FROM callboard_cursors ORDER BY publisher")
        left = await self._database.fetch("SELECT DISTINCT publisher FROM callboard_dead_letters ORDER BY publisher")
        publishers = dict.fromkeys([*self._events, *(row["publisher"] for row in [*known, *left])])
        subscriptions = [await self._subscription(publisher) for publisher in publishers]
        epoch = history.epochs[-1][0] if history.epochs else ""
        return StreamReport(self._service, epoch, history.head, oldest, readers, tuple(subscriptions))

    async def _subscription(self, publisher: str) -> StreamSubscription:
        cursor = await Cursors(publisher, self._database).read()
        position = Position("", 0) if cursor is None else cursor.position
        live = self._subscriptions.get(publisher)
        state, reason = ("", "") if live is None else (live.progress.state.value, live.progress.reason)
        if publisher not in self._events:
            state, reason = "UNUSED", f"{self._service} takes no events of it any more"
        elif cursor is not None and cursor.stopped is not None:
            state, reason = "STOPPED", cursor.stopped
        elif cursor is not None and cursor.failed is not None and live is None:
            state, reason = "BACKING_OFF", f"event {cursor.failed.seq} has failed {cursor.failed.attempts} times"
        letters = await count_dead_letters(self._database, publisher)
        return StreamSubscription(publisher, position.epoch, position.seq, await self._head(publisher), state, reason, letters)

    async def resume(self, message: ResumeStream) -> Resumed:
        """Let a subscription continue.

        Raises:
            Refused: if it does not wait, or if it would apply an event twice.
        """
        publisher, service = message.publisher, self._service
        events = self._events.get(publisher)
        if not events:
            expected = " or ".join(sorted(self._events)) or "another service, because it takes none at all"
            raise Refused(f"{service} takes no events of {publisher!r}: expected {expected}")
        if (message.skip_to is not None) + message.known_types + (message.set_aside is not None) > 1:
            raise Refused("--skip-to, --known-types, and --set-aside are different remedies: expected one of them")
        cursors = Cursors(publisher, self._database)
        cursor = await cursors.read()
        if cursor is None:
            raise Refused(f"{service} has not applied any events of {publisher} yet: there is nothing to resume")
        if message.known_types:
            await cursors.accept(digest_of(events))
        elif message.set_aside is not None:
            if message.set_aside <= cursor.position.seq:
                raise Refused(
                    f"{service} has applied event {message.set_aside} of {publisher} already: expected a number above {cursor.position.seq}"
                )
            await self._require_published(publisher, message.set_aside)
            await cursors.set_aside(message.set_aside)
        else:
            await self._resume_stopped(cursors, cursor, publisher, message.skip_to)
        live = self._subscriptions.get(publisher)
        if live is not None:
            live.hint()
        return Resumed(tuple(sorted(events)))

    async def _resume_stopped(self, cursors: Cursors, cursor: Cursor, publisher: str, skip_to: int | None) -> None:
        service = self._service
        if cursor.stopped is None:
            raise Refused(f"{service} has not stopped to apply the events of {publisher}: there is nothing to resume")
        if skip_to is not None and skip_to <= cursor.position.seq and not cursor.diverged:
            raise Refused(
                f"{service} has applied event {skip_to} of {publisher} already: expected a number above {cursor.position.seq}"
            )
        if skip_to is not None:
            await self._require_published(publisher, skip_to - 1)
        position = Position("", 0 if skip_to is None else skip_to - 1)
        if not await cursors.resume(cursor, position, dict.fromkeys(self._events[publisher], 0)):
            raise Refused(f"somebody else has just resumed the events of {publisher} in {service}")

    async def _require_published(self, publisher: str, seq: int) -> None:
        head = await self._head(publisher)
        if head is not None and seq > head:
            raise Refused(
                f"{publisher} has published {head} events so far, and none with the number {seq}: expected a smaller number"
            )

    async def forget(self, message: ForgetReader) -> None:
        """Forget a reader. Raises `Refused` if it is not known."""
        if not await self._retention.forget(message.reader):
            names = [known.subscriber for known in await self._retention.subscribers()]
            raise Refused(
                f"{self._service} has no subscriber {message.reader!r}: expected {' or '.join(names) or 'none, because none is known'}"
            )

    # Dead letters

    async def list_dead_letters(self, message: ListDeadLetters) -> DeadLetterPage:
        """Return a page of the dead letters."""
        rows = await self._database.fetch(
            "SELECT event_id, publisher, seq, type, at, attempts, error FROM callboard_dead_letters "
            "WHERE event_id > $1 AND (publisher = $2 OR $2 = '') AND (type = $3 OR $3 = '') ORDER BY event_id LIMIT $4",
            message.after, message.publisher, message.type, message.limit,
        )  # fmt: skip
        items = tuple(
            DeadLetterInfo(row["event_id"], row["publisher"], row["seq"], row["type"], row["at"], row["attempts"], row["error"])
            for row in rows
        )
        return DeadLetterPage(items, items[-1].id if len(items) == message.limit else "")

    async def show_dead_letter(self, message: ShowDeadLetter) -> DeadLetter:
        """Return a dead letter. Raises `Refused` if there is none."""
        rows = await self._database.fetch("SELECT * FROM callboard_dead_letters WHERE event_id = $1 ORDER BY at", message.id)
        if not rows:
            raise Refused(
                f"{self._service} has no dead letter {message.id!r}: `callboard dead-letters list {self._service}` shows their ids"
            )
        return DeadLetter(**rows[0])

    async def retry(self, message: RetryDeadLetter) -> RetryOutcome:
        """Apply a dead letter again. Raises `Refused` if nothing here can apply it."""
        rows = await self._database.fetch("SELECT * FROM callboard_dead_letters WHERE event_id = $1 ORDER BY at", message.id)
        if not rows:
            return RetryOutcome("", found=False)
        letter = DeadLetter(**rows[0])
        live = self._subscriptions.get(letter.publisher)
        if live is None and letter.publisher in self._events:
            raise Refused(f"{self._service} is not running here: name the gateway of the running system with --url")
        if live is None:
            raise Refused(f"{self._service} takes no events of {letter.publisher} any more: nothing can apply {letter.event_id}")
        try:
            await live.dead_letters.retry(letter)
        except Superseded:
            return RetryOutcome("", found=False)
        except Exception as error:
            if not isinstance(error, NeedsNewerVersion):  # without attempts, it waits for the version that can decode it
                await live.dead_letters.failed_again(letter, error)
            self._log.warning("%s %d of %s stays a dead letter: %r", letter.type, letter.seq, letter.publisher, error)
            return RetryOutcome(str(error) or type(error).__name__)
        live.progress.dead_letters = await count_dead_letters(self._database, letter.publisher)
        return RetryOutcome("")

    async def drop(self, message: DropDeadLetters) -> Dropped:
        """Delete dead letters."""
        count = 0
        async with self._database.transaction() as tx:
            for id in message.ids:
                count += await tx.execute("DELETE FROM callboard_dead_letters WHERE event_id = $1", id)
        for publisher, live in self._subscriptions.items():
            live.progress.dead_letters = await count_dead_letters(self._database, publisher)
        return Dropped(count)
