"""The publisher's side of durable events: numbering, hints, pruning, and restored copies."""

import asyncio
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Clock, InternalError, Random
from runtime.durable.stream import History, Position, Pull, Stream, read_history
from runtime.storage.database import Row
from runtime.storage.sqlite import SqliteDatabase
from runtime.testing import Crash
from tests.databases import ENGINES
from tests.runtime.durable.replicas import Publisher, Replicas, Subscriber, wait_until, wait_until_applied


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each database engine in turn."""
    chosen: str = request.param
    return chosen


async def test_events_are_numbered_without_gaps_in_commit_order(replicas: Replicas) -> None:
    await replicas.start(Publisher)

    async def publish(number: int) -> None:
        try:
            await replicas.publish(f"a{number}", f"b{number}", fail=number % 3 == 0)
        except InternalError:
            pass

    await asyncio.gather(*(publish(number) for number in range(60)))
    rows = await replicas.rows("publisher", "SELECT seq, body FROM callboard_stream ORDER BY seq")
    published = await replicas.rows("publisher", "SELECT word FROM published ORDER BY number")
    assert [row["seq"] for row in rows] == list(range(1, 81))
    assert [row["body"] for row in rows] == [f'{{"word":"{word}"}}' for word in published]


async def test_a_failed_transaction_publishes_no_event(replicas: Replicas) -> None:
    await replicas.start(Publisher)
    with pytest.raises(InternalError):
        await replicas.publish("never", fail=True)
    assert await replicas.rows("publisher", "SELECT * FROM callboard_stream") == []


async def test_the_heartbeat_makes_up_for_a_lost_hint(replicas: Replicas, subscriber_class: type[Subscriber]) -> None:
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish("one")
    await wait_until_applied(replicas, ["one"])
    instance = replicas.nodes["publisher"].inbound.instances["publisher"]
    publisher = instance.events
    assert publisher is not None
    original = publisher.broadcast_head

    async def lose(head: Any) -> None:
        publisher.broadcast_head = original  # type: ignore[method-assign]

    publisher.broadcast_head = lose  # type: ignore[method-assign]
    await replicas.publish("two")
    await wait_until_applied(replicas, ["one", "two"])


@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_publisher_that_crashes_before_or_after_a_commit_publishes_what_was_committed(
    replicas: Replicas, subscriber_class: type[Subscriber], place: str
) -> None:
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish("before")
    await wait_until_applied(replicas, ["before"])
    replicas.points["publisher"].arm(place)
    with pytest.raises(Crash):
        await replicas.publish("during")
    await replicas.crash("publisher")
    await replicas.start(Publisher)
    await replicas.publish("after")
    expected = ["before", "after"] if place == "before commit" else ["before", "during", "after"]
    await wait_until_applied(replicas, expected)
    assert await replicas.rows("publisher", "SELECT word FROM published ORDER BY number") == expected


async def test_a_pull_reads_no_more_than_it_answers_with(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await replicas.start(Publisher)
    await replicas.publish(*("x" * 400_000 for _ in range(6)), "(another type)", "small")
    stream, database = replicas.stream(), node.inbound.instances["publisher"].database
    unpatched = database.scan
    read: list[int] = []

    async def scan(each: Callable[[Row], bool], sql: str, *params: Any) -> None:
        def note(row: Row) -> bool:
            read.append(row["seq"])
            return each(row)

        await unpatched(note, sql, *params)

    monkeypatch.setattr(database, "scan", scan)
    position, found = Position("", 0), list[list[int]]()
    while True:
        batch = await stream.pull(Pull(position, ("publisher.WordPublished",), limit=10**9), "another")
        found.append([event.seq for event in batch.events])
        position = batch.scanned
        if position.seq == batch.head:
            break
    assert found == [[1, 2], [3, 4], [5, 6, 8]]
    assert read == [1, 2, 3, 3, 4, 5, 5, 6, 7, 8], "each pull reads one event that does not fit"


async def test_a_pull_looks_at_a_thousand_events_at_most(replicas: Replicas) -> None:
    await replicas.start(Publisher)
    await replicas.publish(*("(" for _ in range(1_001)))
    batch = await replicas.stream().pull(Pull(Position("", 0), ("publisher.WordPublished",), limit=10**9), "another")
    assert (batch.events, batch.scanned.seq, batch.head) == ((), 1_000, 1_001)


async def test_a_subscriber_stops_when_its_publisher_has_lost_events(replicas: Replicas) -> None:
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("one", "two")
    await wait_until_applied(replicas, ["one", "two"])
    await replicas.stop("publisher")
    await replicas.lose("publisher")
    await replicas.start(Publisher)
    await replicas.publish("new history")
    metrics = replicas.nodes["subscriber"].metrics
    await wait_until(lambda: metrics.value("streams_stopped_total", service="subscriber", publisher="publisher") == 1)
    assert await replicas.applied() == ["one", "two"]
    await replicas.resume(2)
    await replicas.publish("from now on")
    await wait_until_applied(replicas, ["one", "two", "from now on"])


async def test_a_subscriber_stops_when_its_last_event_has_another_id(replicas: Replicas) -> None:
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("one", "two")
    await wait_until_applied(replicas, ["one", "two"])
    await replicas.stop("publisher")
    database = replicas.database("publisher")
    await database.open()
    await database.execute("UPDATE callboard_stream SET id = 'another' WHERE seq = 2")
    await database.close()
    await replicas.start(Publisher)
    metrics = replicas.nodes["subscriber"].metrics
    await wait_until(lambda: metrics.value("streams_stopped_total", service="subscriber", publisher="publisher") == 1)


async def test_a_subscriber_moves_to_a_fork_unaided_and_reports_the_range(
    replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("one", "two")
    await wait_until_applied(replicas, ["one", "two"])
    await replicas.stop("publisher")
    database = replicas.database("publisher")
    await database.open()
    copy = (await database.fetch("SELECT * FROM callboard_stream WHERE seq = 2"))[0]
    await database.close()
    await replicas.start(Publisher)
    await replicas.publish("three", "four")
    await wait_until_applied(replicas, ["one", "two", "three", "four"])
    # restore the publisher from a copy that was made after event 2
    await replicas.stop("publisher")
    await database.open()
    await database.execute("DELETE FROM callboard_stream WHERE seq > $1", copy["seq"])
    await database.execute("UPDATE callboard_stream_head SET seq = $1", copy["seq"])
    await Stream(database, Clock(), Random(Clock()), lambda: 0).fork()
    await database.close()
    node = await replicas.start(Publisher)
    await replicas.publish("three, again")
    await wait_until_applied(replicas, ["one", "two", "three", "four", "three, again"])
    assert "its events 3 to 4 of epoch" in caplog.text
    assert node.metrics.value("events_published_total", service="publisher") == 1


async def restore(replicas: Replicas, backup: list[Row]) -> None:
    """Restore the publisher from a copy of the stream, which was made in its first epoch."""
    await replicas.stop("publisher")
    database = replicas.database("publisher")
    await database.open()
    try:
        replaced = await read_history(database)
        await database.execute("DELETE FROM callboard_stream")
        for row in backup:
            await database.execute("INSERT INTO callboard_stream VALUES ($1, $2, $3, $4, $5, $6)", *row.values())
        await database.execute("UPDATE callboard_stream_head SET seq = $1", len(backup))
        await database.execute("DELETE FROM callboard_epochs WHERE ordinal > 1")
        await Stream(database, Clock(), Random(Clock()), lambda: 0).fork(replaced)
    finally:
        await database.close()
    await replicas.start(Publisher)


async def test_a_subscriber_follows_a_publisher_that_is_restored_again_and_again(
    replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    await replicas.start(Publisher, Subscriber)
    words = ["one", "two", "three", "four"]
    await replicas.publish(*words)
    await wait_until_applied(replicas, words)
    written = await replicas.rows("publisher", "SELECT seq, id, type, body, at, trace FROM callboard_stream ORDER BY seq")
    for seq, again in ((2, []), (3, ["three"]), (1, [])):  # after its event 3 was cut off, a backup brings it back
        await restore(replicas, written[:seq])
        words += [*again, f"after {seq}"]
        await replicas.publish(words[-1])
        await wait_until_applied(replicas, words)
    assert [re.findall(r"its events (\d+) to (\d+)", line)[0] for line in caplog.messages if "was restored" in line] == [
        ("3", "4"), ("3", "3"), ("2", "4"),
    ]  # fmt: skip


async def test_a_replica_that_followed_another_one_moves_to_a_fork(replicas: Replicas) -> None:
    await replicas.start(Publisher)
    names = ["subscriber", "subscriber2"]
    for name in names:
        await replicas.start(Subscriber, name=name)
    words = [f"w{number}" for number in range(60)]
    for word in words:
        await replicas.publish(word)
    await wait_until_applied(replicas, words)

    def applied(name: str) -> float:
        return replicas.nodes[name].metrics.value("events_applied_total", service="subscriber", publisher="publisher")

    written = await replicas.rows("publisher", "SELECT seq, id, type, body, at, trace FROM callboard_stream ORDER BY seq")
    await replicas.crash(max(names, key=applied))
    await restore(replicas, written[:5])
    await replicas.publish("again")
    await wait_until_applied(replicas, [*words, "again"])


async def test_an_instance_notices_that_the_database_was_restored_while_it_ran(replicas: Replicas) -> None:
    await replicas.start(Publisher)
    await replicas.publish("one")
    stream = replicas.stream()
    before = stream.epoch
    database = replicas.database("publisher")
    await database.open()
    restored = Stream(database, Clock(), Random(Clock()), lambda: 0)
    await restored.fork()
    await database.close()
    assert before != restored.epoch
    assert (await stream.position()).epoch == restored.epoch
    assert (
        await stream.pull(Pull(Position(before, 1), ("publisher.WordPublished",)), "subscriber")
    ).scanned.epoch == restored.epoch


@given(st.data())
def test_a_position_of_any_branch_leads_to_where_the_histories_part(data: st.DataObject) -> None:
    """Histories are lists of (epoch, event). A position leads to the longest prefix that both have."""
    log: list[int] = []
    now = History((("e0", 0),), {}, 0)
    backups: list[tuple[History, list[int]]] = []
    reached: list[tuple[str, list[int]]] = [("e0", [])]
    for step in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(("append", "back up", "restore"))):
            case "append":
                log = [*log, step]
                now = now._replace(head=len(log))
            case "back up":
                backups.append((now, log))
            case "restore" if backups:
                restored, log = data.draw(st.sampled_from(backups))
                now = History(
                    (*restored.epochs, (f"e{step + 1}", restored.head)),
                    restored.branches | now.cut_off_by(restored),
                    restored.head,
                )
        reached.append((now.epochs[-1][0], log))
    for epoch, then in reached:
        common = next(
            (at for at, (one, other) in enumerate(zip(then, log, strict=False)) if one != other), min(len(then), len(log))
        )
        shared = now.shared_with(epoch)
        assert common == (len(then) if shared is None else min(shared, len(then)))


async def test_an_event_has_the_time_of_day_to_the_microsecond(replicas: Replicas) -> None:
    class Stopped(Clock):
        time = 0.0

        def timestamp(self) -> float:
            return self.time

    clock = Stopped()
    database = SqliteDatabase(replicas.folder / "times.sqlite")
    stream = Stream(database, clock, Random(clock), lambda: 1 << 20)
    for clock.time in (1.0, 1.000001, 1.5, 2.0, 2.999999, 1.25, 1_780_000_000.654321):
        async with database.transaction() as tx:
            stream.append(tx, [("publisher.WordPublished", "{}")], "")
            [(_, _, _, at, _)] = tx.appends
            tx.appends.clear()
        assert abs((datetime.fromisoformat(at) - clock.now()).total_seconds()) < 2e-6
        assert len(at) == len("2026-11-29T08:00:00.000000Z")
