"""The HTTP transport: requests are HTTP requests from node to node, and no broker is needed.

The answer to a request is the answer to its HTTP request; closing the connection cancels it. Nodes ask each other which
instances are present. Signals are not supported; the heads of streams travel with presence.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from yarl import URL

from runtime import Clock, Random, StartError
from runtime.network import (
    Address,
    Capabilities,
    Envelope,
    Head,
    LinkLost,
    Manifest,
    PeerUnreachable,
    Receiver,
    TooLarge,
    Topic,
    Transport,
    TransportError,
    Unsendable,
)
from runtime.repeats import Repeats
from runtime.telemetry import logger
from transports.header_values import PROBLEM
from transports.http import fields
from transports.http.assertions import Signer, Verifier
from transports.http.client import Answer, Client, Location
from transports.http.presence import Presence
from transports.http.request_handler import RequestHandler, StreamReaders
from transports.http.server import HttpServer
from transports.http.settings import HttpSettings

_REMEMBERED = 1024
"""The number of cancels remembered because they came before their request."""


class _Open(NamedTuple):
    """The parts of an open transport."""

    receiver: Receiver
    client: Client
    presence: Presence
    request_handler: RequestHandler
    server: HttpServer


class _Sent(NamedTuple):
    """A request that awaits its answer, and where it was sent."""

    task: "asyncio.Task[Any]"
    location: Location


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
                "transport.http.key and transport.http.peer_keys are needed: services prove who they are with them (`make containers` creates them)"
            )
        self._signer = Signer(own if key is None else lambda: key() or own, self._clock)
        self._verifier = Verifier(others if peer_keys is None else lambda: peer_keys() or others, self._clock)
        self._readers = None if readers is None else _merged(readers, self._settings.stream_readers)
        self._urls = urls(self._settings.peers)
        self._log = logger("http")
        self._opened: _Open | None = None
        self._watched: set[str | None] = set()
        self._sent: dict[tuple[Address, str], _Sent] = {}
        self._lost: set[asyncio.Task[Any]] = set()
        self._cancelled: dict[str, None] = {}
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
            request_handler.serve,
            settings.host,
            settings.port,
            "CALLBOARD_TRANSPORT__HTTP__PORT",
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
        presence = Presence(node, receiver, client, settings, clock, random, self._urls, self._identify, self._lose)
        self.node, self._opened = node, _Open(receiver, client, presence, request_handler, server)

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

    def _lose(self, address: Address, location: Location) -> None:
        """End the requests that were sent to an instance at a location where its node no longer answers."""
        for (to, _), sent in self._sent.items():
            if to == address and sent.location == location:
                self._lost.add(sent.task)
                sent.task.cancel()

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
        if envelope.kind == "request":
            location = self._open.presence.location(to)
            if location is None:
                raise PeerUnreachable(f"{to} is not there")
            await self._request(to, location, envelope, sender)
        elif envelope.kind == "cancel":
            self._cancel(to, envelope)
        elif not self.unicast_now(to, envelope, sender):
            raise PeerUnreachable(f"{to} no longer waits for an answer")

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        if envelope.kind not in ("reply", "error") or self._opened is None:
            return False
        return self._opened.request_handler.answer(to, envelope, sender)

    def _cancel(self, to: Address, envelope: Envelope) -> None:
        """Cancel a request: close its connection, or do not send it if it was not sent yet."""
        sent = self._sent.get((to, envelope.id))
        if sent is not None:
            self._lost.add(sent.task)
            sent.task.cancel()
            return
        self._cancelled[envelope.id] = None
        if len(self._cancelled) > _REMEMBERED:
            del self._cancelled[next(iter(self._cancelled))]

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        locations = await self._open.presence.locations(service)
        turn = self._next[service] = self._next.get(service, -1) + 1
        for index in range(len(locations)):
            location = locations[(turn + index) % len(locations)]
            try:
                await self._request(Address(service, ""), location, envelope, sender)
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

    async def _request(self, to: Address, location: Location, envelope: Envelope, sender: str) -> None:
        """Make a request, and hand its answer to the receiver. Raises like `unicast`."""
        if envelope.id in self._cancelled:
            return
        if len(envelope.body) > self._settings.max_body:
            raise TooLarge(f"the request has {len(envelope.body)} bytes: more than {self._settings.max_body}")
        try:
            headers = fields.of_request(envelope, to.node or None)
        except ValueError as error:
            raise Unsendable(f"a value cannot be sent in a header: {error}") from None
        try:
            headers[fields.ASSERTION] = self._signer.assertion(sender, to.service)
        except ValueError as error:
            raise PeerUnreachable(str(error)) from None
        task = asyncio.current_task()
        assert task is not None
        self._sent[to, envelope.id] = _Sent(task, location)
        try:
            answer = await self._open.client.post(location, _path(to.service, envelope.subject), headers, envelope.body)
        except asyncio.CancelledError:
            if task in self._lost and task.uncancel() == 0:
                raise LinkLost(f"{to} is gone") from None
            raise
        finally:
            self._lost.discard(task)
            del self._sent[to, envelope.id]
        self._answered(to, envelope, answer)

    def _answered(self, to: Address, request: Envelope, answer: Answer) -> None:
        load = fields.load(answer.fields)
        ours = fields.NODE in answer.fields
        if answer.status == 200 and ours:
            back = Envelope("reply", request.id, "", answer.body, to.service, load=load)
        elif answer.status == 202 and ours and request.reply_to is None:
            return
        elif answer.status == 404 and to.node == "" and fields.REFUSED in answer.fields:
            raise PeerUnreachable(f"{answer.fields[fields.NODE]} does not listen for {to.service}")
        elif answer.kind == PROBLEM and ours:
            if answer.status == 401 and "www-authenticate" in answer.fields:
                message, said = "%s refuses this node's requests: %.300s", answer.body.decode(errors="replace")
                self._repeats.log(self._log, logging.WARNING, ("refused", to.service), message, to, said)
            back = Envelope("error", request.id, "", answer.body, to.service, load=load)
        else:
            raise LinkLost(f"{to} answered {answer.status}, but the answer does not come from a node")
        if self._opened is not None and request.reply_to is not None:
            self._opened.receiver.receive(back, request.reply_to.service)


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


def _path(service: str, subject: str) -> str:
    return f"/{service}/{subject.removeprefix(f'{service}.')}"


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
