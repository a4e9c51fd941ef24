"""Answers the HTTP requests of other nodes: requests to services, and questions about their presence."""

import asyncio
import logging
import re
from collections.abc import Collection, Mapping
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
from transports.http.presence import News
from transports.http.server import Exchange, Pairs, Scope, until_gone
from transports.http.settings import HttpSettings

_PATH = re.compile(r"/([A-Za-z0-9_-]{1,100})/([A-Za-z0-9_.-]{1,200})", re.ASCII)
_DEFAULT_BUDGET = 60.0
"""Seconds that a request without a budget may take; the callee's own default is shorter."""
_GRACE = 1.0
"""Seconds after the budget of a request before the node answers that no answer will come."""
_MOST_SERVICES = 1024
"""The number of service names that the node remembers, including those that it does not have but is asked about."""
_BODY_TIMEOUT = 10.0
"""Seconds that the body of a request may take to arrive."""
_MOST_DRAINED = 4
"""How many times the size of the largest body are read of a request by somebody who is no peer."""
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

    def __init__(self, status: int, error: ServiceError, fields: Pairs | None = None, detail: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.fields = fields or []
        data = error.data()
        self.body = msgspec.json.encode(msgspec.structs.replace(data, status=status, detail=detail or data.detail))


class _Answering(NamedTuple):
    """A request that has arrived, and the future of its answer."""

    service: str
    answer: "asyncio.Future[Envelope]"

    def lose(self) -> None:
        """Complete the request with `InstanceLost`: no answer will come."""
        if not self.answer.done():
            self.answer.set_result(Envelope("error", "", "", msgspec.json.encode(InstanceLost(self.service).data())))


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
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

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
        for answering in self._answering.values():
            answering.lose()

    def answer(self, to: Address, envelope: Envelope, sender: str) -> bool:
        """Answer a request that has arrived.

        Returns:
            Whether the client still waits for the answer.

        Raises:
            TooLarge: if peers do not accept answers of this size.
        """
        answering = self._answering.get((to.service, to.node, sender, envelope.id))
        if answering is None or answering.answer.done():
            return False
        if len(envelope.body) > self._settings.max_body:
            raise TooLarge(f"the answer has {len(envelope.body)} bytes: more than {self._settings.max_body}")
        answering.answer.set_result(envelope)
        return True

    async def serve(self, scope: Scope, exchange: Exchange) -> None:
        """Answer one HTTP request."""
        is_stranger = False
        try:
            service, name = self._path(scope)
            given: fields.Fields = scope.headers
            twice = fields.repeated(given)
            if twice is not None:
                raise Refusal(400, Malformed(f"{twice}: expected one field, got several"))
            try:
                caller = self._verifier.caller(given.get(fields.ASSERTION), service)
            except Refused as reason:
                self._complain(str(reason), "a request to %s/%s from %s was refused: %s", service, name, scope.client, reason)
                log_refusal(
                    self._repeats, "token", str(reason), service=service, request=name, client=scope.client.rpartition(":")[0]
                )
                raise Refusal(401, Unreachable(service), [("www-authenticate", "Callboard")], str(reason)) from None
            if name == "presence":
                status, headers, body = await self._news(scope, service, caller)
            else:
                status, headers, body = await self._request(exchange, given, service, name, caller)
        except Refusal as refusal:
            is_stranger = refusal.status == 401
            if scope.method == "POST" and not is_stranger:
                await self._drain(exchange, None)
            status, body = refusal.status, refusal.body
            headers = [("content-type", PROBLEM), (fields.REFUSED, "true"), *refusal.fields]
        headers += ((fields.NODE, self._node), ("server", ""))  # granian would name itself
        exchange.response_bytes(status, headers, body)
        if scope.method == "POST" and is_stranger:
            await self._drain(exchange, self._settings.max_body * _MOST_DRAINED)

    def _complain(self, about: str, message: str, *args: object) -> None:
        """Log something that an operator should know."""
        self._repeats.log(logger("http"), logging.WARNING, (message, about), message, *args)

    async def _drain(self, exchange: Exchange, most: int | None) -> None:
        """Read the rest of a refused request: otherwise the connection would break before the client has read the refusal.

        Args:
            most: how many bytes are read. A peer, whose connection carries other requests afterwards, has no limit but the time.
        """
        size = 0
        try:
            async with asyncio.timeout(_BODY_TIMEOUT):
                async for part in exchange:
                    size += len(part)
                    if most is not None and size > most:
                        return
        except (TimeoutError, RuntimeError):  # the body was read already, or does not arrive
            return

    def _path(self, scope: Scope) -> tuple[str, str]:
        match = _PATH.fullmatch(scope.path)
        if match is None:
            raise Refusal(404, Malformed("expected /<service>/<Request>"))
        service, name = match.groups()
        expected = "GET" if name == "presence" else "POST"
        if scope.method != expected:
            raise Refusal(405, Malformed(f"expected {expected}"), [("allow", expected)])
        return service, name

    async def _request(
        self, exchange: Exchange, given: fields.Fields, service: str, name: str, caller: str
    ) -> tuple[int, Pairs, bytes]:
        receiver, to = self._receiver, given.get(fields.TO)
        own = self._own.get(service)
        if own is None or not own.known or (to != self._node if to is not None else not own.listening):
            raise Refusal(404, NoInstance(service))
        if name.startswith(_STREAM) and not self._may_read(service, caller):
            log_refusal(self._repeats, "authorization", "not a subscriber", service=service, request=name, caller=caller)
            self._complain(
                caller,
                "%s may not read the stream of %s, because it does not subscribe to it (transport.http.stream_readers)",
                caller,
                service,
            )
            raise Refusal(403, Forbidden())
        body = await self._body(exchange, given)
        try:
            subject = (
                name if "." in name else f"{service}.{name}"
            )  # a full name belongs to a contract that several services have, such as stream.Pull
            envelope = fields.request(given, subject, caller, body)
        except ValueError as error:
            receiver.unreadable()
            self._complain(
                caller,
                "a request to %s/%s from %s cannot be read: %s; it begins with %r",
                service,
                name,
                caller,
                error,
                body[:64],
            )
            raise Refusal(400, Malformed(str(error))) from None
        if self._closing.done():
            raise Refusal(404, NoInstance(service))
        if not envelope.id or given.get(fields.NODE) is None:  # without a node, ids of different clients may be equal
            envelope = msgspec.structs.replace(envelope, id=self._random.hex(32))
        if envelope.reply_to is None:
            receiver.receive(envelope, service)
            return 202, [], b""
        key = (caller, envelope.reply_to.node, service, envelope.id)
        if key in self._answering:
            raise Refusal(409, Malformed("a request with this id is being answered"))
        answering = self._answering[key] = _Answering(service, self._clock.loop.create_future())

        def gone() -> None:
            receiver.receive(Envelope("cancel", envelope.id, "", b"", caller, envelope.reply_to), service)
            answering.lose()

        seconds = _DEFAULT_BUDGET if envelope.budget is None else envelope.budget
        timer = self._clock.loop.call_later(seconds + _GRACE, answering.lose)  # in any case, there is an answer
        try:
            receiver.receive(envelope, service)
            answer = await until_gone(answering.answer, exchange, gone)
        finally:
            timer.cancel()
            del self._answering[key]
        load = [(fields.LOAD, str(answer.load))] if answer.load else []
        if answer.kind == "reply":
            return 200, [("content-type", fields.JSON), *load], answer.body
        return _status(answer.body), [("content-type", PROBLEM), *load], answer.body

    async def _body(self, exchange: Exchange, given: fields.Fields) -> bytes:
        length = given.get("content-length")
        if length is None or not length.isdecimal():
            raise Refusal(411, Malformed("expected Content-Length"))
        if int(length) > self._settings.max_body:
            raise Refusal(413, Malformed(f"the body has {length} bytes: more than {self._settings.max_body}"))
        try:
            async with asyncio.timeout(_BODY_TIMEOUT):
                return await exchange()
        except TimeoutError:
            raise Refusal(408, Malformed(f"the body did not come within {_BODY_TIMEOUT:g} s")) from None

    def _may_read(self, service: str, caller: str) -> bool:
        """Return whether a service may read the stream of another."""
        return self._readers is None or caller in self._readers.get(service, ())

    async def _news(self, scope: Scope, service: str, caller: str) -> tuple[int, Pairs, bytes]:
        """Answer a question about a service: when there is something new, or when the waiting time is over."""
        given = parse_qsl(scope.query_string)
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
        return 200, [("content-type", fields.JSON)], msgspec.json.encode(news)


class _Status(msgspec.Struct):
    status: int


def _status(problem: bytes) -> int:
    """Return the HTTP status that a problem document names."""
    status = msgspec.json.decode(problem, type=_Status).status
    return status if 400 <= status < 600 else 500
