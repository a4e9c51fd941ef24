"""The requests that a node makes of its peers: as HTTP requests, whose answers go to the receiver."""

import logging
from typing import NamedTuple

import msgspec

from runtime import InstanceLost
from runtime.network import Address, Envelope, LinkLost, PeerUnreachable, Receiver, TooLarge, Unsendable
from runtime.repeats import Repeats
from runtime.telemetry import logger
from transports.header_values import PROBLEM
from transports.http import fields
from transports.http.assertions import Signer
from transports.http.client import Client, Location, answer_to
from transports.http.connection import Connection, Outcome
from transports.http.messages import Answer, lines, start, with_length
from transports.http.settings import HttpSettings

_REMEMBERED = 1024
"""The number of cancels remembered because they came before their request."""
_MOST_STARTS = 1024
"""The number of kinds of requests whose first lines are remembered."""


class _Sent(NamedTuple):
    """A request that awaits its answer, and where it was sent."""

    connection: Connection
    location: Location


class _Start(NamedTuple):
    """The first lines of all requests of one kind, and what they were made from."""

    location: Location
    assertion: str
    lines: bytes


class Requests:
    """Sends requests, and hands their answers to the receiver.

    Closing a request's connection cancels the request.
    """

    def __init__(self, receiver: Receiver, client: Client, settings: HttpSettings, signer: Signer, repeats: Repeats) -> None:
        self._receiver = receiver
        self._client = client
        self._settings = settings
        self._signer = signer
        self._repeats = repeats
        self._log = logger("http")
        self._sent: dict[tuple[Address, str], _Sent] = {}
        self._starts: dict[tuple[Address, str, str, Address | None], _Start] = {}
        self._cancelled: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"<Requests in flight={len(self._sent)}>"

    def send_now(self, to: Address, location: Location, envelope: Envelope, sender: str) -> bool:
        """Send a request if a connection waits for one. Return whether it was sent; its outcome goes to the receiver.

        A connection that is lost gives `InstanceLost`. Raises like `Transport.unicast`.
        """
        if envelope.reply_to is None or envelope.id in self._cancelled:
            return False
        head = self._head(to, location, envelope, sender)
        connection = self._client.idle(location)
        if connection is None:
            return False
        sent = to, envelope.id

        def ended(outcome: Outcome) -> None:
            if self._sent.pop(sent, None) is None:
                return  # it was cancelled
            try:
                if isinstance(outcome, LinkLost):
                    raise outcome
                self._answered(to, envelope, outcome)
            except LinkLost as error:
                self._log.debug("%s has not answered: %s", to, error)
                lost = msgspec.json.encode(InstanceLost(to.service).data())
                self._reply(envelope, Envelope("error", envelope.id, "", lost, to.service))

        self._sent[sent] = _Sent(connection, location)
        connection.send(head, envelope.body, ended)
        return True

    async def send(self, to: Address, location: Location, envelope: Envelope, sender: str) -> None:
        """Send a request, with a new connection if necessary, and wait until the receiver has its answer.

        Args:
            to: the address; with an empty node, any that listens at the location.

        Raises:
            PeerUnreachable: if it was not sent, or any node may answer and the one there does not listen.
            LinkLost: if the connection was lost before the answer was complete, or the answer is not one of a node.
            Unsendable: if it is too large, or a value cannot be sent.
        """
        head = self._head(to, location, envelope, sender)
        connection = self._client.idle(location) or await self._client.connection(location)
        if envelope.id in self._cancelled:
            connection.abort()
            return
        sent = to, envelope.id
        self._sent[sent] = _Sent(connection, location)
        try:
            answer = await answer_to(connection, head, envelope.body)
        finally:
            self._sent.pop(sent, None)
        self._answered(to, envelope, answer)

    def cancel(self, to: Address, envelope: Envelope) -> None:
        """Cancel a request: close its connection, or do not send it if it was not sent yet."""
        sent = self._sent.pop((to, envelope.id), None)
        if sent is not None:
            sent.connection.abort("the request was cancelled")
            return
        self._cancelled[envelope.id] = None
        if len(self._cancelled) > _REMEMBERED:
            del self._cancelled[next(iter(self._cancelled))]

    def lose(self, address: Address, location: Location) -> None:
        """End the requests that were sent to an instance at a location where its node no longer answers."""
        for (to, _), sent in list(self._sent.items()):
            if to == address and sent.location == location:
                sent.connection.abort("the node is gone")

    def _head(self, to: Address, location: Location, envelope: Envelope, sender: str) -> bytes:
        """Return the head of the HTTP request that carries an envelope.

        Raises:
            PeerUnreachable: if this node has no key of the sender.
            Unsendable: if the envelope is too large, or a value cannot be sent.
        """
        if len(envelope.body) > self._settings.max_body:
            raise TooLarge(f"the request has {len(envelope.body)} bytes: more than {self._settings.max_body}")
        try:
            assertion = self._signer.assertion(sender, to.service)
        except ValueError as error:
            raise PeerUnreachable(str(error)) from None
        kind = to, envelope.subject, sender, envelope.reply_to
        known = self._starts.get(kind)
        try:
            if known is None or known.assertion != assertion or known.location != location:
                shared = {"host": location.authority, **fields.of_route(to, envelope.reply_to, assertion)}
                known = _Start(location, assertion, start("POST", _path(to.service, envelope.subject), shared))
                if len(self._starts) >= _MOST_STARTS:  # addresses change over time
                    self._starts.clear()
                self._starts[kind] = known
            return with_length(known.lines + lines(fields.of_request(envelope)), envelope.body)
        except ValueError as error:
            raise Unsendable(f"a value cannot be sent in a header: {error}") from None

    def _answered(self, to: Address, request: Envelope, answer: Answer) -> None:
        """Hand the answer to a request to the receiver. Raises like `send`."""
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
        self._reply(request, back)

    def _reply(self, request: Envelope, back: Envelope) -> None:
        """Hand what came back for a request to the receiver."""
        if request.reply_to is not None:
            self._receiver.receive(back, request.reply_to.service)


def _path(service: str, subject: str) -> str:
    return f"/{service}/{subject.removeprefix(f'{service}.')}"
