"""The MQTT 5 transport: one connection for a node, an inbox for each of its services, presence by retained manifests.

There is no session and no reliance on the broker's queues: what is lost on the way is the caller's deadline's matter,
what must not be lost is in the databases.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import mqtt5
import msgspec

from runtime import Clock, Malformed, Random
from runtime.network import (
    Address,
    Capabilities,
    Envelope,
    EnvelopeKind,
    Manifest,
    PeerUnreachable,
    Receiver,
    Topic,
    Transport,
    TransportError,
)
from transports.mqtt import packets
from transports.mqtt.link import Link
from transports.mqtt.presence import MISSED, Presence
from transports.mqtt.settings import MqttSettings
from transports.mqtt.topics import FOREIGN, Topics

_GOODBYE = 2.0
"""Seconds that a withdrawal may take: nobody waits for a broker that does not answer."""


_MOST_NUMBERS = 268_435_455
"""The largest subscription identifier (MQTT 5, section 3.8.2.1.2)."""


class MqttTransport(Transport):
    """One node on an MQTT 5 broker."""

    capabilities = Capabilities(authenticates=True)

    def __init__(self, settings: MqttSettings | None = None, clock: Clock | None = None, random: Random | None = None) -> None:
        self.node = ""
        self._settings = settings or MqttSettings()
        self._clock = clock or Clock()
        self._random = random or Random(self._clock)
        self._topics = Topics(self._settings.namespace)
        self._log = logging.getLogger("callboard.mqtt")
        self._receiver: Receiver | None = None
        self._presence: Presence | None = None
        self._link: Link | None = None
        self._inboxes: dict[str, asyncio.Future[None]] = {}
        self._hearing: dict[int, set[str]] = {}
        self._numbers: dict[str, int] = {}
        self._last_number = 0
        self._telling = asyncio.Lock()
        self._patterns: dict[tuple[Topic, str], str] = {}
        self._manifests: dict[str, Manifest] = {}
        self._beating: asyncio.Task[None] | None = None
        self._unreadable = 0

    def __repr__(self) -> str:
        return f"<MqttTransport {self.node or '-'} {self._link or 'CLOSED'}>"

    @property
    def link(self) -> Link:
        if self._link is None:
            raise PeerUnreachable("this transport is closed")
        return self._link

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.is_up

    # Joining and leaving

    async def open(self, node: str, receiver: Receiver) -> None:
        if self._link is not None:
            raise TransportError(f"{self.node} is open already: a transport serves one node")
        self.node, self._receiver = node, receiver
        patience = max(2 * MISSED * self._settings.heartbeat, 3.0 * self._settings.keepalive)
        self._presence = Presence(receiver, self._clock, self._settings.heartbeat, patience)
        will = mqtt5.Will(self._topics.gone(node), qos=mqtt5.QoS.AT_LEAST_ONCE)
        link = Link(
            self._settings, node, will, self._heard, self._cut, self._restored, receiver.failed, self._clock, self._random
        )
        await link.open()
        self._link = link
        await link.subscribe(self._topics.all_gone)
        self._beating = asyncio.create_task(self._beat())

    async def close(self) -> None:
        link = self._link
        if link is None:
            return
        if self._beating is not None:
            self._beating.cancel()
        if link.is_up:
            for manifest in list(self._manifests.values()):
                await self.withdraw(manifest.address)
        self._link = None
        await link.close()
        self._end()

    def crash(self) -> None:
        """Goes without a word, as a killed process would: the broker tells the others."""
        if self._beating is not None:
            self._beating.cancel()
        if self._link is not None:
            self._link.abort()
        self._link = None
        self._end()

    def _end(self) -> None:
        self._receiver = self._presence = None
        self._inboxes.clear()
        self._hearing.clear()
        self._numbers.clear()
        self._patterns.clear()
        self._manifests.clear()

    def _cut(self) -> None:
        if self._receiver is not None and self._presence is not None:
            self._presence.cut()
            self._receiver.cut()

    def _restored(self) -> None:
        if self._presence is not None:
            self._presence.restored()
        for manifest in self._manifests.values():
            task = asyncio.create_task(self._announce(manifest))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    # Who is there

    async def watch(self, service: str | None) -> None:
        await self.link.subscribe(self._topics.presences(service))
        await self.link.round_trip()  # what the broker has kept comes before its answer

    async def announce(self, manifest: Manifest) -> None:
        await self._open_inbox(manifest.service)
        self._manifests[manifest.service] = manifest
        await self._announce(manifest)

    async def _announce(self, manifest: Manifest) -> None:
        async with self._telling:  # one that is withdrawn meanwhile must not come back
            if self._manifests.get(manifest.service) is manifest:
                await self._tell(manifest)

    async def _tell(self, manifest: Manifest) -> None:
        assert self._receiver is not None
        load = self._receiver.load(manifest.service)
        await self.link.publish_acknowledged(
            self._topics.presence(manifest.address), msgspec.json.encode(manifest), retain=True,
            message_expiry_interval=max(1, round(self._settings.heartbeat * MISSED)), user_properties=[("load", str(load))],
        )  # fmt: skip

    async def withdraw(self, address: Address) -> None:
        manifest = self._manifests.pop(address.service, None)
        try:
            async with asyncio.timeout(_GOODBYE):
                await self.link.unsubscribe(self._topics.requests(address.service))
                for topic, service in list(self._patterns):
                    if service == address.service:
                        await self.unsubscribe(topic, service)
                async with self._telling:
                    if manifest is not None and self.link.is_up:
                        await self.link.publish_acknowledged(self._topics.presence(address), b"", retain=True)
        except (TimeoutError, TransportError) as error:  # then the Will says it, or that no more is heard
            self._log.debug("%s was not withdrawn: %r", address, error)

    async def _beat(self) -> None:
        """Announces again and again, and misses those who no longer do."""
        while True:
            await self._clock.sleep(self._settings.heartbeat)
            if self._link is None or self._presence is None or not self._link.is_up:
                continue
            for manifest in list(self._manifests.values()):
                try:
                    await self._announce(manifest)
                except TransportError as error:
                    self._log.debug("%s was not announced: %s", manifest.address, error)
            if not self._link.is_busy:
                self._presence.check()

    # Hearing

    async def _take(self, pattern: str, service: str) -> None:
        """Subscribes. The subscription's identifier comes back with every message, and says for which services that is."""
        number = self._numbers.get(pattern)
        if number is None:
            self._last_number = self._last_number % _MOST_NUMBERS + 1
            number = self._numbers[pattern] = self._last_number
        self._hearing.setdefault(number, set()).add(service)
        await self.link.subscribe(pattern, number)

    async def _leave(self, pattern: str, service: str) -> None:
        number = self._numbers.get(pattern, 0)
        services = self._hearing.get(number, set())
        services.discard(service)
        if not services:
            self._numbers.pop(pattern, None)
            self._hearing.pop(number, None)
            await self.link.unsubscribe(pattern)

    async def _open_inbox(self, service: str) -> None:
        """Takes what is sent to a service on this node: requests to it, and replies to what it asks."""
        opened = self._inboxes.get(service)
        if opened is None:
            inboxes = self._topics.inboxes(Address(service, self.node))
            opened = self._inboxes[service] = asyncio.ensure_future(self.link.subscribe(inboxes))
        if not opened.done():
            await asyncio.shield(opened)
        elif opened.exception() is not None:
            del self._inboxes[service]
            opened.result()

    async def listen(self, service: str) -> None:
        await self._open_inbox(service)
        await self.link.subscribe(self._topics.requests(service))

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        pattern = self._patterns[topic, service] = self._topics.multicasts(topic, None if broadcast else service)
        await self._take(pattern, service)

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        pattern = self._patterns.pop((topic, service), None)
        if pattern is not None:
            await self._leave(pattern, service)

    def _heard(self, packet: mqtt5.PublishPacket) -> None:
        """Something has come."""
        if self._receiver is None or self._presence is None:
            return
        levels = self._topics.levels(packet.topic)
        try:
            if "" in levels:
                raise ValueError("a level of its topic is empty")
            match levels:
                case ("inbox", service, node, caller) if node == self.node:
                    reply_to = self._reply_to(packet.response_topic, caller)
                    kind: EnvelopeKind = "reply" if reply_to is None else "request"
                    self._deliver(packet, kind, "", caller, (service,), reply_to)
                case ("signal", service, name, key):
                    key_said = None if key == "-" else key
                    self._deliver(packet, "signal", f"{service}.{name}", service, self._for(packet), key=key_said)
                case ("request", service, name, caller):
                    reply_to = self._reply_to(packet.response_topic, caller)
                    self._deliver(packet, "request", f"{service}.{name}", caller, (service,), reply_to)
                case ("stream", service):
                    self._deliver(packet, "head", f"{service}.head", service, self._for(packet))
                case ("presence", service, node):
                    self._presence.heard(Address(service, node), packet.payload, packets.load(packet), kept=packet.retain)
                case ("gone", node):
                    self._presence.gone(node)
                case _:
                    raise ValueError("it is on no topic of ours")
        except Exception as error:  # whatever a stranger has sent must not end the link
            self._receiver.unreadable()
            self._unreadable += 1
            if self._unreadable == 1:
                self._log.warning(
                    "a message on %.200s cannot be read, and is dropped like those that follow: %s", packet.topic, error
                )
            if levels[:1] in (("inbox",), ("request",)) and self._topics.is_level(levels[1]):
                self._refuse(packet, levels[1], levels[-1], error)

    def _for(self, packet: mqtt5.PublishPacket) -> set[str]:
        """The services that a multicast has come for."""
        found: set[str] = set()
        for number in packet.subscription_ids:
            found |= self._hearing.get(number, set())
        return found

    def _deliver(
        self,
        packet: mqtt5.PublishPacket,
        kind: EnvelopeKind,
        subject: str,
        caller: str,
        services: Iterable[str],
        reply_to: Address | None = None,
        key: str | None = None,
    ) -> None:
        assert self._receiver is not None
        envelope = packets.envelope(packet, kind, subject, caller, reply_to, key)
        if envelope.kind == "request" and not envelope.id:
            envelope = msgspec.structs.replace(envelope, id=self._random.hex(32))
        for service in services:
            self._receiver.receive(envelope, service)

    def _reply_to(self, response_topic: str | None, caller: str) -> Address | None:
        """Where an answer goes: to the caller's own inbox, or where a client that is none of ours wants it.

        Raises:
            ValueError: that is no place for answers, as another's inbox.
        """
        if response_topic is None:
            return None
        match self._topics.levels(response_topic):
            case ("inbox", service, node) if service == caller and self._topics.is_level(node):
                return Address(service, node)
            case ():
                if response_topic.startswith("$") or not response_topic or any(sign in response_topic for sign in "+#\0"):
                    raise ValueError(f"{response_topic!r:.80} is no topic to answer to")
                return Address(FOREIGN, response_topic)
            case _:
                raise ValueError(f"the answer is to go to {response_topic!r:.120}, which is no inbox of {caller}")

    def _refuse(self, packet: mqtt5.PublishPacket, service: str, caller: str, error: Exception) -> None:
        """Answers what cannot be read, where that is wanted."""
        try:
            reply_to = self._reply_to(packet.response_topic, caller)
        except ValueError:
            return
        if reply_to is not None and self._link is not None:
            found = "" if packet.correlation_data is None else packet.correlation_data.decode("latin-1")
            body = msgspec.json.encode(Malformed(str(error)).data())
            answer = Envelope("error", found, "", body)
            self._link.publish_now(self._topics.to(reply_to, service), body, **packets.properties(answer, None))

    # Speaking

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        await self._open_inbox(sender)
        topic, properties = self._packed(to, envelope, sender)
        if envelope.kind != "request":
            await self.link.publish(topic, envelope.body, **properties)
            return
        assert self._presence is not None
        while True:
            await self._presence.here(to)
            if self._presence.is_live(to):
                if self.link.publish_now(topic, envelope.body, **properties):
                    return
                await self.link.ready()  # and look again: it may have been lost meanwhile
                continue
            knock = self._presence.knock(to)
            async with knock or nullcontext():  # if it is not, the others have not been sent, and cannot be thought lost
                if self._presence.is_live(to):
                    continue
                if self._presence.knock(to) is not knock:
                    raise PeerUnreachable(f"{to} is not there")
                if await self.link.publish_acknowledged(topic, envelope.body, **properties):
                    self._presence.answers(to)
                    return
                self._presence.missing(to)  # only the broker knew

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        opened = self._inboxes.get(sender)
        if opened is None or not opened.done() or self._link is None or self._presence is None:
            return False
        if envelope.kind == "request" and not self._presence.is_live(to):
            return False
        topic, properties = self._packed(to, envelope, sender)
        return self._link.publish_now(topic, envelope.body, **properties)

    def _packed(self, to: Address, envelope: Envelope, sender: str) -> tuple[str, dict[str, Any]]:
        reply_to = envelope.reply_to
        reply_topic = None if reply_to is None else self._topics.reply(reply_to)
        return self._topics.to(to, sender), packets.properties(envelope, reply_topic)

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        await self._open_inbox(sender)
        topic = self._topics.request(service, envelope.subject.partition(".")[2], sender)
        reply_to = None if envelope.reply_to is None else self._topics.reply(envelope.reply_to)
        if not await self.link.publish_acknowledged(topic, envelope.body, **packets.properties(envelope, reply_to)):
            raise PeerUnreachable(f"nobody listens for {service}")

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        wanted = self._topics.multicast(topic)
        properties = packets.properties(envelope, None)
        if not self.link.publish_now(wanted, envelope.body, **properties):
            await self.link.publish(wanted, envelope.body, wait=False, **properties)
