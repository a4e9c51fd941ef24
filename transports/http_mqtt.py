"""The combined transport: requests over HTTP, signals over MQTT."""

import asyncio

import msgspec

from runtime import StartError
from runtime.network import Address, Capabilities, Envelope, Manifest, Receiver, Topic, Transport, TransportError
from transports.http.transport import HttpTransport
from transports.mqtt.transport import MqttTransport

_PATIENCE = 3.0
"""Seconds that a start waits for the broker. After that the node starts without signals, which follow once the broker answers."""


class _SignalReceiver(Receiver):
    """Passes on signals and errors from the broker. Presence is left to HTTP."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def load(self, service: str) -> int:
        return self._receiver.load(service)

    def receive(self, envelope: Envelope, to: str) -> None:
        if envelope.kind == "signal":
            self._receiver.receive(envelope, to)

    def unreadable(self) -> None:
        self._receiver.unreadable()

    def retained(self) -> None:
        self._receiver.retained()

    def failed(self, error: TransportError) -> None:
        self._receiver.failed(error)


class HttpMqttTransport(Transport):
    """A node that talks to its peers over HTTP, and exchanges signals over a broker."""

    def __init__(self, http: HttpTransport, mqtt: MqttTransport) -> None:
        self.http = http
        self.mqtt = mqtt
        self._capabilities = Capabilities(ordered=False, max_body=http.capabilities.max_body)
        self._subscribed: dict[tuple[Topic, str], bool] = {}
        """The signals that are subscribed to and the services that subscribe: whether every node receives them."""
        self._joining: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<HttpMqttTransport {self.http} {self.mqtt}>"

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]  # mypy: a property in place of an attribute, which nobody sets
        signals = self.mqtt.capabilities.max_signal  # may change when it reconnects
        if signals != self._capabilities.max_signal:
            self._capabilities = msgspec.structs.replace(self._capabilities, max_signal=signals)
        return self._capabilities

    @property
    def connected(self) -> bool:
        return self.http.connected  # without its broker a node still answers requests, and signals may be lost anyway

    async def open(self, node: str, receiver: Receiver) -> None:
        await self.http.open(node, receiver)
        self._joining = asyncio.create_task(self._join(node, receiver))
        try:
            await asyncio.wait((self._joining,), timeout=_PATIENCE)
            if self._joining.done():
                self._joining.result()
        except BaseException:
            await self.close()
            raise

    async def _join(self, node: str, receiver: Receiver) -> None:
        """Connect to the broker, however long that takes; requests do not wait for it."""
        try:
            await self.mqtt.open(node, _SignalReceiver(receiver))
        except StartError as error:
            receiver.failed(error if isinstance(error, TransportError) else TransportError(str(error)))
            raise
        for (topic, service), broadcast in list(self._subscribed.items()):
            await self.mqtt.subscribe(topic, service, broadcast=broadcast)

    @property
    def _joined(self) -> bool:
        return self._joining is not None and self._joining.done()

    async def close(self) -> None:
        try:
            if self._joining is not None:
                self._joining.cancel()
                await asyncio.gather(self._joining, return_exceptions=True)
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
        if topic.kind == "signal":
            self._subscribed[topic, service] = broadcast
            if not self._joined:
                return
        await self._for(topic).subscribe(topic, service, broadcast=broadcast)

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        self._subscribed.pop((topic, service), None)
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
        """Return the transport for a topic. Heads of streams travel over HTTP, so that events need no broker."""
        return self.mqtt if topic.kind == "signal" else self.http
