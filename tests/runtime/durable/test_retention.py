"""What a stream retains, and for whom."""

import logging
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest

from runtime import ManualClock
from runtime.durable.retention import FORGET_SECONDS, KEEP_SECONDS, Retention
from runtime.storage.migrations import SCHEMA, migrate
from runtime.storage.pruning import STEP
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import CrashingDatabase, CrashPoints, eventually
from tests.runtime.durable.replicas import WORDS, Publisher, Replicas, Subscriber, wait_until, wait_until_applied

LOG = logging.getLogger("test")


class TwoFacedClock(ManualClock):
    """A clock whose two times move only when a test moves them."""

    uptime = 1_000.0

    def monotonic(self) -> float:
        return self.uptime


class Shelf:
    """The retention of a stream that is filled by hand."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.points = CrashPoints()
        self.database = CrashingDatabase(database, self.points)
        self.clock = TwoFacedClock()
        self.retention = Retention(self.database, self.clock)

    async def write(self, events: int) -> None:
        """Append events, as of now."""
        await self.database.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) "
            "INSERT INTO callboard_stream SELECT (SELECT seq FROM callboard_stream_head) + i, 'id', 't', '{}', $2, '' FROM n",
            events,
            self.clock.now(),
        )
        await self.database.execute("UPDATE callboard_stream_head SET seq = seq + $1", events)

    def advance(self, seconds: float) -> None:
        """Let both times pass."""
        self.clock.uptime += seconds
        self.clock.advance(timedelta(seconds=seconds))


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncGenerator[Shelf, None]:
    database = SqliteDatabase(tmp_path / "publisher.sqlite", durable=False)
    await database.open()
    await migrate(database, SCHEMA, "callboard")
    yield Shelf(database)
    await database.close()


async def test_only_old_events_that_every_subscriber_has_applied_are_pruned(replicas: Replicas) -> None:
    await replicas.start(Publisher, Subscriber)
    await replicas.publish(*WORDS)
    await wait_until_applied(replicas, WORDS)
    await replicas.publish("(moves the cursor)")
    retention = replicas.stream().retention

    async def has_applied_all() -> bool:
        assert await retention.prune(LOG) == 0, "young events are kept"
        return any(known.seq == 41 for known in await retention.subscribers())

    await eventually(has_applied_all, "the publisher knows what its subscriber has applied")
    await replicas.stop("subscriber")
    await replicas.publish("not applied")
    assert await retention.prune(LOG, keep_seconds=-1) == 41
    assert await replicas.rows("publisher", "SELECT count(*) FROM callboard_stream") == [1]
    await replicas.start(Subscriber)
    await wait_until_applied(replicas, [*WORDS, "not applied"])


async def test_a_subscriber_whose_events_the_hard_cap_has_pruned_stops_and_reports_the_range(replicas: Replicas) -> None:
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("one")
    await wait_until_applied(replicas, ["one"])
    await replicas.stop("subscriber")
    await replicas.publish(*WORDS)
    assert await replicas.stream().retention.prune(LOG, keep_at_most=10) == 31
    await replicas.start(Subscriber)
    metrics = replicas.nodes["subscriber"].metrics
    await wait_until(lambda: metrics.value("streams_stopped_total", service="subscriber", publisher="publisher") == 1)
    [reason] = await replicas.rows("subscriber", "SELECT stopped FROM callboard_cursors")
    assert reason == "publisher has pruned events 2 to 31 that were not applied yet"
    await replicas.publish("still stopped")
    assert await replicas.applied() == ["one"]
    await replicas.resume()
    await wait_until_applied(replicas, ["one", *WORDS[30:], "still stopped"])


async def test_a_subscriber_that_was_removed_is_shown_and_can_be_forgotten(shelf: Shelf) -> None:
    await shelf.write(3)
    shelf.retention.pulled("removed", 1)
    await shelf.retention.prune(LOG)
    for _ in range(2):
        shelf.advance(KEEP_SECONDS)
        shelf.retention.pulled("there", 3)
        await shelf.retention.prune(LOG)
    first, second = await shelf.retention.subscribers()
    assert (first.subscriber, first.seq, first.silent) == ("removed", 1, 2 * KEEP_SECONDS)
    assert (second.subscriber, second.seq, second.silent) == ("there", 3, 0)
    assert await shelf.database.fetch("SELECT seq FROM callboard_stream") == [{"seq": 2}, {"seq": 3}]
    assert await shelf.retention.forget("removed")
    assert not await shelf.retention.forget("removed")
    assert await shelf.retention.prune(LOG) == 2


async def test_a_subscriber_is_forgotten_at_the_hard_age(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    await shelf.write(3)
    shelf.retention.pulled("removed", 1)
    await shelf.retention.prune(LOG)
    shelf.advance(FORGET_SECONDS)
    assert await shelf.retention.prune(LOG) == 1
    shelf.advance(60)
    assert await shelf.retention.prune(LOG) == 2
    [said] = [record.getMessage() for record in caplog.records]
    assert said == "removed has not pulled the stream for 30 days, and is forgotten: events after 1 are no longer kept for it"


@pytest.mark.parametrize("leap", [timedelta(days=400), timedelta(days=-400)], ids=["ahead", "back"])
async def test_no_change_of_the_time_of_day_forgets_a_subscriber(shelf: Shelf, leap: timedelta) -> None:
    await shelf.write(1)
    shelf.retention.pulled("away", 0)
    await shelf.retention.prune(LOG)
    shelf.clock.advance(leap)
    shelf.clock.uptime += 60
    assert await shelf.retention.prune(LOG) == 0
    assert [known.silent for known in await shelf.retention.subscribers()] == [60]


@pytest.mark.parametrize("leap", [timedelta(days=365), -timedelta(days=365)], ids=str)
async def test_no_change_of_the_time_of_day_makes_an_event_old(shelf: Shelf, leap: timedelta) -> None:
    await shelf.write(3)
    assert await shelf.retention.prune(LOG) == 0
    shelf.clock.leap(leap)
    await shelf.write(3)
    assert await shelf.retention.prune(LOG) == 0
    shelf.clock.leap(-leap)
    await shelf.write(3)
    shelf.advance(KEEP_SECONDS - 60)
    assert await shelf.retention.prune(LOG) == 0
    shelf.advance(120)
    assert await shelf.retention.prune(LOG) == 9


async def test_an_event_from_the_future_keeps_nothing_after_it(shelf: Shelf) -> None:
    await shelf.write(2)
    shelf.clock.advance(timedelta(days=365))
    await shelf.write(2 * STEP)
    shelf.clock.advance(timedelta(days=-365))
    await shelf.write(2)
    assert await shelf.retention.prune(LOG) == 0
    shelf.advance(KEEP_SECONDS + 1)
    await shelf.write(1)
    assert await shelf.retention.prune(LOG) == 2 * STEP + 4


@pytest.mark.parametrize("reason", ["old", "capped"])
async def test_old_events_are_deleted_in_steps(shelf: Shelf, reason: str) -> None:
    await shelf.write(2 * STEP + 1)
    shelf.advance(KEEP_SECONDS + 1 if reason == "old" else 0)
    before = len(shelf.points.reached)
    assert await shelf.retention.prune(LOG, keep_at_most=0 if reason == "capped" else 10**6) == 2 * STEP + 1
    assert len(shelf.points.reached) - before >= 2 * (1 + 3), (
        "one transaction for the subscribers, and at least three that delete"
    )
