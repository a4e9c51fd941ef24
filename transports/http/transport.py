"""The HTTP transport: requests are HTTP requests from node to node, and no broker is needed.

The answer to a request is the answer to its HTTP request; closing the connection cancels it. Nodes ask each other which
instances are present. Signals are not supported; the heads of streams travel with presence.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from yarl import URL

from runtime import Clock, Random, StartError
from runtime.network import (
    Address,
    Capabilities,
    Envelope,
    Head,
    Manifest,
    PeerUnreachable,
    Receiver,
    Topic,
    Transport,
    TransportError,
)
from runtime.repeats import Repeats
from runtime.telemetry import logger
from transports.http.assertions import Signer, Verifier
from transports.http.client import Client
from transports.http.presence import Presence
from transports.http.request_handler import RequestHandler, StreamReaders
from transports.http.requests import Requests
from transports.http.server import HttpServer
from transports.http.settings import HttpSettings


class _Open(NamedTuple):
    """The parts of an open transport."""

    receiver: Receiver
    client: Client
    presence: Presence
    requests: Requests
    request_handler: RequestHandler
    server: HttpServer


class HttpTransport(Transport):
    """A node that talks to its peers over HTTP.

    Args:
        readers: The services that may read the stream of each service here, besides those that the settings name; None if
            every service may.
        key: Returns the present private keys; by default, those of the settings.
        peer_keys: Returns the present public keys; by default, those of the settings.

    Raises:
        StartError: if the keys or the certificates cannot be used.
    """

    def __init__(
        self,
        settings: HttpSettings | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        *,
        readers: StreamReaders | None = None,
        key: Callable[[], str | None] | None = None,
        peer_keys: Callable[[], str | None] | None = None,
    ) -> None:
        self.node = ""
        self._settings = settings or HttpSettings()
        self.capabilities = Capabilities(
            signals=False, ordered=False, max_body=min(self._settings.max_body, Capabilities().max_body)
        )
        self._clock = clock or Clock()
        self._random = random or Random(self._clock)
        own, others = self._settings.key, self._settings.peer_keys
        if own is None or others is None:
            raise StartError(
                "transport.http.key and transport.http.peer_keys are needed: services prove who they are with them (`callboard provision secrets` creates them)"
            )
        self._signer = Signer(own if key is None else lambda: key() or own, self._clock)
        self._verifier = Verifier(others if peer_keys is None else lambda: peer_keys() or others, self._clock)
        self._readers = None if readers is None else _merged(readers, self._settings.stream_readers)
        self._urls = urls(self._settings.peers)
        self._log = logger("http")
        self._opened: _Open | None = None
        self._watched: set[str | None] = set()
        self._next: dict[str, int] = {}
        self._repeats = Repeats(self._clock)

    def __repr__(self) -> str:
        return f"<HttpTransport {self.node or '-'} [{'CLOSED' if self._opened is None else 'OPEN'}] on {self.port}>"

    @property
    def _open(self) -> _Open:
        if self._opened is None:
            raise PeerUnreachable("this transport is closed")
        return self._opened

    @property
    def port(self) -> int:
        """The port on which the open transport listens; 0 while it is closed."""
        return 0 if self._opened is None else self._opened.server.port

    @property
    def connected(self) -> bool:
        return self._opened is not None

    # Joining and leaving

    async def open(self, node: str, receiver: Receiver) -> None:
        if self._opened is not None:
            raise TransportError(f"{self.node} is open already: a transport serves one node")
        settings, clock, random = self._settings, self._clock, self._random
        request_handler = RequestHandler(node, receiver, settings, self._verifier, clock, random, self._readers, self._repeats)
        server = HttpServer(
            request_handler.accept,
            settings.max_body,
            settings.host,
            settings.port,
            "CALLBOARD_TRANSPORT__HTTP__PORT",
            clock,
            self._repeats,
            certificate=_certificate(settings),
        )
        client = Client(settings)
        try:
            await server.start()
        except BaseException:
            await server.stop()
            await client.close()
            raise
        requests = Requests(receiver, client, settings, self._signer, self._repeats)
        presence = Presence(node, receiver, client, settings, clock, random, self._urls, self._identify, requests.lose)
        self.node, self._opened = node, _Open(receiver, client, presence, requests, request_handler, server)

    async def close(self) -> None:
        opened = self._opened
        if opened is None:
            return
        for manifest in opened.request_handler.announced:
            await self.withdraw(manifest.address)
        self._opened = None
        opened.request_handler.close()
        await opened.presence.close()
        await opened.server.stop()
        await opened.client.close()
        self._watched.clear()
        self._repeats.close()

    # Presence

    async def watch(self, service: str | None) -> None:
        presence = self._open.presence
        self._watched.add(service)
        for manifest in self._open.request_handler.announced:
            self._report_joined(manifest)
        await asyncio.gather(*(presence.watch(name) for name in (self._urls if service is None else (service,))))

    def _report_joined(self, manifest: Manifest) -> None:
        """Report this node's own instance to the receiver, if it watches the service."""
        receiver = self._open.receiver
        if not self._watched.isdisjoint((manifest.service, None)):
            receiver.joined(manifest, receiver.load(manifest.service))

    async def announce(self, manifest: Manifest) -> None:
        own = self._open.request_handler.own(manifest.service)
        own.manifest = manifest
        own.version += 1
        own.notify()
        self._report_joined(manifest)

    async def withdraw(self, address: Address) -> None:
        if self._opened is None:
            return
        own = self._opened.request_handler.own(address.service)
        announced, own.manifest, own.listening = own.manifest is not None, None, False
        own.notify()
        if announced:
            self._opened.receiver.left(Address(address.service, self.node), lost=False)

    def _identify(self, service: str) -> str:
        """Return the assertion for questions about a service's presence. Any of this node's services may ask."""
        return self._signer.assertion(self._signer.names[0], service)

    # Receiving

    async def listen(self, service: str) -> None:
        if service not in self._signer.names:
            raise StartError(f"transport.http.key has no key of {service}, only of {', '.join(self._signer.names)}")
        self._open.request_handler.own(service).listening = True

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        presence = self._open.presence
        _refuse_signal(topic)
        presence.subscribe(topic.service, service)
        self._watched.add(topic.service)
        await presence.watch(topic.service)

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        if self._opened is not None:
            self._opened.presence.unsubscribe(topic.service, service)

    # Sending

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        opened = self._open
        if envelope.kind == "request":
            location = opened.presence.location(to)
            if location is None:
                raise PeerUnreachable(f"{to} is not there")
            await opened.requests.send(to, location, envelope, sender)
        elif not self.unicast_now(to, envelope, sender):
            raise PeerUnreachable(f"{to} no longer waits for an answer")

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        opened = self._opened
        if opened is None:
            return False
        if envelope.kind == "request":
            location = opened.presence.location(to)
            return location is not None and opened.requests.send_now(to, location, envelope, sender)
        if envelope.kind == "cancel":
            opened.requests.cancel(to, envelope)
            return True
        return opened.request_handler.answer(to, envelope, sender)

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        locations = await self._open.presence.locations(service)
        turn = self._next[service] = self._next.get(service, -1) + 1
        for index in range(len(locations)):
            location = locations[(turn + index) % len(locations)]
            try:
                await self._open.requests.send(Address(service, ""), location, envelope, sender)
            except PeerUnreachable:
                continue
            return
        raise PeerUnreachable(f"no instance listens for {service}")

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        _refuse_signal(topic)
        opened = self._open
        own = opened.request_handler.own(topic.service)
        own.head = msgspec.json.decode(envelope.body, type=Head)
        own.heads += 1
        own.notify()
        for subscriber in opened.presence.subscribers(topic.service):  # the subscribers on this node
            opened.receiver.receive(msgspec.structs.replace(envelope, caller=topic.service), subscriber)


def _merged(readers: StreamReaders, more: tuple[str, ...]) -> StreamReaders:
    """Return the readers of streams, with those of the setting `stream_readers`."""
    merged = {service: set(names) for service, names in readers.items()}
    for pair in more:
        service, _, reader = pair.partition("=")
        merged.setdefault(service, set()).add(reader)
    return merged


def _refuse_signal(topic: Topic) -> None:
    if topic.kind == "signal":
        raise TransportError("the HTTP transport has no signals: with transport.kind=http+mqtt they travel over MQTT")


def _certificate(settings: HttpSettings) -> tuple[str, str] | None:
    """Return the files of this node's certificate and its private key, if there are any."""
    match settings.certificate_file, settings.private_key_file:
        case str(certificate), str(key):
            return certificate, key
        case None, None:
            return None
        case _:
            raise StartError("transport.http: certificate_file and private_key_file go together: set both, or neither")


def urls(peers: tuple[str, ...]) -> dict[str, tuple[URL, ...]]:
    """Return the URLs of each service.

    Raises:
        StartError: if a URL cannot be used.
    """
    found: dict[str, tuple[URL, ...]] = {}
    for peer in peers:
        service, _, text = peer.partition("=")
        try:
            url = URL(text)
            if url.host is None or url.port is None:
                raise ValueError("it has no host")
        except ValueError as error:
            raise StartError(f"transport.http.peers: {peer}: {error}") from None
        found[service] = (*found.get(service, ()), url)
    return found
