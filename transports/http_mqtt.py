"""Requests by HTTP and signals by MQTT: two transports as one."""

from runtime.envelope import Address, Envelope, Topic
from runtime.manifest import Manifest
from runtime.transport import Receiver, Traits, Transport, TransportError
from transports.http.transport import HttpTransport
from transports.mqtt.transport import MqttTransport


class _Signals:
    """The receiver, as the broker's side may speak to it: of signals alone. Who is there, HTTP says."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def load(self, service: str) -> int:
        return self._receiver.load(service)

    def receive(self, envelope: Envelope, to: str) -> None:
        if envelope.kind == "signal":
            self._receiver.receive(envelope, to)

    def joined(self, manifest: Manifest, load: int = 0) -> None:
        return

    def suspected(self, address: Address) -> None:
        return

    def left(self, address: Address, *, lost: bool) -> None:
        return

    def cut(self) -> None:
        """No request waits for the broker."""

    def unreadable(self) -> None:
        self._receiver.unreadable()

    def failed(self, error: TransportError) -> None:
        self._receiver.failed(error)


class HttpMqttTransport(Transport):
    """One node that speaks HTTP with its peers, and signals over a broker."""

    traits = Traits(ordered=False)

    def __init__(self, http: HttpTransport, mqtt: MqttTransport) -> None:
        self.http = http
        self.mqtt = mqtt

    def __repr__(self) -> str:
        return f"<HttpMqttTransport {self.http} {self.mqtt}>"

    @property
    def connected(self) -> bool:
        return self.http.connected  # without its broker a node still answers; signals may be lost anyway

    async def open(self, node: str, receiver: Receiver) -> None:
        await self.http.open(node, receiver)
        try:
            await self.mqtt.open(node, _Signals(receiver))
        except BaseException:
            await self.http.close()
            raise

    async def close(self) -> None:
        try:
            await self.mqtt.close()
        finally:
            await self.http.close()

    async def watch(self, service: str | None) -> None:
        await self.http.watch(service)

    async def listen(self, service: str) -> None:
        await self.http.listen(service)

    async def announce(self, manifest: Manifest) -> None:
        await self.http.announce(manifest)

    async def withdraw(self, address: Address) -> None:
        await self.http.withdraw(address)
        await self.mqtt.withdraw(address)

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        await self._for(topic).subscribe(topic, service, broadcast=broadcast)

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        await self._for(topic).unsubscribe(topic, service)

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        await self.http.unicast(to, envelope, sender)

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        return self.http.unicast_now(to, envelope, sender)

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        await self.http.anycast(service, envelope, sender)

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        await self._for(topic).multicast(topic, envelope, sender)

    def _for(self, topic: Topic) -> Transport:
        """Heads of streams travel with presence, so that events need no broker."""
        return self.mqtt if topic.kind == "signal" else self.http
