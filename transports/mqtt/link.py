"""A node's link to its MQTT broker: one connection at a time, which is replaced, with its subscriptions, whenever it is lost."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import mqtt5

from runtime import Clock, StartError
from runtime.network import LinkLost, TransportError, Unsendable
from runtime.telemetry import logger
from transports.mqtt.acknowledgements import Acknowledgements
from transports.mqtt.attempts import Attempts
from transports.mqtt.broker import (
    BrokerRefused,
    Handshake,
    NotMqtt5,
    QosNotSupported,
    TakenOver,
    check_connack,
    connect_packet,
    describe,
    says_taken_over,
)
from transports.mqtt.connection import Connection, Packet, connect
from transports.mqtt.keepalive import keep_alive
from transports.mqtt.limits import Limits
from transports.mqtt.link_state import LinkState
from transports.mqtt.packets import encode_publish
from transports.mqtt.settings import MqttSettings
from transports.mqtt.subscriptions import Subscriptions
from transports.resolver import Resolver

_UP = LinkState.UP
_NONE: Mapping[str, Any] = {}


class Link:
    """One node's link to its broker.

    Args:
        attempts: The attempts to reach a broker.
        client_id: The node's id. A connection with the same id from elsewhere takes this one over.
        will: The message that the broker publishes if the node disappears without closing its connection.
        on_publish: Called for each message, in order.
        on_too_large: Called with the topic and the size of each message that is too large, and is dropped.
        on_lost: Called when the connection is lost, before anything that waits for it fails.
        on_restored: Called after a lost connection was replaced and every subscription is in place again.
        on_failed: Called with the reason when the link is lost for good.

    Attributes:
        limits: The abilities of the broker of the last connection.
    """

    def __init__(
        self, settings: MqttSettings, client_id: str, will: mqtt5.Will, on_publish: Callable[[mqtt5.PublishPacket], None],
        on_too_large: Callable[[str, int], None], on_lost: Callable[[], None], on_restored: Callable[[], None], on_failed: Callable[[TransportError], None],
        clock: Clock, attempts: Attempts,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._resolver = Resolver()
        self._client_id = client_id
        self._will = will
        self.limits: Limits = Limits()
        self._on_publish = on_publish
        self._on_too_large = on_too_large
        self._on_lost = on_lost
        self._on_restored = on_restored
        self._on_failed = on_failed
        self._clock = clock
        self._attempts = attempts
        self._state = LinkState.NEW
        self._settled = asyncio.Event()
        self._error: TransportError | None = None  # why the link has failed
        self._connection: Connection | None = None
        self._ended: asyncio.Future[str] | None = None
        self._acknowledgements = Acknowledgements()
        self._subscriptions = Subscriptions(self._acknowledgements)
        self._taken_over = False
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Link {self._client_id} to {self._attempts.url} [{self._state.name}]>"

    def _enter(self, state: LinkState) -> None:
        assert self._state.may_become(state), f"a link that is {self._state.name} cannot become {state.name}"
        self._state = state
        (self._settled.set if state.is_settled else self._settled.clear)()

    @property
    def is_up(self) -> bool:
        """Whether the link is connected, with every subscription in place."""
        return self._state is _UP

    @property
    def is_busy(self) -> bool:
        """Whether a packet has arrived only in part: nothing else can be received before the rest of it."""
        return self._connection is not None and self._connection.receiving

    async def open(self) -> None:
        """Connect to the broker. Waits for a broker that cannot be reached.

        Raises:
            BrokerRefused: if the broker refuses this node's credentials, or its certificate cannot be trusted.
        """
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._enter(LinkState.CONNECTING)
        self._running = asyncio.create_task(self._run(opened))
        try:
            await opened
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect in good order, so that the broker does not publish the Will. Calling it twice is harmless."""
        if self._state is LinkState.CLOSED:
            return
        was_up = self.is_up
        self._enter(LinkState.CLOSED)
        if was_up and self._connection is not None and self._ended is not None:
            self._connection.end("closed by us")
            await asyncio.wait((self._ended,), timeout=1)
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        self._disconnected("the link is closed")

    def abort(self) -> None:
        """Cut the connection without a goodbye, as a killed process would."""
        if self._state is LinkState.CLOSED:
            return
        self._enter(LinkState.CLOSED)
        if self._running is not None:
            self._running.cancel()
        if self._connection is not None:
            self._connection.abort("cut")

    # Staying connected

    async def _run(self, opened: "asyncio.Future[None]") -> None:
        try:
            await self._keep_connected(opened)
        except Exception as error:  # unexpected; but a node that is off the network must not act as if it were on it
            logger("mqtt").error("the link to %s has failed: %r", self._attempts.url, error, exc_info=error)
            self._fail(TransportError(f"the link to {self._attempts.url} has failed: {error}"), opened)

    async def _keep_connected(self, opened: "asyncio.Future[None]") -> None:
        attempts, loop = self._attempts, asyncio.get_running_loop()
        while True:
            try:
                await self._connect()
            except StartError as error:  # such as `BrokerRefused`
                if not opened.done():
                    user = self._settings.username or "an anonymous client"
                    asked = " " if isinstance(error, NotMqtt5) else f", connecting as {user}: "
                    self._error = BrokerRefused(f"{attempts.url}{asked}{error}")
                    self._enter(LinkState.FAILED)
                    opened.set_exception(self._error)
                    return
                attempts.refused(error)
            except (TransportError, OSError) as error:
                attempts.failed(error)
            else:
                attempts.connected()
                if not opened.done():
                    opened.set_result(None)
                else:
                    self._on_restored()
                connection, ended, begun = self._connection, self._ended, loop.time()
                assert connection is not None
                assert ended is not None
                reason = await keep_alive(
                    connection, ended, self.limits.keepalive, self._settings.keepalive, self._acknowledgements
                )
                if self._state is LinkState.CLOSED:
                    return
                attempts.lost(reason, loop.time() - begun)
            if self._taken_over:
                self._fail(TakenOver(attempts.url, self._client_id), opened)
                return
            await self._clock.sleep(attempts.pause())
            self._enter(LinkState.CONNECTING)

    def fail_taken_over(self) -> None:
        """Give up the link, because another client has proved that it uses this one's client id."""
        self._taken_over = True
        assert self._connection is not None, "the proof came over it"
        self._connection.abort("another client has this client's id")

    def _fail(self, error: TransportError, opened: "asyncio.Future[None]") -> None:
        """Give up: report the error to the node, and to everything that waits for the link."""
        if self._state is LinkState.CLOSED:
            return
        self._error = error
        self._enter(LinkState.FAILED)
        if self._connection is not None:
            self._connection.abort("the link has failed")
        if not opened.done():
            opened.set_exception(error)
        self._on_failed(error)

    async def _connect(self) -> None:
        """Make one connection, and subscribe on it to everything that was subscribed to before.

        Raises:
            TransportError: if the broker refuses the connection or a subscription, or does not answer in time.
            StartError: if trying again does not help.
            OSError: if no address of the broker accepts a connection.
        """
        settings, loop = self._settings, asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        self._ended, handshake = ended, Handshake(self._on_packet)

        def on_end(which: Connection, reason: str) -> None:
            if which is self._connection:
                self._disconnected(reason)
            ended.set_result(reason)
            handshake.ended(which, reason)

        connection: Connection | None = None
        try:
            async with asyncio.timeout(settings.connect_timeout):
                self._connection = connection = await connect(
                    settings, self._attempts.url, self._resolver, handshake.received, on_end, self._on_too_large
                )
            asking = connect_packet(settings, self._client_id, self._will, self._attempts.password())
            self.limits = check_connack(await handshake.complete(connection, asking, settings.connect_timeout), settings)
            self._acknowledgements.begin(self.limits.receive_maximum)
            async with asyncio.timeout(settings.connect_timeout):
                await self._subscriptions.restore(connection, self.limits)
            if ended.done():  # in the same turn of the event loop as the last acknowledgement
                raise TransportError(ended.result())
            self._enter(LinkState.UP)
        except QosNotSupported:
            self._will = mqtt5.Will(self._will.topic, qos=mqtt5.QoS.AT_MOST_ONCE)
            raise
        except TimeoutError:
            raise TransportError(f"no answer within {settings.connect_timeout:g} s") from None
        finally:
            if not self.is_up:
                if connection is not None:
                    connection.abort("the connection could not be completed")
                if self._state is LinkState.CONNECTING:
                    self._enter(LinkState.DOWN)

    def _disconnected(self, reason: str) -> None:
        was_up, self._connection = self.is_up, None
        if was_up or self._state is LinkState.CONNECTING:
            self._enter(LinkState.DOWN)
        if was_up:
            self._on_lost()
        self._acknowledgements.fail(reason)

    def _on_packet(self, connection: Connection, packet: Packet) -> None:
        if connection is not self._connection:
            return  # from a connection that was given up
        if isinstance(packet, mqtt5.PublishPacket):
            if packet.packet_id is not None:
                connection.send(mqtt5.PubAckPacket(packet.packet_id))
            self._on_publish(packet)
        elif isinstance(packet, mqtt5.PubAckPacket | mqtt5.SubAckPacket | mqtt5.UnsubAckPacket | mqtt5.PingRespPacket):
            self._acknowledgements.received(packet)
        elif isinstance(packet, mqtt5.DisconnectPacket):
            self._taken_over = self._taken_over or says_taken_over(packet)
            connection.abort(f"the broker says: {packet.reason_str or describe(packet.reason_code)}")

    async def _wait_until_up(self) -> Connection:
        """Wait for a connection.

        Raises:
            LinkLost: if the link is closed.
            TransportError: if the link has failed.
        """
        while self._connection is None or not self.is_up:
            if self._error is not None:
                raise self._error
            if self._state in (LinkState.NEW, LinkState.CLOSED):
                raise LinkLost("the link is closed")
            await self._settled.wait()
        return self._connection

    # Publishing

    async def publish(self, topic: str, payload: bytes, properties: Mapping[str, Any] = _NONE, *, wait: bool = True) -> None:
        """Publish with QoS 0. Returns when the message is handed to the network; it arrives at most once.

        Args:
            wait: Whether to wait while the link is down, instead of raising `LinkLost`.

        Raises:
            LinkLost: if the link is closed, or down and `wait` is false.
            Unsendable: if the broker does not accept messages of this size, or a header is longer than MQTT allows.
        """
        while not self.publish_now(topic, payload, properties):
            await self.ready(wait=wait)

    async def ready(self, *, wait: bool = True) -> None:
        """Wait until the link is up and its connection is not congested. Raises like `publish`."""
        if not wait and not self.is_up:
            raise LinkLost("there is no connection to the broker")
        await (await self._wait_until_up()).writable()

    def publish_now(self, topic: str, payload: bytes, properties: Mapping[str, Any] = _NONE) -> bool:
        """Publish with QoS 0 if that needs no waiting.

        Returns:
            Whether the message was handed to the network.

        Raises:
            Unsendable: if the broker does not accept messages of this size, or a header is longer than MQTT allows.
        """
        connection = self._connection
        if connection is None or self._state is not _UP or connection.congested:
            return False
        connection.send_bytes(encode_publish(topic, payload, self.limits, properties))
        return True

    async def publish_acknowledged(self, topic: str, payload: bytes, properties: Mapping[str, Any] = _NONE) -> bool:
        """Publish with QoS 1, waiting for a connection if necessary.

        Returns:
            Whether there was a subscriber.

        Raises:
            LinkLost: if the connection was lost before the broker acknowledged the message, which may have arrived. A broker
                that acknowledges nothing gets the message with QoS 0, and the subscriber is taken for granted.
            Unsendable: if the broker does not accept messages of this size, or a header is longer than MQTT allows.
            TransportError: if the broker refuses the message.
        """
        while True:
            connection = await self._wait_until_up()
            if connection.congested:
                await connection.writable()  # and look again: the connection may have been lost meanwhile
                continue
            if not self.limits.acknowledges:
                connection.send_bytes(encode_publish(topic, payload, self.limits, properties))
                return True
            if self._acknowledgements.take_quota():
                break
            await self._acknowledgements.wait_for_quota()
        packet_id, acknowledged = self._acknowledgements.expect()
        try:
            once = {"qos": mqtt5.QoS.AT_LEAST_ONCE, "packet_id": packet_id}
            data = encode_publish(topic, payload, self.limits, {**properties, **once})
        except Unsendable:
            self._acknowledgements.give_up(packet_id)
            raise
        connection.send_bytes(data)
        answer: mqtt5.PubAckPacket = await asyncio.shield(acknowledged)
        if int(answer.reason_code) >= 0x80:
            raise TransportError(f"the broker refuses {topic}: {answer.reason_str or describe(answer.reason_code)}")
        return answer.reason_code != mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS

    async def round_trip(self) -> None:
        """Wait until the broker has handled everything sent so far. Asks again on the next connection if this one is lost.

        Raises:
            LinkLost: if the link is closed.
        """
        while True:
            connection = await self._wait_until_up()
            pong = self._acknowledgements.expect_pong()
            connection.send(mqtt5.PingReqPacket())
            try:
                return await pong
            except LinkLost:
                continue

    # Subscribing

    async def subscribe(self, pattern: str, subscription_id: int | None = None) -> None:
        """Receive what is published on matching topics, now and after every reconnection. Waits for a connection.

        Args:
            subscription_id: A number that comes back with each message.

        Raises:
            LinkLost: if the link is closed.
            TransportError: if the broker refuses the subscription.
        """
        self._subscriptions.add(pattern, subscription_id)
        if self.is_up and self._connection is not None:
            with suppress(LinkLost):  # the next connection subscribes to it
                await self._subscriptions.subscribe(self._connection, {pattern: subscription_id}, self.limits)
        await self._wait_until_up()
        if pattern not in self._subscriptions:
            raise TransportError(f"the broker refuses the subscription to {pattern}")

    async def unsubscribe(self, pattern: str) -> None:
        """Stop receiving what is published on matching topics.

        Raises:
            LinkLost: if the connection was lost meanwhile. The next connection does not subscribe to the pattern again.
        """
        if self._subscriptions.remove(pattern) and self.is_up and self._connection is not None:
            await self._subscriptions.unsubscribe(self._connection, pattern)
