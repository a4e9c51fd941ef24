"""The MQTT 5 transport: one connection per node, an inbox for each of its services, and presence by retained manifests.

It uses no session and does not rely on the broker's queues. A request that is lost on the way ends with its caller's deadline;
data that must not be lost is in the databases.
"""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext, suppress

import mqtt5
import msgspec

from runtime import Clock, Random
from runtime.network import (
    Address,
    Capabilities,
    Envelope,
    Manifest,
    PeerUnreachable,
    Receiver,
    Topic,
    Transport,
    TransportError,
)
from runtime.repeats import Repeats
from runtime.telemetry import logger
from transports.mqtt import packets
from transports.mqtt.attempts import Attempts
from transports.mqtt.incoming import Incoming
from transports.mqtt.link import Link
from transports.mqtt.manifest_parts import ManifestParts, digest_of, node_of, split
from transports.mqtt.multicasts import Multicasts
from transports.mqtt.presence import MISSED, Presence
from transports.mqtt.settings import MqttSettings
from transports.mqtt.topics import Topics

_WITHDRAW_TIMEOUT = 2.0
"""Seconds that a withdrawal may take: a node that stops does not wait for a broker that does not answer."""

_COMPLETE = 1.2
"""Heartbeats after which a node that has joined has heard of every instance, even if the broker retains no manifests."""


class MqttTransport(Transport):
    """A node on an MQTT 5 broker.

    Args:
        password: returns the present password for each connection; by default, it is that of the settings.
    """

    capabilities = Capabilities(authenticates=True)

    def __init__(
        self,
        settings: MqttSettings | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        *,
        password: Callable[[], str | None] | None = None,
    ) -> None:
        self.node = ""
        self._settings = settings or MqttSettings()
        self._password = password or (lambda: self._settings.password)
        self.settling = self._settings.heartbeat * _COMPLETE
        self._clock = clock or Clock()
        self._random = random or Random(self._clock)
        self.attempts: Attempts = Attempts(self._settings.brokers, "", self._random)
        self._topics = Topics(self._settings.namespace)
        self._log = logger("mqtt")
        self._receiver: Receiver | None = None
        self._presence: Presence | None = None
        self._incoming: Incoming | None = None
        self._link: Link | None = None
        self._inboxes: dict[str, asyncio.Future[None]] = {}
        self._announcing = asyncio.Lock()
        self._announcements: set[asyncio.Task[None]] = set()
        self._multicasts = Multicasts("", self._topics, lambda _: (), shares_out=True)
        self._manifests: dict[str, Manifest] = {}
        self._instances: set[str] = set()
        """The ids of all instances that this node has announced, and the digests of their manifests."""
        self._published: dict[str, list[str]] = {}
        """By service: the topics of its manifest."""
        self._parts = ManifestParts()
        self._watched: set[str | None] = set()
        """The services whose instances are reported; None for all of them."""
        self._heartbeats: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<MqttTransport {self.node or '-'} {self._link or 'CLOSED'}>"

    @property
    def link(self) -> Link:
        """The link, while the transport is open."""
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
        self.attempts = Attempts(self._settings.brokers, node, self._random, self._password)
        patience = max(2 * MISSED * self._settings.heartbeat, 3.0 * self._settings.keepalive)
        self._presence = Presence(receiver, self._clock, self._settings.heartbeat, patience)
        self._multicasts = Multicasts(
            node, self._topics, self._presence.nodes, shares_out=True
        )  # until the broker says otherwise
        incoming = self._incoming = Incoming(
            node, self._topics, receiver, self._random, self._multicasts.subscribers, self._on_manifest,
            self._on_gone, self._answer, Repeats(self._clock),
        )  # fmt: skip
        will = mqtt5.Will(self._topics.gone(node), qos=mqtt5.QoS.AT_LEAST_ONCE)
        link = Link(
            self._settings,
            node,
            will,
            incoming.handle,
            incoming.too_large,
            self._cut,
            self._restored,
            receiver.failed,
            self._clock,
            self.attempts,
        )
        await link.open()
        self._link = link
        for restriction in link.limits.restrictions():
            self._log.warning("%s: %s", self.attempts.url, restriction)
        self._learn_capabilities(link)
        self._multicasts.shares_out = link.limits.shares_out
        await link.subscribe(self._topics.all_gone)
        self._heartbeats = asyncio.create_task(self._announce_regularly())

    def _learn_capabilities(self, link: Link) -> None:
        limits = link.limits
        self.capabilities = Capabilities(
            anycast=limits.shared_subscriptions, max_body=limits.max_body, max_signal=limits.max_body
        )

    async def close(self) -> None:
        link = self._link
        if link is None:
            return
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        if link.is_up:
            for manifest in list(self._manifests.values()):
                await self.withdraw(manifest.address)
            if self._instances:  # peers give up what they sent before they knew that the services had withdrawn
                with suppress(TimeoutError, TransportError):
                    async with asyncio.timeout(_WITHDRAW_TIMEOUT):
                        await link.publish_acknowledged(self._topics.gone(self.node), b"")
        self._link = None
        await link.close()
        self._end()

    def crash(self) -> None:
        """Disappear without withdrawing, as a killed process would. The broker publishes the node's Will."""
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        if self._link is not None:
            self._link.abort()
        self._link = None
        self._end()

    def _end(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
        self._receiver = self._presence = self._incoming = None
        self._inboxes.clear()
        self._manifests.clear()
        self._instances.clear()
        self._published.clear()
        self._parts = ManifestParts()
        self._watched.clear()

    def _cut(self) -> None:
        if self._receiver is not None and self._presence is not None:
            self._presence.cut()
            self._receiver.cut()

    def _restored(self) -> None:
        if self._presence is not None:
            self._presence.restored()
        if self._link is not None:
            self._learn_capabilities(self._link)  # another broker, or one with other settings
        for manifest in self._manifests.values():
            self._announce_soon(manifest)

    def _announce_soon(self, manifest: Manifest) -> None:
        task = asyncio.create_task(self._announce_again(manifest))
        self._announcements.add(task)
        task.add_done_callback(self._announcements.discard)

    async def _announce_again(self, manifest: Manifest) -> None:
        try:
            await self._announce(manifest)
        except TransportError as error:  # the next heartbeat does it
            self._log.debug("%s was not announced: %s", manifest.address, error)

    # Presence

    async def watch(self, service: str | None) -> None:
        self._watched.add(service)
        await self.link.subscribe(self._topics.presences(service))
        await self.link.round_trip()  # the retained manifests arrive before the broker's answer

    async def announce(self, manifest: Manifest) -> None:
        await self._open_inbox(manifest.service)
        self._manifests[manifest.service] = manifest
        self._instances.add(manifest.instance)
        await self.link.subscribe(self._topics.presence(manifest.address))  # see `_check_own`
        await self._announce(manifest)

    async def _announce(self, manifest: Manifest) -> None:
        async with self._announcing:  # a service that is withdrawn meanwhile must not be announced again
            if self._manifests.get(manifest.service) is manifest:
                await self._publish_manifest(manifest)

    async def _publish_manifest(self, manifest: Manifest) -> None:
        assert self._receiver is not None
        limits, load, body = self.link.limits, self._receiver.load(manifest.service), msgspec.json.encode(manifest)
        properties = {"retain": limits.retain, "message_expiry_interval": max(1, round(self._settings.heartbeat * MISSED))}
        parts = split(body, self._topics.presence(manifest.address), limits, [("load", str(load))])
        self._instances.add(digest_of(body))
        self._published[manifest.service] = [topic for topic, _, _ in parts]
        for topic, payload, headers in parts:
            await self.link.publish_acknowledged(topic, payload, {"user_properties": headers, **properties})

    async def withdraw(self, address: Address) -> None:
        manifest = self._manifests.pop(address.service, None)
        try:
            async with asyncio.timeout(_WITHDRAW_TIMEOUT):
                await self.link.unsubscribe(self._topics.requests(address.service))
                for topic in self._multicasts.topics_of(address.service):
                    await self.unsubscribe(topic, address.service)
                async with self._announcing:
                    if manifest is not None and self.link.is_up:
                        for name in reversed(self._published.get(address.service, [])):
                            await self.link.publish_acknowledged(name, b"", {"retain": self.link.limits.retain})
        except (TimeoutError, TransportError) as error:  # then peers learn it from the Will, or from the silence
            self._log.debug("%s was not withdrawn: %r", address, error)

    async def _announce_regularly(self) -> None:
        """Announce this node's services at every heartbeat, and check which peers are silent."""
        while True:
            await self._clock.sleep(self._settings.heartbeat)
            if self._link is None or self._presence is None or not self._link.is_up:
                continue
            for manifest in list(self._manifests.values()):
                await self._announce_again(manifest)
            if not self._link.is_busy:
                self._presence.check()

    # Receiving

    async def _open_inbox(self, service: str) -> None:
        """Receive what is sent to a service on this node: its requests, and the replies to its own requests."""
        opened = self._inboxes.get(service)
        if opened is None:
            subscribing = self.link.subscribe(self._topics.inboxes(Address(service, self.node)))
            opened = self._inboxes[service] = asyncio.ensure_future(subscribing)
        if not opened.done():
            await asyncio.shield(opened)
        elif opened.exception() is not None:
            del self._inboxes[service]
            opened.result()

    async def listen(self, service: str) -> None:
        await self._open_inbox(service)
        if self.capabilities.anycast:
            await self.link.subscribe(self._topics.requests(service))

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        link = self.link
        if not broadcast and not self._multicasts.shares_out:
            await self.watch(service)  # the instances choose one of them for each signal
        await link.subscribe(*self._multicasts.add(topic, service, broadcast=broadcast))

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        link = self.link
        pattern = self._multicasts.remove(topic, service)
        if pattern is not None:
            await link.unsubscribe(pattern)

    def _on_manifest(self, service: str, level: str, packet: mqtt5.PublishPacket) -> None:
        assert self._presence is not None
        address, part, payload = Address(service, node_of(level)), packets.part(packet), packet.payload
        if address.node == self.node:
            if level == self.node:
                self._check_own(service, payload, None if part is None else part.digest)
            if self._watched.isdisjoint((None, service)):
                return
        if part is not None:
            whole = self._parts.add(address, part, packet)
            if whole is None:
                return
            payload = whole
        elif level != address.node:
            return  # a part was deleted
        if self._presence.heard(address, payload, packets.load(packet), kept=packet.retain):
            self._introduce(service, address.node)

    def _on_gone(self, node: str) -> None:
        assert self._presence is not None
        self._presence.gone(node)
        self._parts.forget(node)

    def _answer(self, to: Address, envelope: Envelope, service: str) -> None:
        if self._link is not None:
            self._link.publish_now(self._topics.to(to, service), envelope.body, packets.properties(envelope, None))

    def _check_own(self, service: str, payload: bytes, digest: str | None) -> None:
        """Detect another node with this node's id: it announces instances that this one has never had.

        A broker reports a takeover in its DISCONNECT packet, but not every broker does: mosquitto 2.0 just closes the
        connection. Only a manifest of one of this node's own services counts, because others may be forged.
        """
        announced = (digest or packets.instance_of(payload)) if service in self._manifests and payload else None
        if announced is not None and announced not in self._instances and self._link is not None:
            self._link.fail_taken_over()

    def _introduce(self, service: str, node: str) -> None:
        """Announce the own instance of a service to a new one, where these two have to choose which takes a signal.

        The new instance may not have received the retained manifest, if there is any.
        """
        manifest = self._manifests.get(service)
        if manifest is not None and node != self.node and not self._multicasts.shares_out:
            self._announce_soon(manifest)

    # Sending

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        await self._open_inbox(sender)
        reply_topic = None if envelope.reply_to is None else self._topics.reply(envelope.reply_to)
        topic, properties = self._topics.to(to, sender), packets.properties(envelope, reply_topic)
        if envelope.kind != "request":
            await self.link.publish(topic, envelope.body, properties)
            return
        assert self._presence is not None
        while True:
            await self._presence.wait_until_known(to)
            if self._presence.is_live(to):
                if self.link.publish_now(topic, envelope.body, properties):
                    return
                await self.link.ready()
                continue  # it may have been lost meanwhile
            probe = self._presence.probe(to)
            async with (
                probe or nullcontext()
            ):  # one request finds out; the others are sent only then, and so cannot be lost with it
                if self._presence.is_live(to):
                    continue
                if self._presence.probe(to) is not probe:
                    raise PeerUnreachable(f"{to} is not there")
                if await self.link.publish_acknowledged(topic, envelope.body, properties):
                    if self.link.limits.acknowledges:
                        self._presence.mark_live(to)
                    return
                self._presence.mark_absent(to)

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        link, opened = self._link, self._inboxes.get(sender)
        if link is None or opened is None or not opened.done() or self._presence is None:
            return False
        if envelope.kind == "request" and not self._presence.is_live(to):
            return False
        reply_topic = None if envelope.reply_to is None else self._topics.reply(envelope.reply_to)
        return link.publish_now(self._topics.to(to, sender), envelope.body, packets.properties(envelope, reply_topic))

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        if not self.capabilities.anycast:
            raise TransportError(f"{self.attempts.url} has no shared subscriptions: choose an instance of {service} instead")
        await self._open_inbox(sender)
        topic = self._topics.request(service, envelope.subject.partition(".")[2], sender)
        reply_to = None if envelope.reply_to is None else self._topics.reply(envelope.reply_to)
        if not await self.link.publish_acknowledged(topic, envelope.body, packets.properties(envelope, reply_to)):
            raise PeerUnreachable(f"no instance listens for {service}")

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        name = self._topics.multicast(topic)
        properties = packets.properties(envelope, None)
        if not self.link.publish_now(name, envelope.body, properties):
            await self.link.publish(name, envelope.body, properties, wait=False)
