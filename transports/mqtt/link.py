"""The link: a connection to the broker that is made again whenever it is lost, with what was subscribed to."""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

import mqtt5

from runtime import Clock, Random, StartError
from runtime.network import LinkLost, TooLarge, TransportError
from transports.mqtt.connection import CLOSED, Connection, Packet, connect
from transports.mqtt.settings import MqttSettings
from transports.resolver import Resolver

_LONGEST_PAUSE = 5.0
_HOPELESS = 100
"""Failures for which a refusal counts: somebody has to mend it, so that the next try can wait."""
_SHORT = 3.0
"""A connection that the broker ends so soon, in seconds, without a reason, may have been taken over."""
_FIGHT = 30.0
_HEADERS = 24 * 1024
"""Room that a packet's headers may take: a token of 8 KiB, the parameters of a URL, and what else there is."""
_REFUSED = {
    int(mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD): "the user name or the password is wrong",
    int(
        mqtt5.ConnAckReasonCode.NOT_AUTHORIZED
    ): "the user name or the password is wrong, or the broker does not let this user in",
    int(mqtt5.ConnAckReasonCode.BANNED): "the broker has banned this client",
    int(mqtt5.ConnAckReasonCode.CLIENT_ID_NOT_VALID): "the broker does not take this client id",
    int(mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION): "the broker does not speak MQTT 5",
}


class BrokerRefused(TransportError, StartError):
    """The broker will not have us, and asking again would not change that."""


class TakenOver(TransportError, StartError):
    """Another connection has this node's id. Coming back would only take its place in turn."""


class Link:
    """One node's link to its broker.

    Args:
        client_id: the node's id: another connection with it takes this one's place.
        will: what the broker publishes should the node go without a word.
        on_publish: is called for each message, in order.
        on_lost: is called when the connection is lost.
        on_restored: is called when it stands again, and everything is subscribed to anew.
        on_failed: is called when it is lost for good, with the reason.
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        will: mqtt5.Will,
        on_publish: Callable[[mqtt5.PublishPacket], None],
        on_lost: Callable[[], None],
        on_restored: Callable[[], None],
        on_failed: Callable[[TransportError], None],
        clock: Clock,
        random: Random,
    ) -> None:
        self._settings = settings
        self._resolver = Resolver()
        self._client_id = client_id
        self._will = will
        self._on_publish = on_publish
        self._on_lost = on_lost
        self._on_restored = on_restored
        self._on_failed = on_failed
        self._clock = clock
        self._random = random
        self._log = logging.getLogger("callboard.mqtt")
        self._connection: Connection | None = None
        self._ended: asyncio.Future[str] | None = None
        self._connected: asyncio.Future[mqtt5.ConnAckPacket] | None = None
        self._up = asyncio.Event()
        self._subscribed: dict[str, int | None] = {}
        self._acks: dict[int, asyncio.Future[Any]] = {}
        self._pings: deque[asyncio.Future[None]] = deque()
        self._last_id = 0
        self._allowed = 0
        self._largest = settings.max_packet
        self._taken_over = False
        self._failure: TransportError | None = None
        self._cut_short: deque[float] = deque(maxlen=6)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Link {self._client_id} to {self._settings.url} [{'UP' if self.is_up else 'DOWN'}]>"

    @property
    def is_up(self) -> bool:
        """Whether the connection stands, and everything is subscribed to."""
        return self._up.is_set()

    @property
    def is_busy(self) -> bool:
        """Whether a packet is coming in that has not come whole: until it has, nothing else can be heard."""
        return self._connection is not None and self._connection.receiving

    async def open(self) -> None:
        """Connects. A broker that is not there is waited for.

        Raises:
            BrokerRefused: it will not have us: the credentials are wrong, or its certificate is.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run(first))
        try:
            await first
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Says goodbye: the Will is not published. Calling it twice is harmless."""
        running, self._running = self._running, None
        if running is None:
            return
        self._wake_waiting()
        if self._connection is not None and self.is_up:
            self._connection.end("closed by us")
            assert self._ended is not None
            await asyncio.wait((self._ended,), timeout=1)
        running.cancel()
        await asyncio.wait((running,))
        self._go_down("the link is closed")

    def abort(self) -> None:
        """Cuts the connection and does not come back, as a killed process would."""
        if self._running is not None:
            self._running.cancel()
        if self._connection is not None:
            self._connection.abort("cut")

    # Connecting, and connecting again

    async def _run(self, first: "asyncio.Future[None]") -> None:
        try:
            await self._keep(first)
        except Exception as error:  # none that we know of; but a node that is off the network must not go on as if it were on it
            self._log.error("the link to %s has failed: %r", self._settings.url, error, exc_info=error)
            self._fail(TransportError(f"the link to {self._settings.url} has failed: {error}"), first)

    async def _keep(self, first: "asyncio.Future[None]") -> None:
        failures = 0
        while True:
            try:
                await self._connect()
            except StartError as error:  # as `BrokerRefused`
                if not first.done():
                    who = self._settings.username or "nobody in particular"
                    first.set_exception(BrokerRefused(f"{self._settings.url}, to which {who} connects: {error}"))
                    return
                self._log.error("%s: %s", self._settings.url, error)
                failures = _HOPELESS
            except (TransportError, OSError) as error:
                failures += 1
                if isinstance(error, OSError):
                    self._cut_short.clear()  # nobody answers: it is the broker that comes and goes, not we
                if failures in (1, 5) or failures % 60 == 0:
                    self._log.warning(
                        "%s cannot be reached (%d tries): %s", self._settings.url, failures, error or type(error).__name__
                    )
            else:
                if failures:
                    self._log.info("%s is there", self._settings.url)
                failures = 0
                if not first.done():
                    first.set_result(None)
                else:
                    self._on_restored()
                reason = await self._watch()
                if self._running is None:  # closed by us
                    return
                self._on_lost()
                self._log.warning("the connection to %s was lost: %s", self._settings.url, reason)
            if self._taken_over:
                self._fail(
                    TakenOver(
                        f"another client has connected to {self._settings.url} as {self._client_id}, and taken this node's place: "
                        "give every node an id of its own, and look who else has these credentials"
                    ),
                    first,
                )
                return
            await self._clock.sleep(self._random.jitter(min(0.05 * 2 ** min(failures, 10), _LONGEST_PAUSE)))

    def _fail(self, error: TransportError, first: "asyncio.Future[None]") -> None:
        """There is no going on: whoever waits for a connection is told, and the node."""
        self._failure = error
        self._wake_waiting()
        if not first.done():
            first.set_exception(error)
        self._on_failed(error)

    def _wake_waiting(self) -> None:
        """Whoever waits for a connection looks again."""
        if not self.is_up:
            self._up.set()
            self._up.clear()

    async def _connect(self) -> None:
        """Makes one connection, and subscribes on it to what was subscribed to before."""
        settings, loop = self._settings, asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        connected: asyncio.Future[mqtt5.ConnAckPacket] = loop.create_future()
        self._ended, self._connected = ended, connected
        begun = loop.time()

        def end(which: Connection, reason: str) -> None:
            if which is self._connection:
                self._go_down(reason)
            if reason == CLOSED and connected.done() and loop.time() - begun < _SHORT:
                self._note_cut_short(loop.time())
            ended.set_result(reason)
            if not connected.done():
                connected.set_exception(TransportError(reason))
                connected.exception()

        connection: Connection | None = None
        try:
            async with asyncio.timeout(settings.connect_timeout):
                self._connection = connection = await connect(settings, self._resolver, self._packet, end)
                connection.send(
                    mqtt5.ConnectPacket(
                        self._client_id, username=settings.username, clean_start=True, will=self._will, keep_alive=settings.keepalive,
                        password=None if settings.password is None else settings.password.encode(), max_packet_size=settings.max_packet,
                    )
                )  # fmt: skip
                self._welcomed(await connected)
            async with asyncio.timeout(settings.connect_timeout):
                await self._subscribe_anew()
        except TimeoutError:
            raise TransportError(f"no answer within {settings.connect_timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise BrokerRefused(f"its certificate is not to be trusted: {error.verify_message}") from error
        else:
            self._up.set()
        finally:
            if connection is not None and not self.is_up:
                connection.abort("it did not come about")

    def _welcomed(self, answer: mqtt5.ConnAckPacket) -> None:
        """Looks at what the broker has answered. Raises `TransportError` if that is no welcome."""
        if answer.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
            said = f" ({answer.reason_str})" if answer.reason_str else ""
            refused = _REFUSED.get(int(answer.reason_code))
            if refused is not None:
                raise BrokerRefused(f"{refused}{said}")
            raise TransportError(f"the broker refuses: {answer.reason_code.name.lower().replace('_', ' ')}{said}")
        self._allowed = answer.receive_max
        self._largest = min(self._settings.max_packet, answer.max_packet_size or self._settings.max_packet)

    async def _subscribe_anew(self) -> None:
        done: dict[str, int | None] = {}
        while done != self._subscribed:  # more may be wanted while the broker answers
            for pattern in done.keys() - self._subscribed.keys():
                del done[pattern]
                await self._unsubscribe(pattern)
            wanted = {pattern: number for pattern, number in self._subscribed.items() if pattern not in done}
            await self._subscribe(wanted)
            done |= wanted

    def _note_cut_short(self, now: float) -> None:
        """Not every broker says that a connection was taken over: when it ends without a word again and again, it was."""
        self._cut_short.append(now)
        if len(self._cut_short) == self._cut_short.maxlen and now - self._cut_short[0] < _FIGHT:
            self._taken_over = True

    async def _watch(self) -> str:
        """Keeps the connection alive until it ends, and says why it did."""
        connection, ended, keepalive = self._connection, self._ended, self._settings.keepalive
        assert connection is not None
        assert ended is not None
        loop = asyncio.get_running_loop()
        while not ended.done():
            await asyncio.wait((ended,), timeout=keepalive / 4)
            now = loop.time()
            if now - connection.heard_at > keepalive * 1.5:
                connection.abort("the broker is silent")
            elif now - min(connection.sent_at, connection.heard_at) > keepalive / 2:  # the broker, too, wants to hear of us
                self._pings.append(loop.create_future())
                connection.send(mqtt5.PingReqPacket())
        return ended.result()

    def _go_down(self, reason: str) -> None:
        self._up.clear()
        self._connection = None
        acks, self._acks = [*self._acks.values(), *self._pings], {}
        self._pings.clear()
        for ack in acks:
            if not ack.done():
                ack.set_exception(LinkLost(reason))
                ack.exception()
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)  # it finds that the link is down

    # Packets

    def _packet(self, connection: Connection, packet: Packet) -> None:
        if connection is not self._connection:
            return  # of one that was given up
        if isinstance(packet, mqtt5.PublishPacket):
            if packet.packet_id is not None:
                connection.send(mqtt5.PubAckPacket(packet.packet_id))
            self._on_publish(packet)
        elif isinstance(packet, mqtt5.PubAckPacket | mqtt5.SubAckPacket | mqtt5.UnsubAckPacket):
            ack = self._acks.pop(packet.packet_id, None)
            if ack is not None and not ack.done():
                ack.set_result(packet)
            if isinstance(packet, mqtt5.PubAckPacket):
                self._allowed += 1
                self._wake_next()
        elif isinstance(packet, mqtt5.PingRespPacket):
            answered = self._pings.popleft() if self._pings else None
            if answered is not None and not answered.done():
                answered.set_result(None)
        elif isinstance(packet, mqtt5.ConnAckPacket):
            if self._connected is not None and not self._connected.done():
                self._connected.set_result(packet)
        elif isinstance(packet, mqtt5.DisconnectPacket):
            self._taken_over = int(packet.reason_code) == int(mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER)
            said = packet.reason_str or packet.reason_code.name.lower().replace("_", " ")
            connection.abort(f"the broker says: {said}")

    def _acknowledgement(self) -> "tuple[int, asyncio.Future[Any]]":
        """A packet id that is not in use, and what its acknowledgement will be."""
        while True:
            self._last_id = self._last_id % 65535 + 1
            if self._last_id not in self._acks:
                break
        ack = self._acks[self._last_id] = asyncio.get_running_loop().create_future()
        return self._last_id, ack

    def _wake_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    # Publishing

    async def publish(self, topic: str, payload: bytes, *, wait: bool = True, **properties: Any) -> None:
        """Publishes with QoS 0: at most once, handed to the network when it returns.

        Args:
            wait: for a connection that is lost to be made again; else it is an error.

        Raises:
            LinkLost: there is no connection.
            TooLarge: the broker does not take so much.
        """
        while not self.publish_now(topic, payload, **properties):
            await self.ready(wait=wait)

    async def ready(self, *, wait: bool = True) -> None:
        """Waits until there is a connection that takes something. Raises `LinkLost`."""
        connection = await self._standing(wait)
        await connection.writable()

    def publish_now(self, topic: str, payload: bytes, **properties: Any) -> bool:
        """The same, if there is a connection that takes it at once: says whether that was so."""
        connection = self._connection
        if connection is None or not self.is_up or connection.congested:
            return False
        self._check_size(topic, payload)
        connection.send(mqtt5.PublishPacket(topic, payload, **properties))
        return True

    def _check_size(self, topic: str, payload: bytes) -> None:
        if len(payload) + len(topic) + _HEADERS > self._largest:
            raise TooLarge(
                f"a message of {len(payload):,} bytes is more than the broker takes ({self._largest:,} with its headers)"
            )

    async def publish_acknowledged(self, topic: str, payload: bytes, **properties: Any) -> bool:
        """Publishes with QoS 1, waiting for a connection if need be. Says whether anybody was there to take it.

        Raises:
            LinkLost: the connection was lost before the broker had answered: it may have arrived.
            TooLarge: the broker does not take so much.
            TransportError: the broker refuses it.
        """
        self._check_size(topic, payload)
        while True:
            connection = await self._standing(True)
            await connection.writable()
            if self._allowed > 0:
                break
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._wake_next()
                raise
        self._allowed -= 1
        packet_id, ack = self._acknowledgement()
        connection.send(mqtt5.PublishPacket(topic, payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=packet_id, **properties))
        answer: mqtt5.PubAckPacket = await asyncio.shield(ack)
        if int(answer.reason_code) >= 0x80:
            said = answer.reason_str or answer.reason_code.name.lower().replace("_", " ")
            raise TransportError(f"the broker refuses {topic}: {said}")
        return answer.reason_code != mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS

    async def _standing(self, wait: bool) -> Connection:
        if self._connection is None or not self._up.is_set():
            if not wait:
                raise LinkLost("there is no connection to the broker")
            while self._connection is None or not self.is_up:
                if self._failure is not None:
                    raise self._failure
                if self._running is None:
                    raise LinkLost("the link is closed")
                await self._up.wait()
        return self._connection

    # Subscribing

    async def round_trip(self) -> None:
        """Returns when the broker has handled what was sent to it; over a lost connection, it is asked on the next.

        Raises:
            LinkLost: the link was closed.
        """
        while True:
            connection = await self._standing(True)
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._pings.append(answered)
            connection.send(mqtt5.PingReqPacket())
            try:
                return await answered
            except LinkLost:
                continue

    async def subscribe(self, pattern: str, subscription_id: int | None = None) -> None:
        """Takes what is published on topics that fit, now and after every reconnection. Waits for a connection.

        Args:
            subscription_id: comes back with each message.

        Raises:
            LinkLost: the link was closed.
            TransportError: the broker refuses it.
        """
        self._subscribed[pattern] = subscription_id
        if self.is_up:
            try:
                await self._subscribe({pattern: subscription_id})
            except LinkLost:
                pass  # it is subscribed to with the next connection
        await self._standing(True)
        if pattern not in self._subscribed:
            raise TransportError(f"the broker refuses to let us hear {pattern}")

    async def _subscribe(self, patterns: dict[str, int | None]) -> None:
        assert self._connection is not None
        asked: list[tuple[str, asyncio.Future[Any]]] = []
        for pattern, subscription_id in patterns.items():
            packet_id, ack = self._acknowledgement()
            asked.append((pattern, ack))
            # retain_as_published off: a message kept by the broker is known from one that was just said
            taken = mqtt5.TopicFilter(pattern, max_qos=mqtt5.QoS.AT_LEAST_ONCE, retain_as_published=False)
            self._connection.send(mqtt5.SubscribePacket(packet_id, [taken], subscription_id=subscription_id))
        for pattern, ack in asked:
            answer: mqtt5.SubAckPacket = await ack
            if int(answer.reason_codes[0]) >= 0x80:
                self._subscribed.pop(pattern, None)
                raise TransportError(
                    f"the broker refuses to let us hear {pattern}: {answer.reason_codes[0].name.lower().replace('_', ' ')}"
                )

    async def unsubscribe(self, pattern: str) -> None:
        """Takes it no longer. Raises `LinkLost`; then it is not subscribed to again."""
        if self._subscribed.pop(pattern, None) is not None and self._up.is_set():
            await self._unsubscribe(pattern)

    async def _unsubscribe(self, pattern: str) -> None:
        assert self._connection is not None
        packet_id, ack = self._acknowledgement()
        self._connection.send(mqtt5.UnsubscribePacket(packet_id, [pattern]))
        await ack
