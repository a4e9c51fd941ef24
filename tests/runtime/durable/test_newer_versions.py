"""Events that only a newer version of the subscriber can decode or take."""

from enum import Enum

import pytest

from runtime import Context, Contract, Event, Transaction, subscribes
from runtime.durable.cursor import Cursors, digest_of
from tests.runtime.durable.replicas import (
    APPLY,
    BatchingSubscriber,
    NewerSubscriber,
    Publisher,
    Replicas,
    Subscriber,
    wait_until,
    wait_until_applied,
)
from tests.runtime.durable.replicas import WordPublished as NewerWordPublished

older = Contract("publisher")


class Word(Enum):
    A = "a"
    B = "b"


@older.message
class WordPublished(Event):
    """The event as an older version of the publisher's contract has it, with fewer words."""

    word: Word


class OlderSubscriber(BatchingSubscriber):
    """An older version of the subscriber, which knows two words."""

    @subscribes(attempts=3)
    async def on_word_published(self, event: WordPublished, ctx: Context, tx: Transaction) -> None:  # type: ignore[override]
        await tx.execute(APPLY, event.word)


class OlderSubscriberOneByOne(OlderSubscriber):
    """It calls its publisher, so that each event has its own transaction."""

    calls = (older,)  # type: ignore[assignment]


def blocked(replicas: Replicas, name: str = "subscriber") -> float:
    return replicas.nodes[name].metrics.value("subscription_blocked", service="subscriber", publisher="publisher")


async def accept(replicas: Replicas, version: type[Subscriber]) -> bool:
    """Let this version continue, as `callboard resume subscriber publisher --known-types` does."""
    database = replicas.database("subscriber")
    await database.open()
    try:
        return await Cursors("publisher", database).accept(digest_of(version.definition.events_of("publisher")))
    finally:
        await database.close()


@pytest.mark.parametrize("version", [OlderSubscriber, OlderSubscriberOneByOne])
async def test_an_event_that_this_version_cannot_decode_waits_for_a_newer_one(
    replicas: Replicas, version: type[Subscriber], caplog: pytest.LogCaptureFixture
) -> None:
    await replicas.start(Publisher, version)
    await replicas.publish("a", "new", "b")
    await wait_until_applied(replicas, ["a"])
    await wait_until(lambda: "[NEEDS_NEWER_VERSION: publisher.WordPublished 2: " in repr(replicas.subscription()))
    assert (
        "the next event needs a newer version of this service (publisher.WordPublished 2: /word: Invalid enum value"
        in caplog.text
    )
    assert "`callboard resume subscriber publisher --known-types`" in caplog.text
    await wait_until(lambda: "still waits for a newer version" in caplog.text)  # after minutes
    assert blocked(replicas) == 1
    assert await replicas.applied() == ["a"], "nothing has overtaken it"
    assert await replicas.rows("subscriber", "SELECT * FROM callboard_attempts") == []
    assert await replicas.subscription().dead_letters.all() == []
    await replicas.start(Subscriber, name="newer")
    await wait_until_applied(replicas, ["a", "new", "b"])
    await wait_until(lambda: "[WAITING]" in repr(replicas.subscription()))
    assert blocked(replicas) == 0
    await replicas.publish("a")
    await wait_until_applied(replicas, ["a", "new", "b", "a"])


async def test_an_operator_lets_a_version_continue_with_the_events_that_it_can_decode(
    replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    await replicas.start(Publisher, OlderSubscriber)
    await replicas.publish("a", "new", "b", "newer", "a")
    await wait_until(lambda: blocked(replicas) == 1)
    assert await accept(replicas, OlderSubscriber)
    await wait_until_applied(replicas, ["a", "b", "a"])
    letters = await replicas.subscription().dead_letters.all()
    assert [(letter.body, letter.attempts) for letter in letters] == [('{"word":"new"}', 0), ('{"word":"newer"}', 0)]
    assert "NeedsNewerVersion" in letters[0].error
    assert blocked(replicas) == 0
    await replicas.stop("subscriber")
    await replicas.start(Subscriber)
    await wait_until_applied(replicas, ["a", "b", "a", "new", "newer"])
    assert "publisher.WordPublished 2 of publisher, which an older version could not decode, was applied late" in caplog.text
    assert await replicas.subscription().dead_letters.all() == []


async def test_the_operators_choice_is_for_one_version(replicas: Replicas) -> None:
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("a")
    await wait_until_applied(replicas, ["a"])
    await replicas.stop("subscriber")
    assert await accept(replicas, Subscriber)
    await replicas.start(OlderSubscriber)
    await replicas.publish("new")
    await wait_until(lambda: blocked(replicas) == 1)
    assert await replicas.subscription().dead_letters.all() == []


async def test_a_rolled_back_subscriber_continues_with_the_types_that_it_takes(replicas: Replicas) -> None:
    await replicas.start(Publisher, NewerSubscriber)
    await replicas.publish("one", "(two)")
    await wait_until_applied(replicas, ["one", "(two)"])
    await replicas.stop("subscriber")
    await replicas.start(Subscriber)
    await replicas.publish("three", "(four)", "five")
    await wait_until(lambda: "[STANDBY: publisher.AsidePublished]" in repr(replicas.subscription()))
    assert blocked(replicas) == 1
    assert await accept(replicas, Subscriber)
    replicas.subscription().hint()
    await wait_until_applied(replicas, ["one", "(two)", "three", "five"])
    await replicas.stop("subscriber")
    await replicas.start(NewerSubscriber)
    await wait_until_applied(replicas, ["one", "(two)", "three", "five", "(four)"])
    await replicas.publish("(six)")
    await wait_until_applied(replicas, ["one", "(two)", "three", "five", "(four)", "(six)"])


def test_the_digest_of_a_version_changes_with_its_events() -> None:
    digests = {
        digest_of({"publisher.WordPublished": WordPublished}),
        digest_of({"publisher.WordPublished": NewerWordPublished}),
        digest_of({"publisher.WordPublished": WordPublished, "publisher.Other": WordPublished}),
    }
    assert len(digests) == 3
    assert digest_of({"publisher.WordPublished": WordPublished}) in digests
