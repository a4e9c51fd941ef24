"""The HTTP transport: requests are HTTP requests from node to node, presence is asked for, and no broker is needed.

A request's answer is the answer of its HTTP request, and who hangs up cancels it. Signals are not supported; the heads of
streams travel with presence.
"""

import asyncio
import logging
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
from yarl import URL

from runtime import Chance, Clock, Malformed, NoInstance, ServiceError, StartError, Unreachable
from runtime.envelope import Address, Envelope, Head, Topic
from runtime.errors import InstanceLost
from runtime.manifest import Manifest
from runtime.transport import LinkLost, PeerUnreachable, Receiver, TooLarge, Traits, Transport, TransportError
from transports.http import fields
from transports.http.assertions import Refused, Signer, Verifier
from transports.http.client import Answer, Client, Place
from transports.http.presence import News, Presence
from transports.http.server import Exchange, HttpServer, Pairs, Refusal, Scope, until_gone
from transports.http.settings import HttpSettings

_BODY = 10.0
"""Seconds that a request's body may take to come."""
_LONGEST_WAIT = 60.0
_REMEMBERED = 1024

_Work = tuple[str, str, str]
"""A request that is answered here: the service and the node that ask, and the id they gave it."""


class _Answering(NamedTuple):
    """A request that came, and its answer to come."""

    service: str
    answer: "asyncio.Future[Envelope]"

    def lose(self) -> None:
        """Answers that no answer will come."""
        if not self.answer.done():
            self.answer.set_result(Envelope("error", "", "", _encoded(InstanceLost(self.service))))


class _Own:
    """One service of this node, as others are told of it."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.version = 0
        self.heads = 0
        self.head: Head | None = None
        self.listening = False
        self._changed: asyncio.Future[None] | None = None

    def change(self) -> None:
        """Answers those who wait for news."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)

    def changed(self) -> "asyncio.Future[None]":
        """Done when there is something new."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed


class HttpTransport(Transport):
    """One node that speaks HTTP with its peers.

    Raises:
        StartError: the keys or the certificates cannot be used.
    """

    traits = Traits(signals=False, ordered=False)

    def __init__(self, settings: HttpSettings | None = None, clock: Clock | None = None, chance: Chance | None = None) -> None:
        self.node = ""
        self.port = 0
        """Where it listens, once it is open."""
        self._settings = settings or HttpSettings()
        self._clock = clock or Clock()
        self._chance = chance or Chance(self._clock)
        if self._settings.key is None or self._settings.peer_keys is None:
            raise StartError(
                "transport.http.key and transport.http.peer_keys are needed: by them services prove to each other who they are"
            )
        self._signer = Signer(self._settings.key, self._clock)
        self._verifier = Verifier(self._settings.peer_keys, self._clock)
        self._urls = _urls(self._settings.peers)
        self._log = logging.getLogger("callboard.http")
        self._receiver: Receiver | None = None
        self._presence: Presence | None = None
        self._client: Client | None = None
        self._server: HttpServer | None = None
        self._closing: asyncio.Future[None] | None = None
        self._own: dict[str, _Own] = {}
        self._watched: set[str | None] = set()
        self._asked: dict[tuple[Address, str], asyncio.Task[Any]] = {}
        self._lost: set[asyncio.Task[Any]] = set()
        self._cancelled: dict[str, None] = {}
        self._answering: dict[_Work, _Answering] = {}
        self._next: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<HttpTransport {self.node or '-'} [{'CLOSED' if self._receiver is None else 'OPEN'}] on {self.port}>"

    @property
    def connected(self) -> bool:
        return self._server is not None

    # Joining and leaving

    async def open(self, node: str, receiver: Receiver) -> None:
        if self._receiver is not None:
            raise TransportError(f"{self.node} is open already: a transport serves one node")
        settings = self._settings
        files = (settings.certificate_file, settings.private_key_file)
        if (files[0] is None) != (files[1] is None):
            raise StartError("transport.http: certificate_file and private_key_file go together: set both, or neither")
        certificate = None if files[0] is None or files[1] is None else (files[0], files[1])
        server = HttpServer(self._serve, settings.host, settings.port, "CALLBOARD_TRANSPORT__HTTP__PORT", certificate=certificate)
        self.node, self._receiver = node, receiver
        self._closing = asyncio.get_running_loop().create_future()
        self._client = Client(settings)
        self._presence = Presence(
            node, receiver, self._client, settings, self._clock, self._chance, self._urls, self._introduce, self._lose
        )
        await server.start()
        self._server, self.port = server, server.port

    async def close(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        for service, own in self._own.items():
            if own.manifest is not None:
                self._withdraw(service, own)
        assert self._closing is not None
        assert self._presence is not None
        assert self._client is not None
        self._closing.set_result(None)
        for answering in self._answering.values():
            answering.lose()
        await self._presence.close()
        if self._server is not None:
            await self._server.stop()
        await self._client.close()
        self._own.clear()
        self._watched.clear()

    def _opened(self) -> tuple[Client, Presence]:
        if self._receiver is None or self._client is None or self._presence is None:
            raise PeerUnreachable("this transport is closed")
        return self._client, self._presence

    # Who is there

    async def watch(self, service: str | None) -> None:
        _, presence = self._opened()
        self._watched.add(service)
        for name, own in self._own.items():
            if own.manifest is not None and service in (None, name):
                self._tell_joined(own.manifest)
        await asyncio.gather(*(presence.watch(name) for name in (self._urls if service is None else (service,))))

    def _tell_joined(self, manifest: Manifest) -> None:
        """Tells this node of its own instance."""
        if self._receiver is not None and not self._watched.isdisjoint((manifest.service, None)):
            self._receiver.joined(manifest, self._receiver.load(manifest.service))

    async def announce(self, manifest: Manifest) -> None:
        self._opened()
        own = self._own.setdefault(manifest.service, _Own())
        own.manifest = manifest
        own.version += 1
        own.change()
        self._tell_joined(manifest)

    async def withdraw(self, address: Address) -> None:
        own = self._own.get(address.service)
        if own is not None:
            self._withdraw(address.service, own)

    def _withdraw(self, service: str, own: _Own) -> None:
        announced, own.manifest, own.listening = own.manifest is not None, None, False
        own.change()
        if announced and self._receiver is not None:
            self._receiver.left(Address(service, self.node), lost=False)

    def _lose(self, address: Address) -> None:
        """Ends what waits for an answer of a node that is gone."""
        for (to, _), task in self._asked.items():
            if to == address:
                self._lost.add(task)
                task.cancel()

    def _introduce(self, service: str) -> str:
        """What proves to a service who it is that asks whether it is there: any of this node's services."""
        return self._signer.assertion(self._signer.names[0], service)

    # Hearing

    async def listen(self, service: str) -> None:
        self._opened()
        self._own.setdefault(service, _Own()).listening = True

    async def subscribe(self, topic: Topic, service: str, *, broadcast: bool) -> None:
        _, presence = self._opened()
        if topic.kind == "signal":
            raise TransportError("there are no signals over HTTP: transport.kind=http+mqtt sends them by MQTT")
        presence.hint(topic.service, service)
        self._watched.add(topic.service)
        await presence.watch(topic.service)

    async def unsubscribe(self, topic: Topic, service: str) -> None:
        if self._presence is not None:
            self._presence.no_hint(topic.service, service)

    async def _serve(self, scope: Scope, exchange: Exchange) -> None:
        """Answers one HTTP request."""
        try:
            service, name = self._path(scope)
            given = scope.headers
            try:
                caller = self._verifier.caller(given.get(fields.ASSERTION), service)
            except Refused as refused:
                self._log.warning("a request to %s/%s was refused: %s", service, name, refused)
                raise Refusal(401, _encoded(Unreachable(service), str(refused)), [("www-authenticate", "Callboard")]) from None
            if name == "presence":
                status, headers, body = await self._news(scope, service)
            else:
                status, headers, body = await self._request(exchange, given, service, name, caller)
        except Refusal as refusal:
            status, body = refusal.status, refusal.body
            headers = [("content-type", fields.PROBLEM), *refusal.fields]
        headers.append((fields.NODE, self.node))
        exchange.response_bytes(status, headers, body)

    def _path(self, scope: Scope) -> tuple[str, str]:
        parts = scope.path.split("/")
        if len(parts) != 3 or not parts[1] or not parts[2]:
            raise Refusal(404, _encoded(Malformed("expected /<service>/<Request>")))
        expected = "GET" if parts[2] == "presence" else "POST"
        if scope.method != expected:
            raise Refusal(405, _encoded(Malformed(f"expected {expected}")), [("allow", expected)])
        return parts[1], parts[2]

    async def _request(
        self, exchange: Exchange, given: fields.Fields, service: str, name: str, caller: str
    ) -> tuple[int, Pairs, bytes]:
        receiver, to = self._receiver, given.get(fields.TO)
        own = self._own.get(service)
        if receiver is None or (to != self.node if to is not None else own is None or not own.listening):
            raise Refusal(404, _encoded(NoInstance(service)))
        body = await self._body(exchange, given)
        try:
            subject = name if "." in name else f"{service}.{name}"  # else of a contract that others have, too: stream.Pull
            envelope = fields.request(given, subject, caller, body)
        except ValueError as error:
            receiver.unreadable()
            raise Refusal(400, _encoded(Malformed(str(error)))) from None
        if not envelope.id:
            envelope = msgspec.structs.replace(envelope, id=self._chance.hex(32))
        if envelope.reply_to is None:
            receiver.receive(envelope, service)
            return 202, [], b""
        work = (caller, envelope.reply_to.node, envelope.id)
        if work in self._answering:
            raise Refusal(409, _encoded(Malformed("a request with this id is being answered")))
        answering = self._answering[work] = _Answering(service, self._clock.loop.create_future())

        def gone() -> None:
            receiver.receive(Envelope("cancel", envelope.id, "", b"", caller, envelope.reply_to), service)
            answering.lose()

        try:
            receiver.receive(envelope, service)
            answer = await until_gone(answering.answer, exchange, gone)
        finally:
            del self._answering[work]
        load = [(fields.LOAD, str(answer.load))] if answer.load else []
        if answer.kind == "reply":
            return 200, [("content-type", fields.JSON), *load], answer.body
        return _status(answer.body), [("content-type", fields.PROBLEM), *load], answer.body

    async def _body(self, exchange: Exchange, given: fields.Fields) -> bytes:
        length = given.get("content-length")
        if length is None or not length.isdecimal():
            raise Refusal(411, _encoded(Malformed("expected Content-Length")))
        if int(length) > self._settings.max_body:
            raise Refusal(413, _encoded(Malformed(f"the body has {length} bytes: more than {self._settings.max_body}")))
        try:
            async with asyncio.timeout(_BODY):
                return await exchange()
        except TimeoutError:
            raise Refusal(408, _encoded(Malformed(f"the body did not come within {_BODY:g} s"))) from None

    async def _news(self, scope: Scope, service: str) -> tuple[int, Pairs, bytes]:
        """What there is to say of a service, once it is something new."""
        query = {name: values[0] for name, values in parse_qs(scope.query_string).items()}
        try:
            version, heads, wait = (fields.number(query.get(name, "0")) for name in ("version", "heads", "wait"))
        except ValueError as error:
            raise Refusal(400, _encoded(Malformed(str(error)))) from None
        assert self._closing is not None
        if query.get("node") != self.node:
            version = heads = 0
        own = self._own.get(service)
        if own is None and len(self._own) < _REMEMBERED:
            own = self._own[service] = _Own()
        if own is not None and (own.version, own.heads) == (version, heads) and wait and not self._closing.done():
            seconds = min(wait / 1000, _LONGEST_WAIT)
            await asyncio.wait((own.changed(), self._closing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if own is None or own.manifest is None or self._receiver is None:
            raise Refusal(404, _encoded(NoInstance(service)))
        news = News(
            own.version, own.heads, self._receiver.load(service), own.manifest if own.version != version else None, own.head
        )
        return 200, [("content-type", fields.JSON)], msgspec.json.encode(news)

    # Speaking

    async def unicast(self, to: Address, envelope: Envelope, sender: str) -> None:
        if envelope.kind == "request":
            client, presence = self._opened()
            place = presence.place(to)
            if place is None:
                raise PeerUnreachable(f"{to} is not there")
            await self._ask(client, to, place, envelope, sender)
        elif envelope.kind == "cancel":
            self._cancel(to, envelope)
        elif not self.unicast_now(to, envelope, sender):
            raise PeerUnreachable(f"{to} does not wait for an answer any more")

    def unicast_now(self, to: Address, envelope: Envelope, sender: str) -> bool:
        if envelope.kind not in ("reply", "error"):
            return False
        answering = self._answering.get((to.service, to.node, envelope.id))
        if answering is None or answering.answer.done():
            return False
        if len(envelope.body) > self._settings.max_body:
            raise TooLarge(f"the answer has {len(envelope.body)} bytes: more than {self._settings.max_body}")
        answering.answer.set_result(envelope)
        return True

    def _cancel(self, to: Address, envelope: Envelope) -> None:
        """Hangs up; what has not been asked yet will not be."""
        task = self._asked.get((to, envelope.id))
        if task is not None:
            self._lost.add(task)
            task.cancel()
            return
        self._cancelled[envelope.id] = None
        if len(self._cancelled) > _REMEMBERED:
            del self._cancelled[next(iter(self._cancelled))]

    async def anycast(self, service: str, envelope: Envelope, sender: str) -> None:
        client, presence = self._opened()
        places = await presence.places(service)
        turn = self._next[service] = self._next.get(service, -1) + 1
        for index in range(len(places)):
            place = places[(turn + index) % len(places)]
            try:
                await self._ask(client, Address(service, ""), place, envelope, sender)
            except PeerUnreachable:
                continue
            return
        raise PeerUnreachable(f"nobody listens for {service}")

    async def multicast(self, topic: Topic, envelope: Envelope, sender: str) -> None:
        self._opened()
        if topic.kind == "signal":
            raise TransportError("there are no signals over HTTP: transport.kind=http+mqtt sends them by MQTT")
        own = self._own.setdefault(topic.service, _Own())
        own.head = msgspec.json.decode(envelope.body, type=Head)
        own.heads += 1
        own.change()

    async def _ask(self, client: Client, to: Address, place: Place, envelope: Envelope, sender: str) -> None:
        """Makes a request, and hands its answer to the receiver. Raises like `unicast`."""
        if envelope.id in self._cancelled:
            return
        if len(envelope.body) > self._settings.max_body:
            raise TooLarge(f"the request has {len(envelope.body)} bytes: more than {self._settings.max_body}")
        headers = fields.of_request(envelope, to.node or None)
        try:
            headers[fields.ASSERTION] = self._signer.assertion(sender, to.service)
        except ValueError as error:
            raise PeerUnreachable(str(error)) from None
        task = asyncio.current_task()
        assert task is not None
        self._asked[to, envelope.id] = task
        try:
            answer = await client.post(place, _path(to.service, envelope.subject), headers, envelope.body)
        except asyncio.CancelledError:
            if task in self._lost and task.uncancel() == 0:
                raise LinkLost(f"{to} is gone") from None
            raise
        finally:
            self._lost.discard(task)
            del self._asked[to, envelope.id]
        self._answered(to, envelope, answer)

    def _answered(self, to: Address, request: Envelope, answer: Answer) -> None:
        receiver = self._receiver
        load = fields.load(answer.fields)
        if answer.status == 200:
            back = Envelope("reply", request.id, "", answer.body, to.service, load=load)
        elif answer.status == 202:
            return
        elif answer.status == 404 and to.node == "" and fields.NODE in answer.fields:
            raise PeerUnreachable(f"{answer.fields[fields.NODE]} does not listen for {to.service}")
        elif answer.kind == fields.PROBLEM and fields.NODE in answer.fields:
            if answer.status == 401 and "www-authenticate" in answer.fields:
                self._log.warning("%s refuses this node's requests: %.300s", to, answer.body.decode(errors="replace"))
            back = Envelope("error", request.id, "", answer.body, to.service, load=load)
        else:
            raise LinkLost(f"{to} answered {answer.status} with something that is none of ours")
        if receiver is not None and request.reply_to is not None:
            receiver.receive(back, request.reply_to.service)


def _path(service: str, subject: str) -> str:
    return f"/{service}/{subject.removeprefix(f'{service}.')}"


def _urls(peers: tuple[str, ...]) -> dict[str, tuple[URL, ...]]:
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


class _Status(msgspec.Struct):
    status: int


def _status(problem: bytes) -> int:
    """The HTTP status that a problem document names."""
    status = msgspec.json.decode(problem, type=_Status).status
    return status if 400 <= status < 600 else 500


def _encoded(error: ServiceError, detail: str = "") -> bytes:
    data = error.data()
    return msgspec.json.encode(msgspec.structs.replace(data, detail=detail) if detail else data)
