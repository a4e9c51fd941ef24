"""The HTTP transport: requests are HTTP requests from node to node, presence is asked for, and no broker is needed.

A request's answer is the answer of its HTTP request, and who hangs up cancels it. Signals are not supported; the heads of
streams travel with presence.
"""

import asyncio
import logging
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
from transports.http import fields
from transports.http.assertions import Signer, Verifier
from transports.http.client import Answer, Client, Place
from transports.http.presence import Presence
from transports.http.request_handler import RequestHandler
from transports.http.server import HttpServer
from transports.http.settings import HttpSettings

_REMEMBERED = 1024
"""Cancels that came before their request."""


class _Open(NamedTuple):
    """What there is while the transport is open."""

    receiver: Receiver
    client: Client
    presence: Presence
    request_handler: RequestHandler
    server: HttpServer


class _Asked(NamedTuple):
    """A request whose answer is waited for, and where it was sent."""

    task: "asyncio.Task[Any]"
    place: Place


class HttpTransport(Transport):
    """One node that speaks HTTP with its peers.

    Raises:
        StartError: the keys or the certificates cannot be used.
    """

    capabilities = Capabilities(signals=False, ordered=False)

    def __init__(self, settings: HttpSettings | None = None, clock: Clock | None = None, random: Random | None = None) -> None:
        self.node = ""
        self._settings = settings or HttpSettings()
        self._clock = clock or Clock()
        self._random = random or Random(self._clock)
        if self._settings.key is None or self._settings.peer_keys is None:
            raise StartError(
                "transport.http.key and transport.http.peer_keys are needed: by them services prove to each other who they are (`make containers` draws them)"
            )
        self._signer = Signer(self._settings.key, self._clock)
        self._verifier = Verifier(self._settings.peer_keys, self._clock)
        self._urls = urls(self._settings.peers)
        self._log = logging.getLogger("callboard.http")
        self._opened: _Open | None = None
        self._watched: set[str | None] = set()
        self._asked: dict[tuple[Address, str], _Asked] = {}
        self._lost: set[asyncio.Task[Any]] = set()
        self._cancelled: dict[str, None] = {}
        self._next: dict[str, int] = {}
        self._complained_at = float("-inf")

    def __repr__(self) -> str:
        return f"<HttpTransport {self.node or '-'} [{'CLOSED' if self._opened is None else 'OPEN'}] on {self.port}>"

    @property
    def _open(self) -> _Open:
        if self._opened is None:
            raise PeerUnreachable("this transport is closed")
        return self._opened

    @property
    def port(self) -> int:
        """Where it listens, while it is open."""
        return 0 if self._opened is None else self._opened.server.port

    @property
    def connected(self) -> bool:
        return self._opened is not None

    # Joining and leaving

    async def open(self, node: str, receiver: Receiver) -> None:
        if self._opened is not None:
            raise TransportError(f"{self.node} is open already: a transport serves one node")
        settings, clock, random = self._settings, self._clock, self._random
        request_handler = RequestHandler(node, receiver, settings, self._verifier, clock, random, self._complain)
        server = HttpServer(
            request_handler.serve,
            settings.host,
            settings.port,
            "CALLBOARD_TRANSPORT__HTTP__PORT",
            certificate=_certificate(settings),
        )
        client = Client(settings)
        try:
            await server.start()
        except BaseException:
            await server.stop()
            await client.close()
            raise
        presence = Presence(node, receiver, client, settings, clock, random, self._urls, self._introduce, self._lose)
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

    # Who is there

    async def watch(self, service: str | None) -> None:
        presence = self._open.presence
        self._watched.add(service)
        for manifest in self._open.request_handler.announced:
            self._tell_joined(manifest)
        await asyncio.gather(*(presence.watch(name) for name in (self._urls if service is None else (service,))))

    def _tell_joined(self, manifest: Manifest) -> None:
        """Tells this node of its own instance."""
        receiver = self._open.receiver
        if not self._watched.isdisjoint((manifest.service, None)):
            receiver.joined(manifest, receiver.load(manifest.service))

    async def announce(self, manifest: Manifest) -> None:
        own = self._open.request_handler.own(manifest.service)
        own.manifest = manifest
        own.version += 1
        own.change()
        self._tell_joined(manifest)

    async def withdraw(self, address: Address) -> None:
        if self._opened is None:
            return
        own = self._opened.request_handler.own(address.service)
        announced, own.manifest, own.listening = own.manifest is not None, None, False
        own.change()
        if announced:
            self._opened.receiver.left(Address(address.service, self.node), lost=False)

    def _lose(self, address: Address, place: Place) -> None:
        """Ends what waits for an answer of a node that is gone from there."""
        for (to, _), asked in self._asked.items():
            if to == address and asked.place == place:
                self._lost.add(asked.task)
                asked.task.cancel()

    def _introduce(self, service: str) -> str:
        """What proves to a service who it is that asks whether it is there: any of this node's services."""
        return self._signer.assertion(self._signer.names[0], service)

    # Hearing

    async def listen(self, service: str) -> None:
        if service not in self._signer.names:
            raise StartError(f"transport.http.key has no key of {service}, only of {', '.join(self._signer.names)}")
        self._open.request_handler.own(service).listening = True

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        presence = self._open.presence
        _need_no_signal(topic)
        presence.hint(topic.service, service)
        self._watched.add(topic.service)
        await presence.watch(topic.service)

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        if self._opened is not None:
            self._opened.presence.no_hint(topic.service, service)

    def _complain(self, what: str, *about: object) -> None:
        """Says what an operator should know, at most once a second: others may make it happen as often as they like."""
        now = self._clock.monotonic()
        if now - self._complained_at >= 1:
            self._complained_at = now
            self._log.warning(what, *about)

    # Speaking

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        if envelope.kind == "request":
            place = self._open.presence.place(to)
            if place is None:
                raise PeerUnreachable(f"{to} is not there")
            await self._ask(to, place, envelope, sender)
        elif envelope.kind == "cancel":
            self._cancel(to, envelope)
        elif not self.unicast_now(to, envelope, sender):
            raise PeerUnreachable(f"{to} does not wait for an answer any more")

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        if envelope.kind not in ("reply", "error") or self._opened is None:
            return False
        return self._opened.request_handler.answer(to, envelope, sender)

    def _cancel(self, to: Address, envelope: Envelope) -> None:
        """Hangs up; what has not been asked yet will not be."""
        asked = self._asked.get((to, envelope.id))
        if asked is not None:
            self._lost.add(asked.task)
            asked.task.cancel()
            return
        self._cancelled[envelope.id] = None
        if len(self._cancelled) > _REMEMBERED:
            del self._cancelled[next(iter(self._cancelled))]

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        places = await self._open.presence.places(service)
        turn = self._next[service] = self._next.get(service, -1) + 1
        for index in range(len(places)):
            place = places[(turn + index) % len(places)]
            try:
                await self._ask(Address(service, ""), place, envelope, sender)
            except PeerUnreachable:
                continue
            return
        raise PeerUnreachable(f"nobody listens for {service}")

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        _need_no_signal(topic)
        opened = self._open
        own = opened.request_handler.own(topic.service)
        own.head = msgspec.json.decode(envelope.body, type=Head)
        own.heads += 1
        own.change()
        for subscriber in opened.presence.subscribers(topic.service):  # those on this node
            opened.receiver.receive(msgspec.structs.replace(envelope, caller=topic.service), subscriber)

    async def _ask(self, to: Address, place: Place, envelope: Envelope, sender: str) -> None:
        """Makes a request, and hands its answer to the receiver. Raises like `unicast`."""
        if envelope.id in self._cancelled:
            return
        if len(envelope.body) > self._settings.max_body:
            raise TooLarge(f"the request has {len(envelope.body)} bytes: more than {self._settings.max_body}")
        try:
            headers = fields.of_request(envelope, to.node or None)
        except ValueError as error:
            raise Unsendable(f"it cannot stand in a header: {error}") from None
        try:
            headers[fields.ASSERTION] = self._signer.assertion(sender, to.service)
        except ValueError as error:
            raise PeerUnreachable(str(error)) from None
        task = asyncio.current_task()
        assert task is not None
        self._asked[to, envelope.id] = _Asked(task, place)
        try:
            answer = await self._open.client.post(place, _path(to.service, envelope.subject), headers, envelope.body)
        except asyncio.CancelledError:
            if task in self._lost and task.uncancel() == 0:
                raise LinkLost(f"{to} is gone") from None
            raise
        finally:
            self._lost.discard(task)
            del self._asked[to, envelope.id]
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
        elif answer.kind == fields.PROBLEM and ours:
            if answer.status == 401 and "www-authenticate" in answer.fields:
                self._complain("%s refuses this node's requests: %.300s", to, answer.body.decode(errors="replace"))
            back = Envelope("error", request.id, "", answer.body, to.service, load=load)
        else:
            raise LinkLost(f"{to} answered {answer.status} with something that is none of ours")
        if self._opened is not None and request.reply_to is not None:
            self._opened.receiver.receive(back, request.reply_to.service)


def _need_no_signal(topic: Topic) -> None:
    if topic.kind == "signal":
        raise TransportError("there are no signals over HTTP: transport.kind=http+mqtt sends them by MQTT")


def _certificate(settings: HttpSettings) -> tuple[str, str] | None:
    """The files of this node's certificate and its key, if it has them."""
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
    """Each service's URLs.

    Raises:
        StartError: a URL cannot be used.
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
