"""Streams of bytes between handlers: what `ctx.offer` gives away, and `ctx.read` receives.

In one process, the reader iterates over what was offered. Between nodes, everything goes from the node that makes the request:
it pushes the pieces of the request's stream to the instance that it has sent the request to, and pulls those of the reply's stream from the
instance that has replied. So a stream needs no other connection than the request, on any transport. There is one piece in flight at
a time, and a limited number of bytes ahead of the reader.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from runtime.contract.byte_stream import ByteStream
from runtime.contract.errors import (
    DeadlineExceeded,
    InstanceLost,
    Invalid,
    Malformed,
    NotDelivered,
    ServiceError,
    StreamBroken,
    UsageError,
)
from runtime.execution.byte_streams import AHEAD, Drop, Intake, Offer, Piece, Push, Take, bytes_contract
from runtime.execution.environment import Environment
from runtime.execution.exchange import Exchange
from runtime.network.envelope import Address, Envelope
from runtime.tasks import finish

RequestKey = tuple[str, str, str, str]
"""A request in progress: the calling service and its node, the called service, and the id of the request's envelope."""

_ROOM = 4096
"""The bytes of a message that are not its piece."""
_GRACE = 1.0
"""The seconds by which a piece may come before its request, or the refusal of a piece before that of the request."""
_STEP = 0.01
_RETRY_INTERVAL = 0.2
_DRAIN_INTERVAL = 0.05
_TOO_LATE = "no piece came in time"
_LINGER = 5.0
"""The seconds for which the last piece can be taken again."""


def request_key(envelope: Envelope, to: str) -> RequestKey:
    """Return the key of a request to a service on this node."""
    return envelope.caller, envelope.reply_to.node if envelope.reply_to is not None else "", to, envelope.id


class _Peer(msgspec.Struct, eq=False):
    """The instance at the other end of a stream, for the exchange."""

    address: Address
    in_flight: int = 0

    def report(self, load: int, now: float) -> None:
        """Ignore a load: pieces are no requests of a service."""


class Transfers:
    """The streams of bytes that a node gives and takes.

    Attributes:
        intakes: those that other nodes push, by the requests that they belong to.
        is_running: returns whether a request of another node is being handled.
    """

    def __init__(self, environment: Environment, exchange: Exchange) -> None:
        self._environment = environment
        self._exchange = exchange
        self._offers: dict[str, Offer] = {}
        self.intakes: dict[RequestKey, Intake] = {}
        self.is_running: Callable[[RequestKey], bool] = lambda _: False
        self._sources: dict[str, tuple[Address, str] | None] = {}
        """By the id of a stream in a reply: the instance that has replied, and the service that has asked; None if it was read before."""
        environment.metrics.gauge("streams_open", lambda: len(self._offers) + len(self.intakes))

    def __repr__(self) -> str:
        return f"<Transfers offers={len(self._offers)} intakes={len(self.intakes)} sources={len(self._sources)}>"

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._environment.clock.loop

    @property
    def _patience(self) -> float:
        """The seconds for which a stream waits for its reader."""
        return self._environment.settings.request_timeout

    @property
    def _most(self) -> int:
        return min(AHEAD, (self._environment.transport.capabilities.max_body - _ROOM) * 3 // 4)

    # Offering

    def offer(self, chunks: AsyncIterable[bytes], size: int | None, owner: str, reader: str) -> ByteStream:
        """Keep a stream until it is read, or until nobody has read it for a while."""
        stream = ByteStream(self._environment.random.hex(32), size)
        offer = self._offers[stream.id] = Offer(chunks, size, owner, reader)
        self._keep(stream.id, offer)
        return stream

    def _keep(self, name: str, offer: Offer) -> None:
        """Wait again for the reader of a stream."""
        if offer.timer is not None:
            offer.timer.cancel()
        seconds = min(_LINGER, self._patience) if offer.all_taken else self._patience
        offer.timer = self._loop.call_later(seconds, self._forget, name)

    def _forget(self, name: str) -> None:
        offer = self._offers.pop(name, None)
        if offer is not None:
            self._environment.spawn(offer.close())

    @asynccontextmanager
    async def held(self, stream: ByteStream) -> AsyncGenerator[None, None]:
        """Keep a stream that was offered here as long as the `async with` block runs, in which a request with it is made, and close it then.

        Raises:
            UsageError: if it was not offered here, or has been closed.
        """
        offer = self._offers.get(stream.id)
        if offer is None:
            raise UsageError(
                "this ByteStream was not offered here, or was sent before, or nobody has read it for too long: make one with ctx.offer"
            )
        if offer.timer is not None:
            offer.timer.cancel()
        try:
            yield
        finally:
            await finish(self.close(stream))

    async def close(self, stream: ByteStream) -> None:
        """Close a stream that was offered here, or that was to be read. Calling it twice is harmless."""
        if (source := self._sources.get(stream.id)) is not None:
            self._sources[stream.id] = None
            self._environment.spawn(self._drop(stream.id, *source))
        offer = self._offers.pop(stream.id, None)
        if offer is not None:
            await offer.close()

    async def drain(self, owner: str) -> None:
        """Wait until what a service has offered was read, or nobody has read it for a while."""
        while any(offer.owner == owner and not offer.all_taken for offer in self._offers.values()):
            await asyncio.sleep(_DRAIN_INTERVAL)

    async def close_all(self) -> None:
        """Close every stream."""
        for intake in self.intakes.values():
            intake.end(StreamBroken("the node is stopping"))
        while self._offers:
            _, offer = self._offers.popitem()
            await offer.close()

    # Making requests

    async def send(
        self, stream: ByteStream, to: Address, sent: Envelope, sender: str, deadline: float, request: Coroutine[Any, Any, Any]
    ) -> Any:
        """Make a request, and push its stream meanwhile. Return the answer.

        Args:
            sent: the envelope of the request.
            request: makes the request.

        Raises:
            ServiceError: as the request.
            StreamBroken: if the stream has failed. The request is cancelled.
        """
        offer = self._offers[stream.id]
        asking = self._loop.create_task(request)
        pushing = self._loop.create_task(self._push(stream.id, offer, to, sent.id, sender, deadline))
        try:
            await asyncio.wait((asking, pushing), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done() and (refused := pushing.result()) is not None:
                await asyncio.wait((asking,), timeout=_GRACE)  # its own outcome says more
                if not asking.done():
                    raise refused
            return await asking
        finally:
            for task in (asking, pushing):
                task.cancel()
            await finish(asyncio.wait((asking, pushing)))
            for task in (asking, pushing):
                if not task.cancelled():
                    task.exception()  # marks it as retrieved

    async def _push(
        self, name: str, offer: Offer, to: Address, request: str, sender: str, deadline: float
    ) -> StreamBroken | None:
        """Push a stream to its end, or until the instance refuses a piece. Raises `StreamBroken` if its source fails."""
        at, peer = 0, _Peer(to)
        while True:
            piece = await offer.take(at, self._most, self._loop)
            try:
                await self._ask(peer, Push(request, name, at, piece), sender, deadline)
            except NotDelivered as error:
                if not self._is_there(to):
                    return StreamBroken(f"{to} is gone: {error}")
                await self._environment.clock.sleep(_RETRY_INTERVAL)
                continue
            except ServiceError as error:
                return StreamBroken(f"{to} takes no more of it: {error}")
            if piece.last:
                return None
            at += len(piece.data)

    def may_send_again(self, stream: ByteStream) -> bool:
        """Return whether a request with this stream can be made again, because its stream has hardly begun."""
        offer = self._offers.get(stream.id)
        return offer is not None and offer.restart()

    def replied(self, stream: ByteStream, by: Address, reader: str) -> None:
        """Note which instance has replied with a stream to a service on this node."""
        self._sources[stream.id] = by, reader
        self._loop.call_later(self._patience, self._sources.pop, stream.id, None)

    async def _ask(self, peer: _Peer, message: Push | Take | Drop, sender: str, deadline: float) -> Any:
        try:
            return await self._exchange.ask(peer, message, deadline, sender)
        except (Malformed, Invalid) as error:
            raise StreamBroken(f"a piece of it cannot be read: {error}") from None

    # Reading

    def read(self, stream: ByteStream, request: RequestKey | None) -> AsyncGenerator[bytes, None]:
        """Return the bytes of a stream, in pieces.

        Args:
            request: the request that is being handled; None if it does not come from another node.

        Raises:
            StreamBroken: if it ends before it is complete, is unknown, or is being read already.
        """
        offer = self._offers.get(stream.id)
        if offer is not None:
            return self._read_here(stream.id, offer)
        if stream.id in self._sources:
            return self._pull(stream.id)
        if request is None:
            raise StreamBroken("nobody offers it, or it was read before")
        return self._receive(stream.id, request)

    def _is_there(self, address: Address) -> bool:
        return any(member.address == address for member in self._environment.registry)

    async def _read_here(self, name: str, offer: Offer) -> AsyncGenerator[bytes, None]:
        if offer.begun:
            raise StreamBroken("it is being read already")
        if offer.timer is not None:
            offer.timer.cancel()
        at = 0
        try:
            while True:
                try:
                    async with asyncio.timeout(self._patience):
                        piece = await offer.take(at, AHEAD, self._loop)
                except TimeoutError:
                    raise StreamBroken(_TOO_LATE) from None
                if piece.data:
                    yield piece.data
                if piece.last:
                    return
                at += len(piece.data)
        finally:
            self._offers.pop(name, None)
            await offer.close()

    async def _pull(self, name: str) -> AsyncGenerator[bytes, None]:
        found = self._sources.get(name)
        if found is None:
            raise StreamBroken("it was read before")
        self._sources[name] = None
        source, sender = found
        try:
            async for data in self._taken(name, source, sender):
                yield data
        except BaseException:  # its reader has ended early, too
            self._environment.spawn(self._drop(name, source, sender))
            raise

    async def _drop(self, name: str, source: Address, sender: str) -> None:
        """Tell an instance that the rest of its stream is not wanted, as far as that is possible."""
        try:
            await self._ask(_Peer(source), Drop(name), sender, self._loop.time() + _GRACE)
        except ServiceError as error:
            self._environment.log.debug("%s was not told that its stream is not wanted: %s", source, error)

    async def _taken(self, name: str, source: Address, sender: str) -> AsyncGenerator[bytes, None]:
        at, peer = 0, _Peer(source)
        lost_at: float | None = None
        while True:
            cuts = self._exchange.cuts
            try:
                piece = await self._ask(peer, Take(name, at), sender, self._loop.time() + self._patience)
            except StreamBroken:
                raise
            except (InstanceLost, NotDelivered) as error:
                now = self._loop.time()
                lost_at = lost_at or now
                was_cut = self._exchange.cuts != cuts or isinstance(error, NotDelivered)
                if not (was_cut and self._is_there(source)) or now - lost_at > self._patience:
                    raise StreamBroken(f"{source} is gone: {error}") from error
                await self._environment.clock.sleep(_RETRY_INTERVAL)  # the link was cut: the piece can be taken again
                continue
            except ServiceError as error:
                what = _TOO_LATE if isinstance(error, DeadlineExceeded) else str(error)
                raise StreamBroken(f"{source}: {what}") from error
            lost_at = None
            if piece.data:
                yield piece.data
            if piece.last:
                return
            at += len(piece.data)

    async def _receive(self, name: str, request: RequestKey) -> AsyncGenerator[bytes, None]:
        if not self.is_running(request):
            raise StreamBroken("the handler of its request has ended: read it before")
        intake = self.intakes.get(request)
        if intake is None:
            intake = self.intakes[request] = Intake(self._loop)
        if intake.claimed:
            raise StreamBroken("it is being read already")
        intake.claimed = True
        while True:
            try:
                async with asyncio.timeout(self._patience):
                    piece = await intake.take(AHEAD)
            except TimeoutError:
                raise StreamBroken(_TOO_LATE) from None
            if intake.stream != name:
                raise StreamBroken("nobody offers it, or it was read before")
            if piece.data:
                yield piece.data
            if piece.last:
                return

    def ended(self, request: RequestKey) -> None:
        """Forget the stream of a request whose handler has ended."""
        intake = self.intakes.pop(request, None)
        if intake is not None:
            intake.end(StreamBroken("its reader has ended"))

    # Messages of other nodes

    async def answer(self, envelope: Envelope, to: str) -> Any:
        """Handle the message of another node about a stream, and return the reply.

        Args:
            to: the service that it is for.

        Raises:
            ServiceError: the error that the other node receives.
        """
        spec = bytes_contract.messages[envelope.subject.partition(".")[2]]
        message: Push | Take | Drop = spec.codec.decode(envelope.body) if isinstance(envelope.body, bytes) else envelope.body
        reply: Piece | None = None
        try:
            async with asyncio.timeout(self._patience if envelope.budget is None else envelope.budget):
                if isinstance(message, Push):
                    node = "" if envelope.reply_to is None else envelope.reply_to.node
                    await self._take_in((envelope.caller, node, to, message.request), message)
                elif isinstance(message, Drop):
                    self._give_up(envelope.caller, message)
                else:
                    reply = await self._give_out(envelope.caller, message)
        except TimeoutError:
            raise DeadlineExceeded(to) from None
        return reply if self._environment.transport.zero_copy else spec.reply_codec.encode(reply)

    def _give_up(self, caller: str, message: Drop) -> None:
        offer = self._offers.get(message.stream)
        if offer is not None and offer.reader == caller:
            self._forget(message.stream)

    async def _take_in(self, key: RequestKey, message: Push) -> None:
        waited = 0.0
        while not self.is_running(key):  # a piece may overtake its request
            if waited >= _GRACE:
                raise StreamBroken("its request is not being handled")
            await asyncio.sleep(_STEP)
            waited += _STEP
        intake = self.intakes.get(key)
        if intake is None:
            intake = self.intakes[key] = Intake(self._loop)
        await intake.push(message.stream, message.at, message.piece)

    async def _give_out(self, caller: str, message: Take) -> Piece:
        offer = self._offers.get(message.stream)
        if offer is None or offer.reader != caller:
            raise StreamBroken("nobody offers it, or it has been read")
        if offer.timer is not None:
            offer.timer.cancel()
        try:
            piece = await offer.take(message.at, self._most, self._loop)
        finally:
            self._keep(message.stream, offer)
        return piece
