"""The states of a link, on a real mosquitto and on brokers that a test plays."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import mqtt5
import pytest

from runtime import Clock, Random
from runtime.network import LinkLost, TransportError, Unsendable
from runtime.sockets import any_free_port
from runtime.testing import eventually
from tests.broker import Broker
from tests.transports.proxy import Proxy
from transports.mqtt.attempts import Attempts
from transports.mqtt.broker import BrokerRefused, TakenOver
from transports.mqtt.link import Link
from transports.mqtt.link_state import LinkState
from transports.mqtt.settings import MqttSettings


class PausingClock(Clock):
    """A clock whose sleeping ends when the test says so."""

    def __init__(self) -> None:
        self.awake = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        await self.awake.wait()


class Harness:
    """A link, and what it has called back."""

    def __init__(self, url: str, on_publish: Callable[[mqtt5.PublishPacket], None] | None = None, **settings: Any) -> None:
        self.clock = PausingClock()
        self.events: list[str] = []
        self.errors: list[TransportError] = []
        self.received: list[mqtt5.PublishPacket] = []
        self.link = Link(
            MqttSettings(url=url, keepalive=1, connect_timeout=1.0, **settings), "node-1", mqtt5.Will("gone/node-1"), on_publish or self.received.append, self.too_large,
            lambda: self.events.append("lost"), self.restored, self.errors.append, self.clock,
            Attempts((url,), "node-1", Random(Clock())),
        )  # fmt: skip

    def restored(self) -> None:
        self.events.append("restored")

    def too_large(self, topic: str, size: int) -> None:
        self.events.append(f"{topic} too large: {size}")

    @property
    def state(self) -> str:
        """The state that `repr` shows."""
        text = repr(self.link)
        assert text.startswith("<Link node-1 to mqtt://127.0.0.1:")
        return text[text.index("[") + 1 : text.index("]")]

    def was_restored(self, times: int) -> bool:
        return self.events == ["lost", "restored"] * times

    async def enters(self, state: str) -> None:
        await eventually(lambda: self.state == state, f"the link is {state}")


class FailingHarness(Harness):
    """One whose node cannot handle the new connection."""

    def restored(self) -> None:
        raise RuntimeError("restoring failed")


@asynccontextmanager
async def played(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncGenerator[str, None]:
    """A broker that the test plays: one call of `serve` for each connection."""
    port = any_free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield f"mqtt://127.0.0.1:{port}"


async def test_a_link_is_new_until_it_is_opened_and_closed_after_it() -> None:
    harness = Harness("mqtt://127.0.0.1:1")
    assert harness.state == "NEW"
    assert not harness.link.is_up
    await harness.link.close()
    assert harness.state == "CLOSED"


async def test_a_link_goes_up_and_is_closed(broker: Broker) -> None:
    harness = Harness(broker.url)
    opening = asyncio.create_task(harness.link.open())
    await asyncio.sleep(0)
    assert harness.state == "CONNECTING"
    await opening
    assert harness.state == "UP"
    assert harness.link.is_up
    assert await harness.link.publish_acknowledged("unheard", b"") is False
    await harness.link.close()
    assert harness.state == "CLOSED"
    assert not harness.link.publish_now("unheard", b"")
    with pytest.raises(LinkLost, match="the link is closed"):
        await harness.link.publish("unheard", b"")
    await harness.link.close()
    assert harness.state == "CLOSED"
    assert harness.events == []
    assert harness.errors == []


async def test_a_lost_link_is_down_then_connecting_then_up_with_its_subscriptions(broker: Broker) -> None:
    harness = Harness(broker.url)
    await harness.link.open()
    await harness.link.subscribe("news/+", 7)
    await broker.stop()
    await harness.enters("DOWN")
    assert harness.events == ["lost"]
    with pytest.raises(LinkLost, match="there is no connection"):
        await harness.link.publish("news/1", b"", wait=False)
    waiting = asyncio.create_task(harness.link.publish("news/1", b"patient"))
    await broker.start()
    assert harness.state == "DOWN"
    harness.clock.awake.set()
    await harness.enters("UP")
    assert harness.events == ["lost", "restored"]
    await waiting
    await eventually(lambda: [packet.payload for packet in harness.received] == [b"patient"], "it was subscribed to again")
    assert harness.received[0].subscription_ids == [7]
    await harness.link.close()


async def test_a_link_to_a_broker_that_does_not_answer_is_connecting_until_the_timeout() -> None:
    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            continue
        writer.close()

    async with played(ignore) as url:
        harness = Harness(url)
        opening = asyncio.create_task(harness.link.open())
        await harness.enters("CONNECTING")
        await harness.enters("DOWN")
        opening.cancel()
        await asyncio.wait((opening,))
        assert harness.state == "CLOSED"


async def test_waiting_for_a_link_ends_when_the_link_is_closed(broker: Broker) -> None:
    harness = Harness(broker.url)
    await harness.link.open()
    await broker.stop()
    await harness.enters("DOWN")
    waiting = asyncio.create_task(harness.link.subscribe("news"))
    await asyncio.sleep(0)
    await harness.link.close()
    with pytest.raises(LinkLost, match="the link is closed"):
        await waiting


async def test_a_refused_link_does_not_open() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.BANNED).write())
        writer.close()

    async with played(refuse) as url:
        harness = Harness(url)
        with pytest.raises(BrokerRefused, match="the broker has banned this client"):
            await harness.link.open()
        assert harness.state == "CLOSED"
        assert harness.errors == [], "open() has raised it"


async def test_a_link_whose_place_is_taken_has_failed() -> None:
    async def take_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(mqtt5.ConnAckPacket().write())
        await asyncio.sleep(0.1)
        writer.write(mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER).write())
        writer.close()

    async with played(take_over) as url:
        harness = Harness(url)
        await harness.link.open()
        assert harness.state == "UP"
        await harness.enters("FAILED")
        assert harness.events == ["lost"]
        (error,) = harness.errors
        assert isinstance(error, TakenOver)
        with pytest.raises(TakenOver):
            await harness.link.publish("x", b"")
        await harness.link.close()
        assert harness.state == "CLOSED"
        with pytest.raises(TakenOver):
            await harness.link.publish("x", b"")


async def test_an_unexpected_error_fails_the_link_and_cuts_its_connection(broker: Broker) -> None:
    harness = FailingHarness(broker.url)
    await harness.link.open()
    harness.clock.awake.set()
    await broker.stop()
    await broker.start()
    await harness.enters("FAILED")
    (error,) = harness.errors
    assert "has failed: restoring failed" in str(error)
    assert not harness.link.publish_now("x", b"")
    await harness.link.close()
    assert harness.state == "CLOSED"


async def test_an_aborted_link_is_closed_and_does_not_come_back(broker: Broker) -> None:
    harness = Harness(broker.url)
    await harness.link.open()
    awaited = asyncio.create_task(harness.link.round_trip())
    await asyncio.sleep(0)
    harness.link.abort()
    assert harness.state == "CLOSED"
    with pytest.raises(LinkLost):
        await awaited
    assert harness.events == []
    assert harness.errors == []


def test_nothing_follows_closed_and_only_closed_follows_failed() -> None:
    assert not any(LinkState.CLOSED.may_become(state) for state in LinkState)
    assert [state for state in LinkState if LinkState.FAILED.may_become(state)] == [LinkState.CLOSED]
    assert not any(state.may_become(LinkState.NEW) for state in LinkState)


async def test_connections_that_end_at_once_do_not_end_the_link(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """A flapping balancer looks like this. The link keeps trying, with longer pauses, and the log names the possible reasons once."""
    async with Proxy(broker.port) as proxy:
        harness = Harness(proxy.url)
        harness.clock.awake.set()
        await harness.link.open()
        for number in range(9):
            proxy.cut()
            await eventually(partial(harness.was_restored, number + 1), "the link is up again")
        assert harness.errors == []
        assert caplog.text.count("has ended 6 connections in a row within 3 s") == 1
        await harness.link.close()


def test_the_pause_grows_with_short_connections_and_brokers_are_tried_in_turn() -> None:
    attempts = Attempts(("a", "b"), "node-1", Random(Clock()))
    tried: list[str] = []
    pauses: list[float] = []
    for _ in range(8):
        tried.append(attempts.url)
        attempts.failed(TransportError("refused"))
        pauses.append(attempts.pause())
    assert tried == ["a", "b"] * 4
    assert pauses[::2] == [0.0] * 4, "there is no pause before every broker was tried"
    assert all(later > earlier for earlier, later in zip(pauses[1::2], pauses[5::2], strict=False))
    attempts.connected()
    attempts.lost("closed", 100.0)
    assert attempts.url == "a", "the broker of a long connection is tried first"
    assert attempts.pause() <= 0.05
    for _ in range(12):
        attempts.connected()
        attempts.lost("closed", 1.0)
    assert attempts.pause() > 0.5


async def test_a_filter_without_an_identifier_is_unsubscribed_at_the_broker(broker: Broker) -> None:
    harness = Harness(broker.url)
    await harness.link.open()
    await harness.link.subscribe("news/+")
    assert await harness.link.publish_acknowledged("news/1", b"") is True
    await harness.link.unsubscribe("news/+")
    assert await harness.link.publish_acknowledged("news/1", b"") is False, "nobody is subscribed any more"
    await harness.link.close()


async def test_a_message_that_waits_for_a_congested_connection_is_sent_on_the_next_one(broker: Broker) -> None:
    harness = Harness(broker.url)
    await harness.link.open()
    connection = harness.link._connection
    assert connection is not None
    connection.pause_writing()
    waiting = asyncio.create_task(harness.link.publish_acknowledged("news/1", b""))
    await asyncio.sleep(0)
    await broker.stop()
    await harness.enters("DOWN")
    await broker.start()
    harness.clock.awake.set()
    assert await asyncio.wait_for(waiting, 10) is False
    await harness.link.close()


async def test_a_message_with_a_header_that_is_too_long_is_refused_and_keeps_no_place(broker: Broker) -> None:
    harness = Harness(broker.url)
    await harness.link.open()
    headers = {"user_properties": [("key", "x" * 70_000)]}
    for _ in range(30):  # more than mosquitto's Receive Maximum
        with pytest.raises(Unsendable, match="the header 'key' is too long"):
            await harness.link.publish_acknowledged("news/1", b"", headers)
    with pytest.raises(Unsendable, match="the header 'key' is too long"):
        harness.link.publish_now("news/1", b"", headers)
    assert await harness.link.publish_acknowledged("news/1", b"") is False
    await harness.link.close()


async def test_a_connection_that_ends_with_the_last_acknowledgement_is_down() -> None:
    """The end is reported before the link has seen the acknowledgement, as uvloop may do."""
    connections = ended = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, ended
        connections += 1
        await reader.read(1000)
        writer.write(mqtt5.ConnAckPacket().write())
        while data := await reader.read(1000):
            packet, _ = mqtt5.read(memoryview(data))
            if isinstance(packet, mqtt5.SubscribePacket):
                granted = mqtt5.SubAckPacket(packet.packet_id, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]).write()
                writer.write(granted + (mqtt5.PublishPacket("end", b"").write() if connections == 2 else b""))
                if connections == 1:
                    break
        writer.close()
        ended += 1

    def end(packet: mqtt5.PublishPacket) -> None:
        connection = harness.link._connection
        assert connection is not None and connection._transport is not None  # noqa: PT018
        connection._transport.set_protocol(asyncio.Protocol())  # which does not hear of the end a second time
        connection._transport.abort()
        connection.connection_lost(None)

    async with played(serve) as url:
        harness = Harness(url, end)
        harness.clock.awake.set()
        await harness.link.open()
        await harness.link.subscribe("news")
        await eventually(lambda: connections == 3 and harness.state == "UP", "the third connection is up")
        assert harness.errors == []
        await harness.link.close()
        await eventually(lambda: ended == 3, "every connection is closed")
