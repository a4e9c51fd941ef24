"""The MQTT 5 transport: one connection for a node, an inbox for each of its services, presence by retained manifests.

There is no session and no reliance on the broker's queues: what is lost on the way is the caller's deadline's matter,
what must not be lost is in the databases.
"""

import asyncio
import logging
from typing import Any

import mqtt5
import msgspec

from runtime import Chance, Clock
from runtime.envelope import Address, Envelope, EnvelopeKind, Topic
from runtime.manifest import Manifest
from runtime.transport import PeerUnreachable, Receiver, Traits, Transport, TransportError
from transports.mqtt import packets
from transports.mqtt.link import Link, LinkLost
from transports.mqtt.settings import MqttSettings
from transports.mqtt.topics import Topics

_MISSED = 3
"""An instance that has not announced itself for this many heartbeats is lost."""


class MqttTransport(Transport):
    """One node on an MQTT 5 broker."""

    traits = Traits(vouches=True)

    def __init__(self, settings: MqttSettings | None = None, clock: Clock | None = None, chance: Chance | None = None) -> None:
        self.node = ""
        self._settings = settings or MqttSettings()
        self._clock = clock or Clock()
        self._chance = chance or Chance(self._clock)
        self._topics = Topics(self._settings.namespace)
        self._log = logging.getLogger("callboard.mqtt")
        self._receiver: Receiver | None = None
        self._link: Link | None = None
        self._inboxes: dict[str, asyncio.Future[None]] = {}
        self._hearing: dict[int, set[str]] = {}
        self._numbers: dict[str, int] = {}
        self._patterns: dict[tuple[Topic, str], str] = {}
        self._manifests: dict[str, Manifest] = {}
        self._seen: dict[Address, float] = {}
        self._withdrawn: dict[Address, float] = {}
        self._heard_of: set[Address] = set()
        """Those that have announced themselves while we listened. Of others the broker has kept a manifest, and they may be dead."""
        self._beating: asyncio.Task[None] | None = None
        self._strange = 0

    def __repr__(self) -> str:
        return f"<MqttTransport {self.node or '-'} {self._link or 'CLOSED'}>"

    @property
    def link(self) -> Link:
        if self._link is None:
            raise PeerUnreachable("this transport is closed")
        return self._link

    # Joining and leaving

    async def open(self, node: str, receiver: Receiver) -> None:
        if self._link is not None:
            raise TransportError(f"{self.node} is open already: a transport serves one node")
        self.node, self._receiver = node, receiver
        will = mqtt5.Will(self._topics.gone(node), qos=mqtt5.QoS.AT_LEAST_ONCE)
        link = Link(self._settings, node, will, self._heard, self._lost, self._restored, self._clock, self._chance)
        await link.open()
        self._link = link
        await self._take(self._topics.presences, "")
        await self._take(self._topics.all_gone, "")
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
        self._receiver = None
        self._inboxes.clear()
        self._hearing.clear()
        self._numbers.clear()
        self._patterns.clear()
        self._manifests.clear()
        self._seen.clear()
        self._withdrawn.clear()
        self._heard_of.clear()

    def _lost(self) -> None:
        """The link is down: nobody will answer on it any more."""
        if self._receiver is not None:
            for address in (*self._seen, *self._withdrawn):
                self._receiver.left(address, lost=True)
        self._seen.clear()
        self._withdrawn.clear()
        self._heard_of.clear()

    def _restored(self) -> None:
        for manifest in self._manifests.values():
            task = asyncio.create_task(self._announce(manifest))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    # Who is there

    async def announce(self, manifest: Manifest) -> None:
        await self._open_inbox(manifest.service)
        self._manifests[manifest.service] = manifest
        self._withdrawn.pop(manifest.address, None)
        await self._announce(manifest)

    async def _announce(self, manifest: Manifest) -> None:
        expiry = max(1, round(self._settings.heartbeat * _MISSED))
        await self.link.publish_acknowledged(
            self._topics.presence(manifest.address), msgspec.json.encode(manifest), retain=True, message_expiry_interval=expiry
        )

    async def withdraw(self, address: Address) -> None:
        if self._manifests.pop(address.service, None) is None:
            return
        await self._leave(self._topics.requests(address.service), address.service)
        for topic, service in list(self._patterns):
            if service == address.service:
                await self.unsubscribe(topic, service)
        await self.link.publish_acknowledged(self._topics.presence(address), b"", retain=True)

    async def _beat(self) -> None:
        """Announces again and again, and misses those who no longer do."""
        while True:
            await self._clock.sleep(self._settings.heartbeat)
            if self._link is None or not self._link.is_up:
                continue
            for manifest in list(self._manifests.values()):
                try:
                    await self._announce(manifest)
                except TransportError as error:
                    self._log.debug("%s was not announced: %s", manifest.address, error)
            latest = self._clock.monotonic() - self._settings.heartbeat * _MISSED
            for address in [address for address, at in self._seen.items() if at < latest]:
                self._left(address, lost=True)
            for address in [address for address, at in self._withdrawn.items() if at < latest]:
                del self._withdrawn[address]

    def _presence(self, address: Address, payload: bytes, *, kept: bool) -> None:
        assert self._receiver is not None
        if not payload:
            if address in self._seen:
                self._left(address, lost=False)
                self._withdrawn[address] = self._clock.monotonic()
            return
        manifest = msgspec.json.decode(payload, type=Manifest)
        if manifest.address != address:
            raise ValueError(f"the manifest of {manifest.address} under the name of {address}")
        self._seen[address] = self._clock.monotonic()
        self._withdrawn.pop(address, None)
        if not kept:
            self._heard_of.add(address)
        self._receiver.joined(manifest)

    def _left(self, address: Address, *, lost: bool) -> None:
        self._seen.pop(address, None)
        self._heard_of.discard(address)
        if self._receiver is not None:
            self._receiver.left(address, lost=lost)

    def _gone(self, node: str) -> None:
        for address in [address for address in (*self._seen, *self._withdrawn) if address.node == node]:
            self._withdrawn.pop(address, None)
            self._left(address, lost=True)

    # Hearing

    async def _take(self, pattern: str, service: str) -> None:
        """Subscribes. The subscription's identifier comes back with every message, and says for which services that is."""
        number = self._numbers.setdefault(pattern, len(self._numbers) + 1)
        self._hearing.setdefault(number, set()).add(service)
        await self.link.subscribe(pattern, number)

    async def _leave(self, pattern: str, service: str) -> None:
        services = self._hearing.get(self._numbers.get(pattern, 0), set())
        services.discard(service)
        if not services:
            await self.link.unsubscribe(pattern)

    async def _open_inbox(self, service: str) -> None:
        """Takes what is sent to a service on this node: requests to it, and replies to what it asks."""
        opened = self._inboxes.get(service)
        if opened is None:
            opened = self._inboxes[service] = asyncio.ensure_future(
                self._take(self._topics.inboxes(Address(service, self.node)), service)
            )
        if not opened.done():
            await asyncio.shield(opened)
        elif opened.exception() is not None:
            del self._inboxes[service]
            opened.result()

    async def listen(self, service: str) -> None:
        await self._open_inbox(service)
        await self._take(self._topics.requests(service), service)

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        pattern = self._patterns[topic, service] = self._topics.multicasts(topic, None if broadcast else service)
        await self._take(pattern, service)

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        pattern = self._patterns.pop((topic, service), None)
        if pattern is not None:
            await self._leave(pattern, service)

    def _heard(self, packet: mqtt5.PublishPacket) -> None:
        """Something has come. What cannot be read is counted, and logged once."""
        if self._receiver is None:
            return
        try:
            levels = self._topics.levels(packet.topic)
            match levels:
                case ["presence", service, node]:
                    self._presence(Address(service, node), packet.payload, kept=packet.retain)
                case ["gone", node]:
                    self._gone(node)
                case ["inbox", service, node, caller] if node == self.node:
                    self._deliver(packet, "request", "", caller, {service})
                case ["request", service, name, caller]:
                    self._deliver(packet, "request", f"{service}.{name}", caller, {service})
                case ["signal", service, name, key]:
                    self._deliver(packet, "signal", f"{service}.{name}", service, self._for(packet), None if key == "-" else key)
                case ["stream", service]:
                    self._deliver(packet, "head", f"{service}.head", service, self._for(packet))
                case _:
                    raise ValueError("it is on no topic of ours")
        except (ValueError, msgspec.MsgspecError) as error:
            self._strange += 1
            if self._strange == 1:
                self._log.warning(
                    "a message on %s cannot be read, and is dropped like those that follow: %s", packet.topic, error
                )

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
        services: set[str],
        key: str | None = None,
    ) -> None:
        assert self._receiver is not None
        envelope = packets.envelope(packet, kind, subject, caller, self._reply_to(packet.response_topic))
        if key is not None:
            envelope = msgspec.structs.replace(envelope, key=key)
        for service in services:
            self._receiver.receive(envelope, service)

    def _reply_to(self, response_topic: str | None) -> Address | None:
        if response_topic is None:
            return None
        match self._topics.levels(response_topic):
            case ["inbox", service, node]:
                return Address(service, node)
            case _:
                return Address(packets.FOREIGN, response_topic)

    # Speaking

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        await self._open_inbox(sender)
        if to.service == packets.FOREIGN:
            await self._publish(to.node, envelope, sender)
        elif envelope.kind == "request" and to not in self._heard_of:  # only the broker knows whether it is there
            try:
                await self._ask(self._topics.inbox(to, sender), envelope, sender, f"{to} is not there")
            except PeerUnreachable:
                if to in self._seen:  # the broker has kept the manifest of one that is gone
                    self._left(to, lost=True)
                raise
        else:
            await self._publish(self._topics.inbox(to, sender), envelope, sender)

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        await self._open_inbox(sender)
        topic = self._topics.request(service, envelope.subject.partition(".")[2], sender)
        await self._ask(topic, envelope, sender, f"nobody listens for {service}")

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        await self.link.publish(self._topics.multicast(topic), envelope.body, wait=False, **packets.properties(envelope, None))

    async def _ask(self, topic: str, envelope: Envelope, sender: str, nobody: str) -> None:
        try:
            taken = await self.link.publish_acknowledged(topic, envelope.body, **self._properties(envelope, sender))
        except LinkLost:
            return  # it may have arrived: who waits for the answer is told that the link is lost
        if not taken:
            raise PeerUnreachable(nobody)

    async def _publish(self, topic: str, envelope: Envelope, sender: str) -> None:
        await self.link.publish(topic, envelope.body, **self._properties(envelope, sender))

    def _properties(self, envelope: Envelope, sender: str) -> dict[str, Any]:
        reply_to = envelope.reply_to
        return packets.properties(envelope, None if reply_to is None else self._topics.reply(reply_to))
