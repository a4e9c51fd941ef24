"""The stream: a service's ordered, durable log of events, kept in its own database, and read by pulling.

Events are appended in the transaction that they tell of, last of all, with the next numbers: no gaps, in commit order.
A hint says how far the stream goes; whoever takes the events asks for them with `Pull`.
"""

from datetime import UTC, datetime

from runtime.clock import Clock, Random
from runtime.contract.errors import ServiceError
from runtime.contract.messages import Contract, Request, Struct
from runtime.network.envelope import Head
from runtime.service.context import Context
from runtime.storage.database import Database, Row, Transaction

stream = Contract("stream")
"""What every service with a database answers, each for its own stream."""

KEEP_SECONDS = 7 * 24 * 3600
KEEP_AT_MOST = 1_000_000
"""A stream keeps what is younger or not yet taken, up to this many events."""

_BATCH_BYTES = 1 << 20


class Position(Struct):
    """A place in a stream. `event_id` is that of the event at `seq`; empty where nothing can be compared."""

    epoch: str
    seq: int
    event_id: str = ""


class StreamEvent(Struct):
    """An event as the stream keeps it; `body` is JSON text."""

    seq: int
    id: str
    type: str
    body: str
    at: str
    trace: str


class Batch(Struct):
    """What follows a position: the events of the types asked for, and how far all events were looked at.

    `forked_at` is set when the position lies on a branch that a restored publisher no longer has: the answer begins there.
    """

    events: tuple[StreamEvent, ...]
    scanned: Position
    head: int
    forked_at: Position | None = None


@stream.message
class Pull(Request[Batch]):
    """The events after a position, in order. A position without epoch asks from the oldest event kept.

    Who only has a look (`peek`) is no reader for whom events are kept.
    """

    after: Position
    types: tuple[str, ...]
    limit: int = 100
    peek: bool = False


@stream.message
class StreamHead(Request[Position]):
    """How far the stream goes: the last event committed."""


@stream.message
class Diverged(ServiceError):
    """The position is not in this stream's history."""

    code, status = "stream-diverged", 409
    epoch: str
    head: int


@stream.message
class PositionPruned(ServiceError):
    """Events after the position have been pruned."""

    code, status = "stream-too-late", 410
    epoch: str
    pruned: int


class Stream:
    """The publisher's side: one service's stream in its database."""

    def __init__(self, database: Database, clock: Clock, random: Random) -> None:
        self._database = database
        self._clock = clock
        self._random = random
        self._epochs: list[tuple[str, int]] = []
        self._readers: dict[str, int] = {}

    async def open(self) -> None:
        """Reads the stream's history, and begins it in a new database."""
        rows = await self._database.fetch("SELECT epoch, begins FROM callboard_epochs ORDER BY ordinal")
        if not rows:
            await self._database.execute(
                "INSERT INTO callboard_epochs (epoch, ordinal, begins) VALUES ($1, 1, 0) ON CONFLICT DO NOTHING",
                self._random.hex(16),
            )
            rows = await self._database.fetch("SELECT epoch, begins FROM callboard_epochs ORDER BY ordinal")
        self._epochs = [(row["epoch"], row["begins"]) for row in rows]

    async def fork(self) -> str:
        """Begins a new epoch here: after the database was restored from a copy. Gives its name."""
        epoch = self._random.hex(16)
        await self._database.execute(
            "INSERT INTO callboard_epochs (epoch, ordinal, begins) SELECT $1, (SELECT max(ordinal) + 1 FROM callboard_epochs), seq FROM callboard_stream_head",
            epoch,
        )
        await self.open()
        return epoch

    @property
    def epoch(self) -> str:
        return self._epochs[-1][0]

    def append(self, tx: Transaction, events: list[tuple[str, str]], trace: str) -> None:
        """Puts (type, JSON text) pairs at the end of the transaction: its last statements, in the commit's own hop."""
        at = self._clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        for offset, (name, body) in enumerate(events, 1):
            tx.final.append(
                (
                    "INSERT INTO callboard_stream (seq, id, type, body, at, trace) "
                    "VALUES ((SELECT seq FROM callboard_stream_head) + $1, $2, $3, $4, $5, $6)",
                    (offset, str(self._random.uuid7()), name, body, at, trace),
                )
            )
        tx.final.append(("UPDATE callboard_stream_head SET seq = seq + $1 RETURNING seq", (len(events),)))

    def appended(self, tx: Transaction) -> Head:
        """The head after a transaction with events has committed."""
        return Head(self.epoch, tx.outcome[0]["seq"])

    async def head(self) -> Head:
        """The head, read from the database."""
        row = await self._limits()
        return Head(self.epoch, row["seq"])

    async def position(self) -> Position:
        head = await self.head()
        return Position(head.epoch, head.seq, await self._id_at(head.seq) or "")

    async def pull(self, message: Pull, ctx: Context) -> Batch:
        """Answers `Pull`, and remembers how far the caller has come."""
        limits = await self._limits()
        after, forked_at = await self._resolve(message.after, limits)
        if not message.peek:
            self._readers[ctx.caller] = after.seq
        limit = max(1, min(message.limit, 1000))
        rows = await self._database.fetch(
            "SELECT seq, id, type, body, at, trace FROM callboard_stream WHERE seq > $1 ORDER BY seq LIMIT $2", after.seq, limit
        )
        first = rows[0]["seq"] if rows else max(limits["seq"], after.seq) + 1
        if first != after.seq + 1:  # pruned since the limits were read
            if message.after.epoch:
                raise PositionPruned(self.epoch, first - 1)
            after = Position(self.epoch, first - 1)
        events: list[StreamEvent] = []
        scanned, size = after, 0
        types = set(message.types)
        for row in rows:
            if size > _BATCH_BYTES:
                break
            scanned = Position(self.epoch, row["seq"], row["id"])
            if row["type"] in types:
                size += len(row["body"])
                events.append(StreamEvent(**row))
        return Batch(tuple(events), scanned, max(limits["seq"], scanned.seq), forked_at)

    async def _resolve(self, after: Position, limits: Row) -> tuple[Position, Position | None]:
        """Where to read from, and where the asker's branch leaves ours, if it does."""
        pruned: int = limits["pruned"]
        if not after.epoch:
            return Position(self.epoch, max(pruned, after.seq)), None
        forked_at = None
        names = [epoch for epoch, _ in self._epochs]
        if after.epoch not in names:
            raise Diverged(self.epoch, limits["seq"])
        later = self._epochs[names.index(after.epoch) + 1 :]
        begins = min((begins for _, begins in later), default=None)
        if begins is not None and after.seq > begins:
            forked_at = after = Position(self.epoch, begins, await self._id_at(begins) or "")
        if after.seq > limits["seq"]:
            raise Diverged(self.epoch, limits["seq"])
        if after.seq < pruned:
            raise PositionPruned(self.epoch, pruned)
        found = await self._id_at(after.seq)
        if found is not None and after.event_id and found != after.event_id:
            raise Diverged(self.epoch, limits["seq"])
        return Position(self.epoch, after.seq, after.event_id), forked_at

    async def _id_at(self, seq: int) -> str | None:
        row = await self._database.fetch_one("SELECT id FROM callboard_stream WHERE seq = $1", seq)
        return None if row is None else row["id"]

    async def _limits(self) -> Row:
        row = await self._database.fetch_one("SELECT seq, pruned FROM callboard_stream_head")
        assert row is not None, "the migration puts it there"
        return row

    async def prune(self, *, keep_seconds: float = KEEP_SECONDS, keep_at_most: int = KEEP_AT_MOST) -> int:
        """Deletes the prefix that is old and taken by all, or beyond the hard cap. Says how many events went."""
        oldest = self._clock.timestamp() - keep_seconds
        async with self._database.transaction() as tx:
            for subscriber, seq in self._readers.items():
                await tx.execute(
                    "INSERT INTO callboard_readers (subscriber, seq) VALUES ($1, $2) ON CONFLICT (subscriber) DO UPDATE SET seq = $2",
                    subscriber,
                    seq,
                )
            limits = await tx.fetch_one("SELECT seq, pruned FROM callboard_stream_head")
            taken = await tx.fetch_one("SELECT min(seq) AS seq FROM callboard_readers")
            first_young = await tx.fetch_one("SELECT min(seq) AS seq FROM callboard_stream WHERE at >= $1", _rfc3339(oldest))
            assert limits is not None
            assert taken is not None
            assert first_young is not None
            old = limits["seq"] if first_young["seq"] is None else first_young["seq"] - 1
            upto = max(min(old, old if taken["seq"] is None else taken["seq"]), limits["seq"] - keep_at_most)
            if upto <= limits["pruned"]:
                return 0
            gone = await tx.execute("DELETE FROM callboard_stream WHERE seq <= $1", upto)
            await tx.execute("UPDATE callboard_stream_head SET pruned = $1", upto)
        return gone


def _rfc3339(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
