"""Answers the HTTP requests of other nodes: requests to services, and questions about their presence."""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qsl

import msgspec

from runtime import Clock, Forbidden, InstanceLost, Malformed, NoInstance, Random, ServiceError, Unreachable
from runtime.durable.stream import stream
from runtime.network import Address, Envelope, Head, Manifest, Receiver, TooLarge
from runtime.repeats import Repeats
from runtime.telemetry import log_refusal, logger
from transports.header_values import PROBLEM, parse_number
from transports.http import fields
from transports.http.assertions import Refused, Verifier
from transports.http.exchange import Exchange
from transports.http.messages import lines
from transports.http.presence import News
from transports.http.settings import HttpSettings

_PATH = re.compile(r"/([A-Za-z0-9_-]{1,100})/([A-Za-z0-9_.-]{1,200})", re.ASCII)
_DEFAULT_BUDGET = 60.0
"""Seconds that a request without a budget may take; the callee's own default is shorter."""
_GRACE = 1.0
"""Seconds after the budget of a request before the node answers that no answer will come."""
_LOOK_INTERVAL = 0.25
"""Seconds between two looks for requests that need that answer. A timer for each request would cost more."""
_MOST_SERVICES = 1024
"""The number of service names that the node remembers, including those that it does not have but is asked about."""
_LONGEST_WAIT = 15.0
"""Seconds that a question about presence waits for news, at most, whatever the client asks for."""
_STREAM = f"{stream.name}."
"""How the full names of requests about a stream begin."""
StreamReaders = Mapping[str, Collection[str]]
"""The services that may read the stream of each service, by its name."""
_RequestKey = tuple[str, str, str, str]
"""Identifies a request under way: the calling service, its node, the called service, and the request's id."""


class Refusal(Exception):
    """Raised to refuse a request before an instance sees it: a status and a problem document (RFC 9457)."""

    def __init__(self, status: int, error: ServiceError, detail: str = "", **fields: str) -> None:
        super().__init__(status)
        self.status = status
        self.fields = {name.replace("_", "-"): value for name, value in fields.items()}
        data = error.data()
        self.body = msgspec.json.encode(msgspec.structs.replace(data, status=status, detail=detail or data.detail))


class _Answering(NamedTuple):
    """A request that an instance has, and when to stop waiting for its answer, on the event loop's clock."""

    exchange: Exchange
    ends: float


class LocalService:
    """What this node reports about one of its services.

    Attributes:
        manifest: The manifest; None before the service is announced and after it has withdrawn.
        version: Counts the announcements.
        heads: Counts the heads of the service's stream.
        head: The current head.
        listening: Whether the service takes requests that name no node.
    """

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.version = 0
        self.heads = 0
        self.head: Head | None = None
        self.listening = False
        self._changed: asyncio.Future[None] | None = None

    @property
    def known(self) -> bool:
        """Whether the service is or was on this node."""
        return self.version > 0 or self.listening

    @property
    def revision(self) -> tuple[int, int]:
        """The version and the number of heads, which differ whenever there is something new to report."""
        return (0, 0) if self.manifest is None else (self.version, self.heads)

    def notify(self) -> None:
        """Answer the questions that wait for news."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)

    def changed(self) -> "asyncio.Future[None]":
        """Return a future that is done when there is something new to report."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed


class RequestHandler:
    """Answers HTTP requests. Knows the services on this node and what to report about them.

    Args:
        readers: The services that may read the stream of each service; None if every service may.
        repeats: logs what peers may cause as often as they like.
    """

    def __init__(
        self, node: str, receiver: Receiver, settings: HttpSettings, verifier: Verifier, clock: Clock, random: Random,
        readers: StreamReaders | None, repeats: Repeats,
    ) -> None:  # fmt: skip
        self._node = node
        self._receiver = receiver
        self._settings = settings
        self._verifier = verifier
        self._clock = clock
        self._random = random
        self._readers = readers
        self._repeats = repeats
        self._own: dict[str, LocalService] = {}
        self._answering: dict[_RequestKey, _Answering] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._polls: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._node_field = lines({fields.NODE: node})
        self._reply_fields = self._node_field + lines({"content-type": fields.JSON})
        self._error_fields = self._node_field + lines({"content-type": PROBLEM})

    def own(self, service: str) -> LocalService:
        """Return what this node reports about a service, creating it if necessary."""
        return self._own.setdefault(service, LocalService())

    @property
    def announced(self) -> list[Manifest]:
        """The manifests of the announced services."""
        return [own.manifest for own in self._own.values() if own.manifest is not None]

    def close(self) -> None:
        """Answer everything that waits."""
        if not self._closing.done():
            self._closing.set_result(None)
        for key in list(self._answering):
            self._lose(key)
        if self._looking is not None:
            self._looking.cancel()

    def answer(self, to: Address, envelope: Envelope, sender: str) -> bool:
        """Answer a request that has arrived.

        Returns:
            Whether the client still waits for the answer.

        Raises:
            TooLarge: if peers do not accept answers of this size.
        """
        key = to.service, to.node, sender, envelope.id
        if key not in self._answering:
            return False
        if len(envelope.body) > self._settings.max_body:
            raise TooLarge(f"the answer has {len(envelope.body)} bytes: more than {self._settings.max_body}")
        self._answer(key, envelope)
        return True

    def _answer(self, key: _RequestKey, envelope: Envelope) -> None:
        answering = self._answering.pop(key)
        load = lines({fields.LOAD: str(envelope.load)}) if envelope.load else b""
        if envelope.kind == "reply":
            answering.exchange.answer(200, self._reply_fields + load, envelope.body)
        else:
            answering.exchange.answer(_status(envelope.body), self._error_fields + load, envelope.body)

    def _lose(self, key: _RequestKey) -> None:
        """Answer a request with `InstanceLost`: no other answer will come."""
        self._answer(key, Envelope("error", "", "", msgspec.json.encode(InstanceLost(key[2]).data())))

    # Requests

    def accept(self, exchange: Exchange) -> Callable[[], None] | None:
        """Authenticate the caller of a request, and decide whether its body is wanted.

        Returns:
            What takes the request when it is complete; None if it was refused.
        """
        try:
            service, name = _path(exchange)
            twice = fields.repeated(exchange.fields)
            if twice is not None:
                raise Refusal(400, Malformed(f"{twice}: expected one field, got several"))
            caller = self._caller(exchange, service, name)
            if name == "presence":
                return partial(self._begin_poll, exchange, service, caller)
            self._admit(exchange, service, name, caller)
        except Refusal as refusal:
            self._refuse(exchange, refusal)
            return None
        return partial(self._take, exchange, service, name, caller)

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        head = self._error_fields + lines({fields.REFUSED: "true", **refusal.fields})
        if refusal.status == 401:  # not a peer: the answer does not wait for the rest
            exchange.answer(refusal.status, head, refusal.body)
        else:
            exchange.refuse(refusal.status, head, refusal.body)

    def _caller(self, exchange: Exchange, service: str, name: str) -> str:
        """Return the service that makes a request."""
        try:
            return self._verifier.caller(exchange.fields.get(fields.ASSERTION), service)
        except Refused as reason:
            client = exchange.client
            self._complain(str(reason), "a request to %s/%s from %s was refused: %s", service, name, client, reason)
            log_refusal(self._repeats, "token", str(reason), service=service, request=name, client=client)
            raise Refusal(401, Unreachable(service), str(reason), www_authenticate="Callboard") from None

    def _complain(self, about: str, message: str, *args: object) -> None:
        """Log something that an operator should know."""
        self._repeats.log(logger("http"), logging.WARNING, (message, about), message, *args)

    def _admit(self, exchange: Exchange, service: str, name: str, caller: str) -> None:
        """Refuse a request by its head, if it has to be."""
        to = exchange.fields.get(fields.TO)
        own = self._own.get(service)
        if own is None or not own.known or (to != self._node if to is not None else not own.listening):
            raise Refusal(404, NoInstance(service))
        if name.startswith(_STREAM) and not self._may_read(service, caller):
            log_refusal(self._repeats, "authorization", "not a subscriber", service=service, request=name, caller=caller)
            message = "%s may not read the stream of %s, because it does not subscribe to it (transport.http.stream_readers)"
            self._complain(caller, message, caller, service)
            raise Refusal(403, Forbidden())
        length = exchange.fields.get("content-length")
        if length is None or not length.isdecimal():
            raise Refusal(411, Malformed("expected Content-Length"))
        if int(length) > self._settings.max_body:
            raise Refusal(413, Malformed(f"the body has {length} bytes: more than {self._settings.max_body}"))

    def _take(self, exchange: Exchange, service: str, name: str, caller: str) -> None:
        """Hand a request to its instance."""
        try:
            envelope = self._envelope(exchange, service, name, caller)
            if envelope.reply_to is None:
                self._receiver.receive(envelope, service)
                exchange.answer(202, self._node_field, b"")
                return
            key = caller, envelope.reply_to.node, service, envelope.id
            if key in self._answering:
                raise Refusal(409, Malformed("a request with this id is being answered"))
        except Refusal as refusal:
            self._refuse(exchange, refusal)
            return
        seconds = _DEFAULT_BUDGET if envelope.budget is None else envelope.budget
        self._answering[key] = _Answering(exchange, self._clock.loop.time() + seconds + _GRACE)
        if self._looking is None:
            self._looking = self._clock.loop.call_later(_LOOK_INTERVAL, self._look)
        exchange.gone = partial(self._gone, key, envelope.reply_to)
        self._receiver.receive(envelope, service)

    def _look(self) -> None:
        """Answer the requests whose instance has not answered in time: in any case, there is an answer."""
        now = self._clock.loop.time()
        for key in [key for key, answering in self._answering.items() if answering.ends <= now]:
            self._lose(key)
        self._looking = self._clock.loop.call_later(_LOOK_INTERVAL, self._look) if self._answering else None

    def _gone(self, key: _RequestKey, reply_to: Address) -> None:
        """Cancel a request whose client has disconnected."""
        caller, _, service, request_id = key
        del self._answering[key]
        self._receiver.receive(Envelope("cancel", request_id, "", b"", caller, reply_to), service)

    def _envelope(self, exchange: Exchange, service: str, name: str, caller: str) -> Envelope:
        """Return the envelope that a complete request carries."""
        given, body = exchange.fields, exchange.body
        if body is None:
            raise Refusal(408, Malformed("the body did not come in time"))
        try:
            # a full name belongs to a contract that several services have, such as stream.Pull
            envelope = fields.request(given, name if "." in name else f"{service}.{name}", caller, body)
        except ValueError as error:
            self._receiver.unreadable()
            message = "a request to %s/%s from %s cannot be read: %s; it begins with %r"
            self._complain(caller, message, service, name, caller, error, body[:64])
            raise Refusal(400, Malformed(str(error))) from None
        if self._closing.done():
            raise Refusal(404, NoInstance(service))
        if not envelope.id or fields.NODE not in given:  # without a node, ids of different clients may be equal
            envelope = msgspec.structs.replace(envelope, id=self._random.hex(32))
        return envelope

    def _may_read(self, service: str, caller: str) -> bool:
        """Return whether a service may read the stream of another."""
        return self._readers is None or caller in self._readers.get(service, ())

    # Questions

    def _begin_poll(self, exchange: Exchange, service: str, caller: str) -> None:
        poll = self._clock.loop.create_task(self._poll(exchange, service, caller))
        self._polls.add(poll)
        poll.add_done_callback(self._polls.discard)
        exchange.gone = poll.cancel

    async def _poll(self, exchange: Exchange, service: str, caller: str) -> None:
        try:
            exchange.answer(200, self._reply_fields, await self._news(exchange.query, service, caller))
        except Refusal as refusal:
            self._refuse(exchange, refusal)

    async def _news(self, query_string: str, service: str, caller: str) -> bytes:
        """Answer a question about a service: when there is something new, or when the waiting time is over."""
        given = parse_qsl(query_string)
        query = dict(given)
        try:
            if len(query) != len(given):
                raise ValueError("expected each parameter once")
            version, heads, wait = (parse_number(query.get(name, "0")) for name in ("version", "heads", "wait"))
        except ValueError as error:
            raise Refusal(400, Malformed(str(error))) from None
        if query.get("node") != self._node:
            version = heads = 0
        own = self._own.get(service)
        if own is None and len(self._own) < _MOST_SERVICES:
            own = self._own[service] = LocalService()
        if own is not None and own.revision == (version, heads) and wait and not self._closing.done():
            seconds = min(wait / 1000, _LONGEST_WAIT)
            await asyncio.wait((own.changed(), self._closing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if own is None or own.manifest is None:
            raise Refusal(404, NoInstance(service))
        manifest = own.manifest if own.version != version else None
        head = own.head if self._may_read(service, caller) else None
        news = News(own.version, own.heads, self._receiver.load(service), manifest, head)
        return msgspec.json.encode(news)


def _path(exchange: Exchange) -> tuple[str, str]:
    """Return the service and the name of the request that a path names."""
    match = _PATH.fullmatch(exchange.path)
    if match is None:
        raise Refusal(404, Malformed("expected /<service>/<Request>"))
    service, name = match.groups()
    expected = "GET" if name == "presence" else "POST"
    if exchange.method != expected:
        raise Refusal(405, Malformed(f"expected {expected}"), allow=expected)
    return service, name


class _Status(msgspec.Struct):
    status: int


def _status(problem: bytes) -> int:
    """Return the HTTP status that a problem document names."""
    status = msgspec.json.decode(problem, type=_Status).status
    return status if 400 <= status < 600 else 500
