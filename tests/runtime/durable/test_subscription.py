"""The subscriber's side of durable events: applying, retries, dead letters, and new versions."""

import asyncio
import contextvars
from collections.abc import Callable

import msgspec
import pytest

from runtime import Context, DeadlineExceeded, Transaction, UsageError, subscribes
from runtime.network import Envelope, Head
from runtime.storage import DatabaseError
from runtime.testing.expectations import WAIT
from tests.runtime.durable.replicas import (
    APPLY,
    WORDS,
    BatchingSubscriber,
    NewerSubscriber,
    Publisher,
    Replicas,
    Subscriber,
    WordPublished,
    overloaded,
    publisher,
    wait_until,
    wait_until_applied,
)


def deliver_hint(replicas: Replicas, body: bytes) -> None:
    """Deliver a hint to the subscriber as if it came from the network."""
    replicas.nodes["subscriber"].inbound.receive(Envelope("head", "forged", "publisher.head", body, "publisher"), "subscriber")


async def test_every_event_is_applied_exactly_once_and_in_order(replicas: Replicas, subscriber_class: type[Subscriber]) -> None:
    await replicas.start(Publisher, subscriber_class)
    for word in WORDS:
        await replicas.publish(word)
    await wait_until_applied(replicas, WORDS)


async def test_applying_an_event_may_publish_another_event(replicas: Replicas, subscriber_class: type[Subscriber]) -> None:
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish(*WORDS)
    await wait_until_applied(replicas, WORDS)
    bodies = await replicas.rows("subscriber", "SELECT body FROM callboard_stream ORDER BY seq")
    assert bodies == [f'{{"word":"{word}"}}' for word in WORDS]


async def test_a_new_subscription_begins_at_the_oldest_event_kept(replicas: Replicas, subscriber_class: type[Subscriber]) -> None:
    await replicas.start(Publisher)
    await replicas.publish(*WORDS)
    await replicas.start(subscriber_class)
    await wait_until_applied(replicas, WORDS)


async def test_a_subscriber_that_starts_first_waits_for_its_publisher(
    replicas: Replicas, subscriber_class: type[Subscriber]
) -> None:
    await replicas.start(subscriber_class)
    await replicas.start(Publisher)
    await replicas.publish("first")
    await wait_until_applied(replicas, ["first"])


async def test_a_forged_hint_costs_one_pull_and_nothing_else(replicas: Replicas, subscriber_class: type[Subscriber]) -> None:
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish("one")
    await wait_until_applied(replicas, ["one"])
    for head in (Head("nonsense", 10**15), Head(replicas.stream().epoch, -5), Head(replicas.stream().epoch, 10**15)):
        deliver_hint(replicas, msgspec.json.encode(head))
    deliver_hint(replicas, b"garbage")
    assert replicas.nodes["subscriber"].metrics.value("hints_malformed_total") == 1
    await replicas.publish("two")
    await wait_until_applied(replicas, ["one", "two"])


async def test_the_cursor_moves_past_types_that_the_subscriber_does_not_take(
    replicas: Replicas, subscriber_class: type[Subscriber]
) -> None:
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish("taken", "(not taken)", "(not taken either)")
    await wait_until_applied(replicas, ["taken"])
    await replicas.publish("(not taken again)")

    async def at_head() -> bool:
        return (await replicas.subscription().position()).seq == 4

    async with asyncio.timeout(WAIT):
        while not await at_head():
            await asyncio.sleep(0.01)
    await replicas.publish("taken again")
    await wait_until_applied(replicas, ["taken", "taken again"])


async def test_two_replicas_on_one_database_apply_each_event_once(replicas: Replicas, subscriber_class: type[Subscriber]) -> None:
    await replicas.start(Publisher)
    await replicas.start(subscriber_class, name="subscriber")
    await replicas.start(subscriber_class, name="subscriber2")
    for word in WORDS:
        await replicas.publish(word)
    await wait_until_applied(replicas, WORDS)
    await asyncio.sleep(0.05)
    assert await replicas.applied() == WORDS


async def test_another_replica_takes_over_when_the_one_that_applies_the_events_is_lost(
    replicas: Replicas, subscriber_class: type[Subscriber]
) -> None:
    await replicas.start(Publisher)
    names = ["subscriber", "subscriber2"]
    for name in names:
        await replicas.start(subscriber_class, name=name)

    def applied(name: str) -> float:
        return replicas.nodes[name].metrics.value("events_applied_total", service="subscriber", publisher="publisher")

    words = [f"w{number}" for number in range(60)]
    for word in words:
        await replicas.publish(word)
    await wait_until_applied(replicas, words)
    leader = max(names, key=applied)
    await replicas.crash(leader)
    await replicas.publish("taken over")
    await wait_until_applied(replicas, [*words, "taken over"])


@pytest.mark.parametrize("skip", [0, 1, 5])
@pytest.mark.parametrize("place", ["before commit", "after commit"])
async def test_a_subscriber_that_crashes_before_or_after_a_commit_applies_each_event_once(
    replicas: Replicas, subscriber_class: type[Subscriber], place: str, skip: int
) -> None:
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish("warm-up")
    await wait_until_applied(replicas, ["warm-up"])
    replicas.points["subscriber"].arm(place, skip=skip)
    published = ["warm-up"]
    while not replicas.nodes["subscriber"].crashed:
        published.append(f"w{len(published)}")
        await replicas.publish(published[-1])
        await asyncio.sleep(0.005)
    await replicas.crash("subscriber")
    await replicas.start(subscriber_class)
    await wait_until_applied(replicas, published)
    bodies = await replicas.rows("subscriber", "SELECT body FROM callboard_stream ORDER BY seq")
    assert bodies == [f'{{"word":"{word}"}}' for word in published]


TRANSIENT: dict[str, Callable[[], BaseException]] = {
    "retryable": overloaded,
    "database": lambda: DatabaseError("disk full"),
    "deadline": lambda: DeadlineExceeded("subscriber"),
    "timeout": TimeoutError,
    "task group": lambda: ExceptionGroup("", [TimeoutError(), overloaded()]),
}


@pytest.mark.parametrize("kind", TRANSIENT)
async def test_an_error_that_says_nothing_about_the_event_delays_it_and_counts_no_attempt(
    replicas: Replicas, subscriber_class: type[Subscriber], kind: str
) -> None:
    Subscriber.failures["retry"] = TRANSIENT[kind]
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish("retry", "next")
    metrics = replicas.nodes["subscriber"].metrics
    await wait_until(lambda: metrics.value("stream_retries_total", service="subscriber", publisher="publisher") >= 5)
    assert await replicas.applied() == []
    assert await replicas.rows("subscriber", "SELECT * FROM callboard_attempts") == []
    Subscriber.failures.clear()
    replicas.subscription().hint()
    await wait_until_applied(replicas, ["retry", "next"])


async def test_a_newly_taken_type_begins_with_the_next_event(replicas: Replicas) -> None:
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("(missed)", "applied")
    await wait_until_applied(replicas, ["applied"])
    await replicas.stop("subscriber")
    await replicas.publish("(missed too)", "applied too")
    await replicas.start(NewerSubscriber)
    await wait_until_applied(replicas, ["applied", "applied too"])
    await replicas.publish("(now taken)")
    await wait_until_applied(replicas, ["applied", "applied too", "(now taken)"])


async def test_an_older_replica_stops_applying_events(replicas: Replicas, caplog: pytest.LogCaptureFixture) -> None:
    await replicas.start(Publisher, NewerSubscriber)
    await replicas.publish("one", "(two)")
    await wait_until_applied(replicas, ["one", "(two)"])
    await replicas.stop("subscriber")
    await replicas.start(Subscriber)
    await replicas.publish("three", "(four)")
    await wait_until(lambda: "stands down: a newer version of this service also takes publisher.AsidePublished" in caplog.text)
    assert await replicas.applied() == ["one", "(two)"]
    await replicas.start(NewerSubscriber, name="newer")
    await wait_until_applied(replicas, ["one", "(two)", "three", "(four)"])


async def test_caught_up_returns_whether_all_committed_events_are_applied(replicas: Replicas) -> None:
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("one")
    await wait_until_applied(replicas, ["one"])
    ctx = replicas.nodes["subscriber"].inbound.instances["subscriber"].context()

    async def caught_up() -> bool:
        return await ctx.caught_up(publisher)

    async with asyncio.timeout(WAIT):
        while not await caught_up():
            await asyncio.sleep(0.01)
    Subscriber.failures["retry"] = overloaded
    await replicas.publish("retry")
    assert not await caught_up()
    Subscriber.failures.clear()
    async with asyncio.timeout(WAIT):
        while not await caught_up():
            await asyncio.sleep(0.01)
    assert await replicas.applied() == ["one", "retry"]


async def test_caught_up_refuses_a_service_that_is_not_subscribed_to(replicas: Replicas) -> None:
    await replicas.start(Publisher)
    ctx = replicas.nodes["publisher"].inbound.instances["publisher"].context()
    with pytest.raises(UsageError, match="nothing to catch up with"):
        await ctx.caught_up(publisher)


async def test_the_state_is_shown(replicas: Replicas) -> None:
    """From waiting for a publisher that does not exist yet, to a stop that an operator has to end."""
    await replicas.start(Subscriber)
    subscription = replicas.subscription()
    await wait_until(lambda: "[BACKING_OFF]" in repr(subscription))
    await replicas.start(Publisher)
    await replicas.publish("one")
    await wait_until_applied(replicas, ["one"])
    await wait_until(lambda: "[WAITING]" in repr(subscription))
    database = replicas.nodes["publisher"].inbound.instances["publisher"].database
    await database.execute("UPDATE callboard_epochs SET epoch = 'unknown'")
    await replicas.stop("publisher")
    await replicas.start(Publisher)
    subscription.hint()
    await wait_until(lambda: "[STOPPED: publisher does not know event 1" in repr(subscription))
    await replicas.resume()
    await wait_until(lambda: "[WAITING]" in repr(subscription))


async def test_an_older_replica_shows_that_it_stands_by(replicas: Replicas) -> None:
    await replicas.start(Publisher, NewerSubscriber)
    await wait_until(lambda: "[WAITING]" in repr(replicas.subscription()))
    await replicas.stop("subscriber")
    await replicas.start(Subscriber)
    await wait_until(lambda: "[STANDBY: publisher.AsidePublished]" in repr(replicas.subscription()))


class Busy(BatchingSubscriber):
    """Another write waits for the database while it applies the third word."""

    @subscribes
    async def on_word_published(self, event: WordPublished, ctx: Context, tx: Transaction) -> None:
        await super().on_word_published(event, ctx, tx)
        if event.word == WORDS[2]:
            own = self.db.execute(APPLY, "own")
            self.own = contextvars.Context().run(asyncio.create_task, own)
            await wait_until(lambda: self.db.contended)


async def test_a_batch_ends_when_someone_waits_for_the_writer(replicas: Replicas) -> None:
    await replicas.start(Publisher)
    await replicas.publish(*WORDS)
    await replicas.start(Busy)
    await wait_until_applied(replicas, [*WORDS[:3], "own", *WORDS[3:]])
    assert await replicas.rows("subscriber", "SELECT seq FROM callboard_cursors") == [len(WORDS)]


@pytest.mark.parametrize(("seconds", "transactions"), [(0.0, len(WORDS)), (WAIT, 1)], ids=["slow events", "quick events"])
async def test_a_batch_ends_after_a_while_and_keeps_what_is_done(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch, seconds: float, transactions: int
) -> None:
    monkeypatch.setattr("runtime.execution.event_endpoint.BATCH_SECONDS", seconds)
    await replicas.start(Publisher)
    await replicas.publish(*WORDS)
    await replicas.start(BatchingSubscriber)
    await wait_until_applied(replicas, WORDS)
    heads = await replicas.rows("subscriber", "SELECT count(DISTINCT at) FROM callboard_stream")
    assert heads == [transactions], "the events that a transaction publishes have one time"
    assert await replicas.rows("subscriber", "SELECT epoch, seq, event_id FROM callboard_cursors") == await replicas.rows(
        "publisher",
        "SELECT (SELECT epoch FROM callboard_epochs) AS epoch, seq, id AS event_id FROM callboard_stream WHERE seq = 40",
    )


async def test_what_a_batch_has_committed_stays_if_a_later_event_hangs(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.execution.event_endpoint.BATCH_SECONDS", 0.0)
    replicas.settings = msgspec.structs.replace(replicas.settings, request_timeout=60.0)
    hanging = asyncio.Event()

    class Hanging(BatchingSubscriber):
        @subscribes
        async def on_word_published(self, event: WordPublished, ctx: Context, tx: Transaction) -> None:
            if event.word == "hang":
                hanging.set()
                await asyncio.Event().wait()
            await super().on_word_published(event, ctx, tx)

    await replicas.start(Publisher)
    await replicas.publish(*WORDS, "hang", "behind")
    await replicas.start(Hanging)
    await asyncio.wait_for(hanging.wait(), WAIT)
    assert await replicas.applied() == WORDS
    await replicas.crash("subscriber")
