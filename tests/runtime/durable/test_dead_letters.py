"""Events whose handlers keep failing: the pauses between attempts, and dead letters."""

import asyncio
from itertools import pairwise

import pytest

from runtime.durable.dead_letters import pause_before_next
from runtime.storage import Superseded
from runtime.testing.expectations import WAIT
from tests.runtime.durable.replicas import Publisher, Replicas, Subscriber, wait_until, wait_until_applied


def indigestible() -> ValueError:
    return ValueError("cannot digest this")


async def test_an_event_that_keeps_failing_becomes_a_dead_letter(replicas: Replicas, subscriber_class: type[Subscriber]) -> None:
    Subscriber.failures["poison"] = indigestible
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish("a", "poison", "b")
    await wait_until_applied(replicas, ["a", "b"])
    [letter] = await replicas.subscription().dead_letters.all()
    assert (letter.type, letter.body, letter.attempts, letter.seq) == ("publisher.WordPublished", '{"word":"poison"}', 3, 2)
    assert "cannot digest this" in letter.error
    assert replicas.nodes["subscriber"].metrics.value("dead_letters_total", service="subscriber", publisher="publisher") == 1
    with pytest.raises(ValueError, match="digest"):
        await replicas.subscription().dead_letters.retry(letter)
    assert len(await replicas.subscription().dead_letters.all()) == 1
    Subscriber.failures.clear()
    await replicas.subscription().dead_letters.retry(letter)
    assert await replicas.applied() == ["a", "b", "poison"]
    assert await replicas.subscription().dead_letters.all() == []
    with pytest.raises(Superseded):
        await replicas.subscription().dead_letters.retry(letter)


async def test_the_message_id_is_the_same_at_every_attempt(replicas: Replicas) -> None:
    Subscriber.failures["poison"] = indigestible
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("poison", "b")
    await wait_until_applied(replicas, ["b"])
    ids = [message_id for word, message_id in Subscriber.ids if word == "poison"]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert ids[0] == (await replicas.subscription().dead_letters.all())[0].event_id


async def test_attempts_are_counted_across_restarts(replicas: Replicas) -> None:
    Subscriber.failures["poison"] = indigestible
    await replicas.start(Publisher, Subscriber)
    await replicas.publish("poison")

    async def attempts() -> int:
        rows = await replicas.rows("subscriber", "SELECT attempts FROM callboard_attempts")
        return rows[0] if rows else 0

    async with asyncio.timeout(WAIT):
        while await attempts() < 1:
            await asyncio.sleep(0.005)
    await replicas.crash("subscriber")
    before = await attempts()
    assert 1 <= before < 3
    await replicas.start(Subscriber)
    await replicas.publish("b")
    await wait_until_applied(replicas, ["b"])
    [letter] = await replicas.subscription().dead_letters.all()
    assert letter.attempts == 3


def test_the_last_pause_takes_minutes_however_many_attempts_there_are() -> None:
    assert [round(pause_before_next(failed, 5), 1) for failed in range(1, 5)] == [1.1, 6.7, 40, 240]
    assert [round(pause_before_next(failed, 3), 1) for failed in range(1, 3)] == [40, 240]
    assert pause_before_next(1, 2) == 240


async def test_minutes_pass_before_an_event_is_dead_also_across_a_restart(replicas: Replicas) -> None:
    Subscriber.failures["poison"] = indigestible
    await replicas.start(Publisher, Subscriber)
    replicas.clock.skipping = False
    await replicas.publish("poison", "b")
    await wait_until(lambda: "has failed 1 times of 3" in repr(replicas.subscription()))
    await replicas.crash("subscriber")
    replicas.clock.skipping = True
    await replicas.start(Subscriber)
    await wait_until_applied(replicas, ["b"])
    first, second, third, b = Subscriber.times
    assert second - first >= 20, "the restart did not cut the pause short"
    assert third - second >= 120
    assert b >= third, "nothing has overtaken it"


async def test_replicas_share_the_attempts_at_an_event(replicas: Replicas) -> None:
    Subscriber.failures["poison"] = indigestible
    await replicas.start(Publisher)
    await replicas.start(Subscriber, name="subscriber")
    await replicas.start(Subscriber, name="subscriber2")
    await replicas.publish("poison", "b")
    await wait_until_applied(replicas, ["b"])
    [letter] = await replicas.subscription().dead_letters.all()
    assert letter.attempts == 3
    pauses = sorted(after - before for before, after in pairwise(Subscriber.times))
    assert pauses[-1] >= 120
    assert pauses[-2] >= 20


async def test_a_failing_event_is_shown(replicas: Replicas) -> None:
    Subscriber.failures["poison"] = indigestible
    await replicas.start(Publisher, Subscriber)
    replicas.clock.skipping = False
    await replicas.publish("poison")
    await wait_until(lambda: "[BACKING_OFF: publisher.WordPublished 1 has failed 1 times of 3]" in repr(replicas.subscription()))
