"""The stream: a service's ordered, durable log of events, stored in its own database and read by pulling.

Events are appended by the commit of the transaction that they describe. Their numbers have no gaps and follow commit
order. A hint announces the head of the stream; subscribers request the events with `Pull`.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, ClassVar, NamedTuple
from uuid import UUID

from msgspec import Meta

from runtime.clock import Clock, Random, rfc3339
from runtime.contract.codec import to_json, too_large
from runtime.contract.errors import ServiceError, UsageError
from runtime.contract.messages import Contract, Request, Struct
from runtime.durable.retention import Retention
from runtime.network.envelope import Head
from runtime.storage.database import Database, Row, Transaction
from runtime.storage.values import LARGEST

stream: Contract = Contract("stream")
"""The requests that every service with a database answers, each for its own stream."""

BATCH_BYTES = 1 << 20
"""The bytes of JSON that the events of a batch have together. A larger event is a separate batch."""
_FRAME = 1024
"""The bytes of a batch that are not its events'. A network that carries little leaves a third of it."""
_LOOKED_AT = 16 * BATCH_BYTES
"""The bytes of events, of any type, that are looked at for one batch."""
MOST_ROWS = 1_000
"""The number of events that are looked at for one batch, whatever limit a peer asks for."""


class Position(Struct):
    """A position in a stream.

    Attributes:
        epoch: the name of the epoch.
        seq: the number of an event.
        event_id: the id of that event; empty where there is nothing to compare.
    """

    epoch: str
    seq: Annotated[int, Meta(ge=0, le=LARGEST)]
    event_id: str = ""


class StreamEvent(Struct):
    """An event as the stream stores it; `body` is JSON text, `at` RFC 3339 text."""

    seq: int
    id: str
    type: str
    body: str
    at: str
    trace: str


class Batch(Struct):
    """The events that follow a position.

    Attributes:
        events: the events of the requested types, in order.
        scanned: the position of the last event that was looked at, of any type.
        head: the number of the last event in the stream.
        forked_at: set if the requested position is on a branch that a restored publisher no longer has. The batch begins
            at this position, where the branches part.
    """

    events: tuple[StreamEvent, ...]
    scanned: Position
    head: int
    forked_at: Position | None = None


@stream.message
class Pull(Request[Batch]):
    """The events after a position, in order.

    Attributes:
        after: the position. Without an epoch, the batch begins at the oldest retained event.
        types: the types of events to return.
        limit: the number of events to look at; never more than 1,000, and fewer if they have more than 1 MB together.
        peek: only look: events are not retained for this caller.
    """

    after: Position
    types: tuple[str, ...]
    limit: int = 100
    peek: bool = False


@stream.message
class StreamHead(Request[Position]):
    """The position of the last committed event."""


@stream.message
class Diverged(ServiceError):
    """The position is not in this stream's history."""

    code: ClassVar[str] = "stream-diverged"
    status: ClassVar[int] = 409
    epoch: str
    head: int


@stream.message
class PositionPruned(ServiceError):
    """Events after the position have been pruned."""

    code: ClassVar[str] = "stream-too-late"
    status: ClassVar[int] = 410
    epoch: str
    pruned: int


@stream.message
class EventTooLarge(ServiceError):
    """The next event is larger than the network carries."""

    code: ClassVar[str] = "stream-event-too-large"
    status: ClassVar[int] = 413
    epoch: str
    seq: int
    event_id: str
    event: str
    written_at: str
    size: int
    limit: int


class History(NamedTuple):
    """The epochs of a stream.

    Attributes:
        epochs: those that its events belong to, in order, each with the last number of the one before that is part of its history.
        branches: those that a restore has cut off, each with the epoch before it (empty if there was none) and the last number of
            that one which is part of its history.
        head: the number of the last event.
    """

    epochs: tuple[tuple[str, int], ...]
    branches: dict[str, tuple[str, int]]
    head: int

    def cut_off_by(self, other: "History") -> dict[str, tuple[str, int]]:
        """Return the branches that a stream which takes the place of this one does not know.

        Nothing is known of a stream that has no epoch in common with this one. One that has not begun yet shares no event.
        """
        names = [epoch for epoch, _ in self.epochs]
        found = {epoch: (before, begins) for before, (epoch, begins) in zip(["", *names], self.epochs, strict=False)}
        if other.epochs:
            found = {epoch: branch for epoch, branch in found.items() if branch[0]}
        known = {epoch for epoch, _ in other.epochs} | other.branches.keys()
        return {epoch: branch for epoch, branch in (self.branches | found).items() if epoch not in known}

    def shared_with(self, epoch: str) -> int | None:
        """Return the last number of an epoch that is part of this history; None for the current epoch.

        Raises:
            KeyError: if the epoch is unknown.
        """
        shared: int | None = None
        names = [name for name, _ in self.epochs]
        while epoch not in names:
            epoch, begins = self.branches[epoch]
            shared = begins if shared is None else min(shared, begins)
            if not epoch:
                return 0
        later = [begins for _, begins in self.epochs[names.index(epoch) + 1 :]]
        return min([*later, *([] if shared is None else [shared])], default=None)


async def read_history(database: Database | Transaction) -> History:
    """Read the epochs of a service's stream."""
    rows = await database.fetch("SELECT epoch, begins, parent FROM callboard_epochs ORDER BY ordinal")
    head = await database.fetch_one("SELECT seq FROM callboard_stream_head")
    return History(
        tuple((row["epoch"], row["begins"]) for row in rows if row["parent"] is None),
        {row["epoch"]: (row["parent"], row["begins"]) for row in rows if row["parent"] is not None},
        0 if head is None else head["seq"],
    )


class _Page:
    """Collects the events of one batch, row by row.

    Args:
        types: the requested types.
        largest: the size of the largest event that the network carries, in bytes.

    Attributes:
        events: the events of the requested types.
        first: the number of the first event that was looked at, or None.
        last: the number and the id of the last one, or None.
        too_large: the first event that the network does not carry, and its size. It ends the batch.
    """

    def __init__(self, types: frozenset[str], largest: int) -> None:
        self.events: list[StreamEvent] = []
        self.first: int | None = None
        self.last: tuple[int, str] | None = None
        self.too_large: tuple[StreamEvent, int] | None = None
        self._types = types
        self._largest = largest
        self._size = 0
        self._looked_at = 0

    def add(self, row: Row) -> bool:
        """Look at an event. Return False if the batch is full; an event that did not fit begins the next one."""
        self.first = self.first or row["seq"]
        if row["type"] in self._types:
            event = StreamEvent(**row)
            size = len(to_json(event))
            if size > self._largest:
                self.too_large = event, size
                return False
            self._size += size
            if self.events and self._size > min(BATCH_BYTES, self._largest):
                return False
            self.events.append(event)
        self.last = row["seq"], row["id"]
        self._looked_at += len(row["body"])
        return self._looked_at < _LOOKED_AT


class Stream:
    """The publisher's side: the stream of one service in its database.

    Args:
        max_body: returns the size of the largest message that the network carries now, in bytes.
    """

    def __init__(self, database: Database, clock: Clock, random: Random, max_body: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        self._random = random
        self._max_body = max_body
        self._history = History((), {}, 0)
        self._second = -1
        self._second_text = ""
        self.last: int = 0
        """The number of the last event, as far as this instance knows."""
        self.retention: Retention = Retention(database, clock)

    async def open(self) -> None:
        """Read the epochs of the stream; in a new database, begin the first."""
        history = await read_history(self._database)
        if not history.epochs:
            await self._database.execute(
                "INSERT INTO callboard_epochs (epoch, ordinal, begins) VALUES ($1, 1, 0) ON CONFLICT DO NOTHING",
                self._random.hex(16),
            )
            history = await read_history(self._database)
        self._history = history

    async def fork(self, replaced: "History | None" = None) -> str:
        """Begin a new epoch, after the database was restored from a backup. Return its name.

        Args:
            replaced: the history of the database that the backup replaces, whose later epochs subscribers may have reached.
        """
        epoch = self._random.hex(16)
        async with self._database.transaction() as tx:
            own = await read_history(tx)
            for branch, (parent, begins) in ({} if replaced is None else replaced.cut_off_by(own)).items():
                await tx.execute(
                    "INSERT INTO callboard_epochs (epoch, ordinal, begins, parent) "
                    "SELECT $1, (SELECT coalesce(max(ordinal), 0) + 1 FROM callboard_epochs), $2, $3 FROM callboard_stream_head",
                    branch,
                    begins,
                    parent,
                )
            await tx.execute(
                "INSERT INTO callboard_epochs (epoch, ordinal, begins) SELECT $1, (SELECT coalesce(max(ordinal), 0) + 1 FROM callboard_epochs), seq FROM callboard_stream_head",
                epoch,
            )
        await self.open()
        return epoch

    @property
    def epoch(self) -> str:
        """The name of the current epoch."""
        return self._history.epochs[-1][0]

    @property
    def _largest(self) -> int:
        """The size of the largest event that the network carries, in bytes of JSON."""
        body = self._max_body()
        return max(body - _FRAME, body * 2 // 3)

    def append(self, tx: Transaction, events: list[tuple[str, str]], trace: str) -> None:
        """Append events, as pairs of type and JSON text, with the commit of a transaction.

        Raises:
            UsageError: if the network does not carry an event of this size.
        """
        at, largest = self._time(), self._largest
        for name, body in events:
            if 4 * len(body) + _FRAME > largest:  # a character has at most four bytes, also if it is escaped
                size = len(to_json(StreamEvent(LARGEST, str(UUID(int=0)), name, body, at, trace)))
                if size > largest:
                    raise UsageError(too_large(f"the event {name}", size, largest))
            tx.appends.append((self._random.uuid7_text(), name, body, at, trace))

    def _time(self) -> str:
        """Return the time of day as the stream stores it, like `rfc3339(now())`. Its seconds are formatted once a second."""
        now = self._clock.timestamp()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = rfc3339(datetime.fromtimestamp(second, UTC))[: -len("000000Z")]
        return f"{self._second_text}{int((now - second) * 1e6):06d}Z"

    def appended(self, tx: Transaction) -> Head:
        """Return the head after a transaction with events has committed."""
        self.last = tx.head
        return Head(self.epoch, tx.head)

    async def head(self) -> Head:
        """Read the head from the database."""
        row = await self._limits(0)
        return Head(self.epoch, row["seq"])

    async def position(self) -> Position:
        """Return the position of the last committed event."""
        head = await self.head()
        return Position(head.epoch, head.seq, await self._id_at(head.seq) or "")

    async def pull(self, message: Pull, subscriber: str) -> Batch:
        """Answer `Pull`, and record the subscriber's position.

        Raises:
            Diverged: if the position is not part of this stream's history.
            PositionPruned: if events after the position have been pruned.
            EventTooLarge: if the network does not carry the next event.
        """
        limits = await self._limits(message.after.seq)
        after, forked_at = await self._resolve(message.after, limits)
        if not message.peek:
            self.retention.pulled(subscriber, after.seq)
        largest = self._largest
        page = _Page(frozenset(message.types), largest)
        await self._database.scan(
            page.add,
            "SELECT seq, id, type, body, at, trace FROM callboard_stream WHERE seq > $1 ORDER BY seq LIMIT $2",
            after.seq,
            max(1, min(message.limit, MOST_ROWS)),
        )
        first = page.first or max(limits["seq"], after.seq) + 1
        if first != after.seq + 1:  # pruned since the limits were read
            if message.after.epoch:
                raise PositionPruned(self.epoch, first - 1)
            after = Position(self.epoch, first - 1)
        if page.too_large is not None and page.last is None and forked_at is None:
            event, size = page.too_large
            raise EventTooLarge(self.epoch, event.seq, event.id, event.type, event.at, size, largest)
        scanned = after if page.last is None else Position(self.epoch, *page.last)
        return Batch(tuple(page.events), scanned, max(limits["seq"], scanned.seq), forked_at)

    async def _resolve(self, after: Position, limits: Row) -> tuple[Position, Position | None]:
        """Return the position to read from, and the position where the caller's branch parts from this one, if it does."""
        pruned: int = limits["pruned"]
        if not after.epoch:
            return Position(self.epoch, max(pruned, min(after.seq, limits["seq"]))), None
        forked_at = None
        try:
            begins = self._history.shared_with(after.epoch)
        except KeyError:
            raise Diverged(self.epoch, limits["seq"]) from None
        if begins is not None and after.seq > begins:
            forked_at = after = Position(self.epoch, begins, await self._id_at(begins) or "")
        if after.seq > limits["seq"]:
            raise Diverged(self.epoch, limits["seq"])
        if after.seq < pruned:
            raise PositionPruned(self.epoch, pruned)
        found: str | None = limits["id"] if forked_at is None else after.event_id
        if found is not None and after.event_id and found != after.event_id:
            raise Diverged(self.epoch, limits["seq"])
        return Position(self.epoch, after.seq, after.event_id), forked_at

    async def _id_at(self, seq: int) -> str | None:
        row = await self._database.fetch_one("SELECT id FROM callboard_stream WHERE seq = $1", seq)
        return None if row is None else row["id"]

    async def _limits(self, seq: int) -> Row:
        """Return the numbers of the last event and of the last one that was pruned, and the id of the event with a number."""
        row = await self._database.fetch_one(
            "SELECT seq, pruned, (SELECT id FROM callboard_stream WHERE seq = $1) AS id, "
            "(SELECT epoch FROM callboard_epochs ORDER BY ordinal DESC LIMIT 1) AS epoch FROM callboard_stream_head WHERE one = 1",
            seq,
        )
        assert row is not None, "the migration inserts it"
        if row["epoch"] != self.epoch:
            await self.open()  # the database was restored while this instance was running
        self.last = row["seq"]
        return row
