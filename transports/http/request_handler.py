"""The answering side of a node: requests of others, and their questions whether a service is here."""

import asyncio
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec

from runtime import Clock, InstanceLost, Malformed, NoInstance, Random, ServiceError, Unreachable
from runtime.network import Address, Envelope, Head, Manifest, Receiver, TooLarge
from transports.http import fields
from transports.http.assertions import Refused, Verifier
from transports.http.presence import News
from transports.http.server import Exchange, Pairs, Scope, until_gone
from transports.http.settings import HttpSettings

_PATH = re.compile(r"/([A-Za-z0-9_-]{1,100})/([A-Za-z0-9_.-]{1,200})", re.ASCII)
_DEFAULT = 60.0
"""Seconds that a request without a budget may take here; the callee's own default is shorter."""
_LATE = 1.0
_MOST = 1024
"""Services that are asked for and not here: so many are remembered."""
_BODY = 10.0
"""Seconds that a request's body may take to come."""
_LONGEST_WAIT = 15.0
"""Seconds that a question about presence is held, whatever the one who asks would like."""
_Work = tuple[str, str, str, str]
"""A request that is answered here: the service and the node that ask, who is asked, and the id they gave it."""


class Refusal(Exception):
    """An answer that is given before anybody is asked: a problem document (RFC 9457) with the status of its own."""

    def __init__(self, status: int, error: ServiceError, fields: Pairs | None = None, detail: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.fields = fields or []
        data = error.data()
        self.body = msgspec.json.encode(msgspec.structs.replace(data, status=status, detail=detail or data.detail))


class _Answering(NamedTuple):
    """A request that came, and its answer to come."""

    service: str
    answer: "asyncio.Future[Envelope]"

    def lose(self) -> None:
        """Answers that no answer will come."""
        if not self.answer.done():
            self.answer.set_result(Envelope("error", "", "", msgspec.json.encode(InstanceLost(self.service).data())))


class Own:
    """One service of this node, as others are told of it."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.version = 0
        self.heads = 0
        self.head: Head | None = None
        self.listening = False
        self._changed: asyncio.Future[None] | None = None

    @property
    def known(self) -> bool:
        """Whether it is, or was, on this node."""
        return self.version > 0 or self.listening

    @property
    def state(self) -> tuple[int, int]:
        """What changes whenever there is something to tell."""
        return (0, 0) if self.manifest is None else (self.version, self.heads)

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


class RequestHandler:
    """Answers what comes over HTTP. It knows which services are on this node, and what there is to tell of them.

    Args:
        complain: says something that an operator should know.
    """

    def __init__(
        self, node: str, receiver: Receiver, settings: HttpSettings, verifier: Verifier, clock: Clock, random: Random,
        complain: Callable[..., None],
    ) -> None:  # fmt: skip
        self._node = node
        self._receiver = receiver
        self._settings = settings
        self._verifier = verifier
        self._clock = clock
        self._random = random
        self._complain = complain
        self._own: dict[str, Own] = {}
        self._answering: dict[_Work, _Answering] = {}
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def own(self, service: str) -> Own:
        """What there is to tell of a service."""
        return self._own.setdefault(service, Own())

    @property
    def announced(self) -> list[Manifest]:
        """The manifests of the services that are here."""
        return [own.manifest for own in self._own.values() if own.manifest is not None]

    def close(self) -> None:
        """Ends all waiting."""
        if not self._closing.done():
            self._closing.set_result(None)
        for answering in self._answering.values():
            answering.lose()

    def answer(self, to: Address, envelope: Envelope, sender: str) -> bool:
        """Answers a request that came. Says whether somebody waits for it.

        Raises:
            TooLarge: it is larger than others take.
        """
        answering = self._answering.get((to.service, to.node, sender, envelope.id))
        if answering is None or answering.answer.done():
            return False
        if len(envelope.body) > self._settings.max_body:
            raise TooLarge(f"the answer has {len(envelope.body)} bytes: more than {self._settings.max_body}")
        answering.answer.set_result(envelope)
        return True

    async def serve(self, scope: Scope, exchange: Exchange) -> None:
        """Answers one HTTP request."""
        try:
            service, name = self._path(scope)
            given = scope.headers
            try:
                caller = self._verifier.caller(given.get(fields.ASSERTION), service)
            except Refused as refused:
                self._complain("a request to %s/%s from %s was refused: %s", service, name, scope.client, refused)
                raise Refusal(401, Unreachable(service), [("www-authenticate", "Callboard")], str(refused)) from None
            if name == "presence":
                status, headers, body = await self._news(scope, service)
            else:
                status, headers, body = await self._request(exchange, given, service, name, caller)
        except Refusal as refusal:
            if refusal.status != 401 and scope.method == "POST":
                await self._drain(exchange)
            status, body = refusal.status, refusal.body
            headers = [("content-type", fields.PROBLEM), (fields.REFUSED, "true"), *refusal.fields]
        headers.append((fields.NODE, self._node))
        exchange.response_bytes(status, headers, body)

    async def _drain(self, exchange: Exchange) -> None:
        """Lets the one who asks say all of it: else the connection would break before the refusal is read."""
        try:
            async with asyncio.timeout(_BODY):
                async for _ in exchange:
                    pass
        except (TimeoutError, RuntimeError):  # it has been read already, or does not come
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
        body = await self._body(exchange, given)
        try:
            subject = name if "." in name else f"{service}.{name}"  # else of a contract that others have, too: stream.Pull
            envelope = fields.request(given, subject, caller, body)
        except ValueError as error:
            receiver.unreadable()
            raise Refusal(400, Malformed(str(error))) from None
        if self._closing.done():
            raise Refusal(404, NoInstance(service))
        if not envelope.id or given.get(fields.NODE) is None:  # without a node, its ids need not be different from others'
            envelope = msgspec.structs.replace(envelope, id=self._random.hex(32))
        if envelope.reply_to is None:
            receiver.receive(envelope, service)
            return 202, [], b""
        work = (caller, envelope.reply_to.node, service, envelope.id)
        if work in self._answering:
            raise Refusal(409, Malformed("a request with this id is being answered"))
        answering = self._answering[work] = _Answering(service, self._clock.loop.create_future())

        def gone() -> None:
            receiver.receive(Envelope("cancel", envelope.id, "", b"", caller, envelope.reply_to), service)
            answering.lose()

        seconds = _DEFAULT if envelope.budget is None else envelope.budget
        timer = self._clock.loop.call_later(seconds + _LATE, answering.lose)  # whatever becomes of it, there is an answer
        try:
            receiver.receive(envelope, service)
            answer = await until_gone(answering.answer, exchange, gone)
        finally:
            timer.cancel()
            del self._answering[work]
        load = [(fields.LOAD, str(answer.load))] if answer.load else []
        if answer.kind == "reply":
            return 200, [("content-type", fields.JSON), *load], answer.body
        return _status(answer.body), [("content-type", fields.PROBLEM), *load], answer.body

    async def _body(self, exchange: Exchange, given: fields.Fields) -> bytes:
        length = given.get("content-length")
        if length is None or not length.isdecimal():
            raise Refusal(411, Malformed("expected Content-Length"))
        if int(length) > self._settings.max_body:
            raise Refusal(413, Malformed(f"the body has {length} bytes: more than {self._settings.max_body}"))
        try:
            async with asyncio.timeout(_BODY):
                return await exchange()
        except TimeoutError:
            raise Refusal(408, Malformed(f"the body did not come within {_BODY:g} s")) from None

    async def _news(self, scope: Scope, service: str) -> tuple[int, Pairs, bytes]:
        """What there is to say of a service, once it is something new."""
        query = {name: values[0] for name, values in parse_qs(scope.query_string).items()}
        try:
            version, heads, wait = (fields.number(query.get(name, "0")) for name in ("version", "heads", "wait"))
        except ValueError as error:
            raise Refusal(400, Malformed(str(error))) from None
        if query.get("node") != self._node:
            version = heads = 0
        own = self._own.get(service)
        if own is None and len(self._own) < _MOST:
            own = self._own[service] = Own()
        if own is not None and own.state == (version, heads) and wait and not self._closing.done():
            seconds = min(wait / 1000, _LONGEST_WAIT)
            await asyncio.wait((own.changed(), self._closing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if own is None or own.manifest is None:
            raise Refusal(404, NoInstance(service))
        news = News(
            own.version, own.heads, self._receiver.load(service), own.manifest if own.version != version else None, own.head
        )
        return 200, [("content-type", fields.JSON)], msgspec.json.encode(news)


class _Status(msgspec.Struct):
    status: int


def _status(problem: bytes) -> int:
    """The HTTP status that a problem document names."""
    status = msgspec.json.decode(problem, type=_Status).status
    return status if 400 <= status < 600 else 500
