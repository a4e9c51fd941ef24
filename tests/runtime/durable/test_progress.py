"""Events that hold up all events after them: named, shown, and set aside."""

import logging
from collections.abc import Callable

import httpx
import pytest

from config.health import serve_health
from config.settings import HealthSettings
from runtime import Clock, Overloaded
from runtime.durable.cursor import Cursors
from runtime.durable.progress import HELD_SECONDS, Progress, SubscriptionState
from runtime.durable.stream import EventTooLarge, Position, Pull, StreamEvent
from runtime.metrics import Metrics
from runtime.network import Capabilities
from runtime.sockets import any_free_port
from tests.runtime.durable.replicas import Publisher, Replicas, Subscriber, overloaded, wait_until, wait_until_applied

EVENT = StreamEvent(17, "id", "publisher.WordPublished", "{}", "", "")


class Watch(Clock):
    """A clock whose monotonic time moves only when a test moves it."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


async def set_aside(replicas: Replicas, seq: int) -> None:
    """Do what `callboard resume subscriber publisher --set-aside` does."""
    database = replicas.nodes["subscriber"].inbound.instances["subscriber"].database
    assert await Cursors("publisher", database).set_aside(seq)


def test_an_event_that_holds_up_others_is_named_after_ten_minutes(caplog: pytest.LogCaptureFixture) -> None:
    clock, metrics = Watch(), Metrics()
    progress = Progress("subscriber", "publisher", clock, metrics, logging.getLogger("test"))
    progress.enter(SubscriptionState.BACKING_OFF)

    def gauge() -> float:
        return metrics.value("subscription_held_seconds", service="subscriber", publisher="publisher")

    while clock.seconds < HELD_SECONDS:
        progress.hold(EVENT, Overloaded("wallet"))
        assert (caplog.records, progress.blocked(), gauge()) == ([], None, 0 if not clock.seconds else clock.seconds)
        clock.seconds += 30
    progress.hold(EVENT, Overloaded("wallet"))
    [record] = caplog.records
    assert record.getMessage() == (
        "publisher.WordPublished 17 of publisher could not be applied for 10 minutes (21 tries), and holds up all events after it: "
        f"{Overloaded('wallet')}; if it has to wait no longer, `callboard resume subscriber publisher --set-aside 17` to make it a dead letter"
    )
    blocked = progress.blocked()
    assert blocked is not None
    assert (blocked.event, blocked.seq, blocked.seconds, blocked.state) == (EVENT.type, 17, 600, "BACKING_OFF")
    assert gauge() == 600
    clock.seconds += 3_590
    progress.hold(EVENT, Overloaded("wallet"))
    assert len(caplog.records) == 1, "it is logged once an hour"
    clock.seconds += 10
    progress.hold(EVENT, Overloaded("wallet"))
    assert len(caplog.records) == 2
    progress.advance()
    assert (progress.blocked(), gauge()) == (None, 0)


async def ready(replicas: Replicas) -> dict[str, object]:
    """Return what the subscriber's node answers at `/readyz`. It is ready, whatever its subscription waits for."""
    port = any_free_port()
    async with serve_health(HealthSettings(port=port), replicas.nodes["subscriber"]), httpx.AsyncClient(verify=False) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/readyz")
    assert answer.status_code == 200
    found: dict[str, object] = answer.json()
    return found


@pytest.mark.parametrize("why", [overloaded, lambda: ValueError("indigestible")], ids=["retryable", "failing"])
async def test_an_event_that_is_tried_again_and_again_can_be_set_aside(
    replicas: Replicas,
    subscriber_class: type[Subscriber],
    why: Callable[[], Exception],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("runtime.durable.progress.HELD_SECONDS", 0.0)
    replicas.clock.skipping = False
    Subscriber.failures["held"] = why
    await replicas.start(Publisher, subscriber_class)
    await replicas.publish("one", "held", "behind")
    await wait_until(lambda: "publisher.WordPublished 2 of publisher could not be applied" in caplog.text)
    assert (await ready(replicas))["status"] == "ready"
    [blocked] = replicas.nodes["subscriber"].blocked()
    assert (blocked.service, blocked.publisher, blocked.event, blocked.seq) == (
        "subscriber",
        "publisher",
        "publisher.WordPublished",
        2,
    )
    assert await replicas.applied() == ["one"]
    await set_aside(replicas, 2)
    if why is not overloaded:  # the service sleeps until the next attempt
        replicas.clock.skipping = True
        await replicas.stop("subscriber")
        await replicas.start(subscriber_class)
    await wait_until_applied(replicas, ["one", "behind"])
    [letter] = await replicas.subscription().dead_letters.all()
    assert (letter.seq, letter.body, letter.attempts >= 1) == (2, '{"word":"held"}', True)
    assert "an operator has set it aside" in letter.error
    assert "blocked" not in await ready(replicas)
    assert await replicas.rows("subscriber", "SELECT set_aside FROM callboard_cursors") == [None]
    await replicas.publish("later")
    await wait_until_applied(replicas, ["one", "behind", "later"])


async def test_an_event_that_the_network_no_longer_carries_is_named_and_can_be_set_aside(
    replicas: Replicas, subscriber_class: type[Subscriber], caplog: pytest.LogCaptureFixture
) -> None:
    node = await replicas.start(Publisher)
    await replicas.publish("one", "x" * 5_000, "behind")
    node.environment.transport.capabilities = Capabilities(max_body=5_000)
    await replicas.start(subscriber_class)
    said = "publisher.WordPublished 2 has 5,212 bytes, more than the 3,976 that the network carries"
    await wait_until(lambda: f"EVENT_TOO_LARGE: {said}" in repr(replicas.subscription()))
    assert await replicas.applied() == ["one"]
    assert f"the stream of publisher waits: {said}; raise the limit of the broker" in caplog.text
    assert "`callboard resume subscriber publisher --set-aside 2` to continue without the event" in caplog.text
    assert (await ready(replicas))["blocked"] == [
        {"service": "subscriber", "publisher": "publisher", "state": "EVENT_TOO_LARGE", "reason": said}
    ]
    metrics = replicas.nodes["subscriber"].metrics
    assert metrics.value("subscription_blocked", service="subscriber", publisher="publisher") == 1
    await set_aside(replicas, 2)
    replicas.subscription().hint()
    await wait_until_applied(replicas, ["one", "behind"])
    [letter] = await replicas.subscription().dead_letters.all()
    assert (letter.seq, letter.type, letter.body) == (2, "publisher.WordPublished", "")
    assert replicas.nodes["subscriber"].blocked() == []


async def test_a_stream_continues_when_the_limit_is_raised_again(replicas: Replicas) -> None:
    node = await replicas.start(Publisher)
    await replicas.publish("x" * 5_000, "behind")
    node.environment.transport.capabilities = Capabilities(max_body=5_000)
    await replicas.start(Subscriber)
    await wait_until(lambda: "EVENT_TOO_LARGE" in repr(replicas.subscription()))
    node.environment.transport.capabilities = Capabilities()
    replicas.subscription().hint()
    await wait_until_applied(replicas, ["x" * 5_000, "behind"])
    assert replicas.nodes["subscriber"].blocked() == []


async def test_a_position_before_an_event_that_is_too_large_is_answered_with_its_size(replicas: Replicas) -> None:
    node = await replicas.start(Publisher)
    await replicas.publish("(another type)", '"' * 3_000)
    node.environment.transport.capabilities = Capabilities(max_body=8_000)
    stream = replicas.stream()
    batch = await stream.pull(Pull(Position("", 0), ("publisher.WordPublished",)), "another")
    assert (batch.events, batch.scanned.seq) == ((), 1), "the pull before it gets to it"
    with pytest.raises(EventTooLarge) as caught:
        await stream.pull(Pull(batch.scanned, ("publisher.WordPublished",)), "another")
    assert caught.value.size > 12_000, "each quotation mark is escaped twice on the wire"
    batch = await stream.pull(Pull(batch.scanned, ("publisher.AsidePublished",)), "another")
    assert batch.scanned.seq == 2, "it holds up only those who take it"
