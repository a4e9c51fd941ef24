"""Durable events: DESIGN section 5, point by point, with crashes before and after every commit."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime import Clock, InternalError, Random, UsageError
from runtime.durable.stream import Stream
from runtime.network import Envelope, Head
from runtime.storage import DatabaseError, Superseded
from runtime.testing import Crash
from runtime.testing.expectations import WAIT
from tests.runtime.durable.replicas import AttentiveBoard, Batcher, Board, Pair, Press, overloaded, press


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncGenerator[Pair, None]:
    made = Pair(tmp_path)
    Board.ills.clear()
    Board.ids.clear()
    try:
        yield made
    finally:
        Board.ills.clear()
        await made.close()


@pytest.fixture(params=[Board, Batcher], ids=["one by one", "batched"])
def subscriber(request: pytest.FixtureRequest) -> type[Board]:
    found: type[Board] = request.param
    return found


async def until_heard(pair: Pair, expected: list[str]) -> None:
    try:
        async with asyncio.timeout(WAIT):
            while await pair.heard() != expected:
                await asyncio.sleep(0.01)
    except TimeoutError:
        assert await pair.heard() == expected


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.005)


def forge(pair: Pair, body: bytes) -> None:
    """A hint as it comes from the network, whoever sent it."""
    pair.nodes["board"].inbound.receive(Envelope("head", "forged", "press.head", body, "press"), "board")


WORDS = [f"w{number}" for number in range(40)]


# Append


async def test_events_are_numbered_without_gaps_in_commit_order(pair: Pair) -> None:
    await pair.start(Press)

    async def say(number: int) -> None:
        try:
            await pair.say(f"a{number}", f"b{number}", fail=number % 3 == 0)
        except InternalError:
            pass

    await asyncio.gather(*(say(number) for number in range(60)))
    rows = await pair.rows("press", "SELECT seq, body FROM callboard_stream ORDER BY seq")
    said = await pair.rows("press", "SELECT word FROM said ORDER BY rowid")
    assert [row["seq"] for row in rows] == list(range(1, 81))
    assert [row["body"] for row in rows] == [f'{{"word":"{word}"}}' for word in said]


async def test_an_event_of_a_failed_transaction_does_not_exist(pair: Pair) -> None:
    await pair.start(Press)
    with pytest.raises(InternalError):
        await pair.say("never", fail=True)
    assert await pair.rows("press", "SELECT * FROM callboard_stream") == []


# Hint, pull, apply


async def test_every_event_is_applied_once_and_in_order(pair: Pair, subscriber: type[Board]) -> None:
    await pair.start(Press, subscriber)
    for word in WORDS:
        await pair.say(word)
    await until_heard(pair, WORDS)


async def test_events_lead_to_events(pair: Pair, subscriber: type[Board]) -> None:
    await pair.start(Press, subscriber)
    await pair.say(*WORDS)
    await until_heard(pair, WORDS)
    bodies = await pair.rows("board", "SELECT body FROM callboard_stream ORDER BY seq")
    assert bodies == [f'{{"word":"{word}"}}' for word in WORDS]


async def test_what_was_said_while_nobody_listened_is_heard_later(pair: Pair, subscriber: type[Board]) -> None:
    await pair.start(Press)
    await pair.say(*WORDS)
    await pair.start(subscriber)
    await until_heard(pair, WORDS)


async def test_a_subscriber_that_starts_first_waits_for_its_publisher(pair: Pair, subscriber: type[Board]) -> None:
    await pair.start(subscriber)
    await pair.start(Press)
    await pair.say("first")
    await until_heard(pair, ["first"])


async def test_a_lost_hint_is_made_up_for_by_the_heartbeat(pair: Pair, subscriber: type[Board]) -> None:
    await pair.start(Press, subscriber)
    await pair.say("one")
    await until_heard(pair, ["one"])
    publisher = pair.nodes["press"].inbound.instances["press"].events
    assert publisher is not None
    told = publisher.broadcast_head

    async def deaf(head: Any) -> None:
        publisher.broadcast_head = told  # type: ignore[method-assign]

    publisher.broadcast_head = deaf  # type: ignore[method-assign]
    await pair.say("two")
    await until_heard(pair, ["one", "two"])


async def test_a_forged_hint_costs_a_pull_and_nothing_else(pair: Pair, subscriber: type[Board]) -> None:
    await pair.start(Press, subscriber)
    await pair.say("one")
    await until_heard(pair, ["one"])
    for head in (Head("nonsense", 10**15), Head(pair.stream().epoch, -5), Head(pair.stream().epoch, 10**15)):
        forge(pair, msgspec.json.encode(head))
    forge(pair, b"garbage")
    assert pair.nodes["board"].metrics.value("hints_malformed_total") == 1
    await pair.say("two")
    await until_heard(pair, ["one", "two"])


async def test_types_that_are_not_taken_are_passed_over(pair: Pair, subscriber: type[Board]) -> None:
    await pair.start(Press, subscriber)
    await pair.say("loud", "(soft)", "(softer)")
    await until_heard(pair, ["loud"])
    await pair.say("(soft again)")

    async def at_head() -> bool:
        return (await pair.subscription().position()).seq == 4

    async with asyncio.timeout(WAIT):
        while not await at_head():
            await asyncio.sleep(0.01)
    await pair.say("loud again")
    await until_heard(pair, ["loud", "loud again"])


async def test_two_replicas_on_one_database_apply_each_event_once(pair: Pair, subscriber: type[Board]) -> None:
    await pair.start(Press)
    await pair.start(subscriber, name="board")
    await pair.start(subscriber, name="board2")
    for word in WORDS:
        await pair.say(word)
    await until_heard(pair, WORDS)
    await asyncio.sleep(0.05)
    assert await pair.heard() == WORDS


# Crashes


@pytest.mark.parametrize("skip", [0, 1, 5])
@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_subscriber_that_crashes_around_a_commit(pair: Pair, subscriber: type[Board], place: str, skip: int) -> None:
    await pair.start(Press, subscriber)
    await pair.say("warm-up")
    await until_heard(pair, ["warm-up"])
    pair.points["board"].arm(place, skip=skip)
    said = ["warm-up"]
    while not pair.nodes["board"].crashed:
        said.append(f"w{len(said)}")
        await pair.say(said[-1])
        await asyncio.sleep(0.005)
    await pair.crash("board")
    await pair.start(subscriber)
    await until_heard(pair, said)
    bodies = await pair.rows("board", "SELECT body FROM callboard_stream ORDER BY seq")
    assert bodies == [f'{{"word":"{word}"}}' for word in said]


@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_publisher_that_crashes_around_a_commit(pair: Pair, subscriber: type[Board], place: str) -> None:
    await pair.start(Press, subscriber)
    await pair.say("before")
    await until_heard(pair, ["before"])
    pair.points["press"].arm(place)
    with pytest.raises(Crash):
        await pair.say("while")
    await pair.crash("press")
    await pair.start(Press)
    await pair.say("after")
    expected = ["before", "after"] if place == "before commit" else ["before", "while", "after"]
    await until_heard(pair, expected)
    assert await pair.rows("press", "SELECT word FROM said ORDER BY rowid") == expected


# Fail


async def test_a_transient_error_waits_and_never_counts(pair: Pair, subscriber: type[Board]) -> None:
    Board.ills["sick"] = overloaded
    await pair.start(Press, subscriber)
    await pair.say("sick", "well")
    metrics = pair.nodes["board"].metrics
    await until(lambda: metrics.value("stream_retries_total", service="board", publisher="press") >= 5)
    assert await pair.heard() == []
    assert await pair.rows("board", "SELECT * FROM callboard_attempts") == []
    Board.ills.clear()
    pair.subscription().hint()
    await until_heard(pair, ["sick", "well"])


async def test_a_database_error_waits_and_never_counts(pair: Pair, subscriber: type[Board]) -> None:
    Board.ills["sick"] = lambda: DatabaseError("disk full")
    await pair.start(Press, subscriber)
    await pair.say("sick")
    await until(lambda: pair.nodes["board"].metrics.value("stream_retries_total", service="board", publisher="press") >= 5)
    assert await pair.rows("board", "SELECT * FROM callboard_attempts") == []
    Board.ills.clear()
    pair.subscription().hint()
    await until_heard(pair, ["sick"])


async def test_an_event_that_keeps_failing_becomes_a_dead_letter(pair: Pair, subscriber: type[Board]) -> None:
    Board.ills["poison"] = lambda: ValueError("cannot digest this")
    await pair.start(Press, subscriber)
    await pair.say("a", "poison", "b")
    await until_heard(pair, ["a", "b"])
    [letter] = await pair.subscription().dead_letters.all()
    assert (letter.type, letter.body, letter.attempts, letter.seq) == ("press.Said", '{"word":"poison"}', 3, 2)
    assert "cannot digest this" in letter.error
    assert pair.nodes["board"].metrics.value("dead_letters_total", service="board", publisher="press") == 1
    with pytest.raises(ValueError, match="digest"):
        await pair.subscription().dead_letters.retry(letter)
    assert len(await pair.subscription().dead_letters.all()) == 1
    Board.ills.clear()
    await pair.subscription().dead_letters.retry(letter)
    assert await pair.heard() == ["a", "b", "poison"]
    assert await pair.subscription().dead_letters.all() == []
    with pytest.raises(Superseded):
        await pair.subscription().dead_letters.retry(letter)


async def test_the_message_id_is_the_same_at_every_attempt(pair: Pair) -> None:
    Board.ills["poison"] = lambda: ValueError("cannot digest this")
    await pair.start(Press, Board)
    await pair.say("poison", "b")
    await until_heard(pair, ["b"])
    ids = [message_id for word, message_id in Board.ids if word == "poison"]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert ids[0] == (await pair.subscription().dead_letters.all())[0].event_id


async def test_attempts_are_counted_across_restarts(pair: Pair) -> None:
    Board.ills["poison"] = lambda: ValueError("cannot digest this")
    await pair.start(Press, Board)
    await pair.say("poison")

    async def attempts() -> int:
        rows = await pair.rows("board", "SELECT attempts FROM callboard_attempts")
        return rows[0] if rows else 0

    async with asyncio.timeout(WAIT):
        while await attempts() < 1:
            await asyncio.sleep(0.005)
    await pair.crash("board")
    before = await attempts()
    assert 1 <= before < 3
    await pair.start(Board)
    await pair.say("b")
    await until_heard(pair, ["b"])
    [letter] = await pair.subscription().dead_letters.all()
    assert letter.attempts == 3


# Keep


async def test_only_what_all_have_taken_and_is_old_is_pruned(pair: Pair) -> None:
    await pair.start(Press, Board)
    await pair.say(*WORDS)
    await until_heard(pair, WORDS)
    await pair.say("(a last one, to be pulled past)")
    await until(lambda: pair.stream()._readers.get("board", 0) >= 40)  # pyright: ignore[reportPrivateUsage]
    assert await pair.stream().prune() == 0, "they are young"
    await pair.stop("board")
    await pair.say("not taken")
    assert await pair.stream().prune(keep_seconds=-1) == 40
    assert await pair.rows("press", "SELECT count(*) FROM callboard_stream") == [2]
    await pair.start(Board)
    await until_heard(pair, [*WORDS, "not taken"])


async def test_the_hard_cap_prunes_what_somebody_has_not_taken_and_that_is_told(pair: Pair) -> None:
    await pair.start(Press, Board)
    await pair.say("one")
    await until_heard(pair, ["one"])
    await pair.stop("board")
    await pair.say(*WORDS)
    assert await pair.stream().prune(keep_at_most=10) == 31
    await pair.start(Board)
    metrics = pair.nodes["board"].metrics
    await until(lambda: metrics.value("streams_stopped_total", service="board", publisher="press") == 1)
    [reason] = await pair.rows("board", "SELECT stopped FROM callboard_cursors")
    assert reason == "press has pruned events 2 to 31 that were not applied yet"
    await pair.say("still stopped")
    assert await pair.heard() == ["one"]
    await pair.subscription().resume()
    await until_heard(pair, ["one", *WORDS[30:], "still stopped"])


# Diverged, and forks


async def test_a_publisher_that_lost_events_is_noticed(pair: Pair) -> None:
    await pair.start(Press, Board)
    await pair.say("one", "two")
    await until_heard(pair, ["one", "two"])
    await pair.stop("press")
    for name in ("press.sqlite", "press.sqlite-wal", "press.sqlite-shm"):
        (pair.folder / name).unlink(missing_ok=True)
    await pair.start(Press)
    await pair.say("new history")
    metrics = pair.nodes["board"].metrics
    await until(lambda: metrics.value("streams_stopped_total", service="board", publisher="press") == 1)
    assert await pair.heard() == ["one", "two"]
    await pair.subscription().resume(skip=True)
    await pair.say("from now on")
    await until_heard(pair, ["one", "two", "from now on"])


async def test_the_same_number_with_another_id_is_another_history(pair: Pair) -> None:
    await pair.start(Press, Board)
    await pair.say("one", "two")
    await until_heard(pair, ["one", "two"])
    await pair.stop("press")
    database = pair.database("press")
    await database.open()
    await database.execute("UPDATE callboard_stream SET id = 'another' WHERE seq = 2")
    await database.close()
    await pair.start(Press)
    metrics = pair.nodes["board"].metrics
    await until(lambda: metrics.value("streams_stopped_total", service="board", publisher="press") == 1)


async def test_subscribers_move_to_a_fork_by_themselves(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    await pair.start(Press, Board)
    await pair.say("one", "two")
    await until_heard(pair, ["one", "two"])
    await pair.stop("press")
    database = pair.database("press")
    await database.open()
    copy = (await database.fetch("SELECT * FROM callboard_stream WHERE seq = 2"))[0]
    await database.close()
    await pair.start(Press)
    await pair.say("three", "four")
    await until_heard(pair, ["one", "two", "three", "four"])
    # the publisher comes back from a copy that was made after event 2
    await pair.stop("press")
    await database.open()
    await database.execute("DELETE FROM callboard_stream WHERE seq > $1", copy["seq"])
    await database.execute("UPDATE callboard_stream_head SET seq = $1", copy["seq"])
    await Stream(database, Clock(), Random(Clock())).fork()
    await database.close()
    node = await pair.start(Press)
    await pair.say("three, again")
    await until_heard(pair, ["one", "two", "three", "four", "three, again"])
    assert "its events 3 to 4 of epoch" in caplog.text
    assert node.metrics.value("events_published_total", service="press") == 1


# Start


async def test_a_newly_taken_type_begins_now(pair: Pair) -> None:
    await pair.start(Press, Board)
    await pair.say("(missed)", "heard")
    await until_heard(pair, ["heard"])
    await pair.stop("board")
    await pair.say("(missed too)", "heard too")
    await pair.start(AttentiveBoard)
    await until_heard(pair, ["heard", "heard too"])
    await pair.say("(now taken)")
    await until_heard(pair, ["heard", "heard too", "(now taken)"])


async def test_an_older_replica_stands_down(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    await pair.start(Press, AttentiveBoard)
    await pair.say("one", "(two)")
    await until_heard(pair, ["one", "(two)"])
    await pair.stop("board")
    await pair.start(Board)
    await pair.say("three", "(four)")
    await until(lambda: "stands down: a newer version of this service also takes press.Whispered" in caplog.text)
    assert await pair.heard() == ["one", "(two)"]
    await pair.start(AttentiveBoard, name="newer")
    await until_heard(pair, ["one", "(two)", "three", "(four)"])


# Caught up


async def test_caught_up_says_whether_all_that_was_committed_is_applied(pair: Pair) -> None:
    await pair.start(Press, Board)
    await pair.say("one")
    await until_heard(pair, ["one"])
    ctx = pair.nodes["board"].inbound.instances["board"].context()

    async def caught_up() -> bool:
        return await ctx.caught_up(press)

    async with asyncio.timeout(WAIT):
        while not await caught_up():
            await asyncio.sleep(0.01)
    Board.ills["sick"] = overloaded
    await pair.say("sick")
    assert not await caught_up()
    Board.ills.clear()
    async with asyncio.timeout(WAIT):
        while not await caught_up():
            await asyncio.sleep(0.01)
    assert await pair.heard() == ["one", "sick"]


async def test_caught_up_with_somebody_who_is_not_listened_to(pair: Pair) -> None:
    await pair.start(Press)
    ctx = pair.nodes["press"].inbound.instances["press"].context()
    with pytest.raises(UsageError, match="nothing to catch up with"):
        await ctx.caught_up(press)
