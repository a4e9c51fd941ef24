"""Who is there, as asking again and again tells it: each address of each service that is watched has a task that asks it.

A question names what is known already, and is answered when there is something new, at the latest after a heartbeat. So
whoever comes, leaves or commits events is known at once, and one who does not answer in time is doubted, then lost.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from yarl import URL

from runtime import Clock, Random
from runtime.network import Address, Envelope, Head, LinkLost, Manifest, PeerUnreachable, Receiver, TransportError
from transports.http import fields
from transports.http.client import Client, Place, Untrusted
from transports.http.settings import HttpSettings
from transports.resolver import Resolver

_SOON = 0.1
_LOOKED_UP = 30.0
"""Seconds after which a name is looked up again though nobody went: there may be more instances."""
_LOOKING_UP = 5.0
"""Seconds for which a name server's answer is waited for: where the first of two is away, the system's resolver takes three."""
_LONGEST = 1.0
"""Seconds at most between two looks at an address where nobody was: connecting in vain costs little."""


class News(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of one of its services.

    `version` counts its announcements, `heads` the heads of its stream that it has told. `manifest` comes when its
    version is another than the one that the question named.
    """

    version: int
    heads: int
    load: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0
    manifest: Manifest | None = None
    head: Head | None = None


async def places_of(url: URL, names: Resolver) -> set[Place]:
    """The addresses that a URL's name has now. Raises like `Resolver.addresses`."""
    assert url.host is not None
    assert url.port is not None
    return {Place(url.with_host(ip), url.host, url.authority) for ip in await names.addresses(url.host, url.port)}


class _Peer:
    """What is known of one address of a service."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.node: str | None = None
        self.manifest: Manifest | None = None
        self.version = 0
        self.heads = 0
        self.suspected = False
        self.is_us = False
        self.looked = asyncio.Event()
        """Set when it has been asked for the first time."""
        self.asking: asyncio.Task[None] | None = None


class Presence:
    """Follows the services that are watched.

    Args:
        places: each service's URLs.
        assertion: makes what proves to a service who asks.
        lost: is told of nodes that do not answer any more at a place, after the receiver.
    """

    def __init__(
        self, node: str, receiver: Receiver, client: Client, settings: HttpSettings, clock: Clock, random: Random,
        places: dict[str, tuple[URL, ...]], assertion: Callable[[str], str], lost: Callable[[Address, Place], None],
    ) -> None:  # fmt: skip
        self._node = node
        self._receiver = receiver
        self._client = client
        self._settings = settings
        self._clock = clock
        self._random = random
        self._places = places
        self._assertion = assertion
        self._lost = lost
        self._log = logging.getLogger("callboard.http")
        self._peers: dict[str, dict[Place, _Peer]] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._resolver = Resolver()
        self._found: dict[str, asyncio.Event] = {}
        """Set when a service's names were looked up for the first time."""
        self._again: dict[str, asyncio.Event] = {}
        """Set when a service may have other addresses than before."""
        self._hints: dict[str, set[str]] = {}
        self._where: dict[Address, Place] = {}
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"<Presence {', '.join(map(str, self._where))}>"

    def place(self, address: Address) -> Place | None:
        """Where an instance is."""
        return self._where.get(address)

    async def places(self, service: str) -> list[Place]:
        """All addresses of a service, whether somebody is there or not."""
        await self.watch(service)
        return list(self._peers.get(service, {}))

    def subscribers(self, publisher: str) -> tuple[str, ...]:
        """The services on this node that are told of a publisher's heads."""
        return tuple(self._hints.get(publisher, ()))

    def hint(self, publisher: str, subscriber: str) -> None:
        """Tells a service on this node of a publisher's heads from now on."""
        self._hints.setdefault(publisher, set()).add(subscriber)

    def no_hint(self, publisher: str, subscriber: str) -> None:
        """Not any longer."""
        self._hints.get(publisher, set()).discard(subscriber)

    async def watch(self, service: str) -> None:
        """Follows a service from now on. Returns when each of its addresses was asked once, or has not answered for a while."""
        if service not in self._places:
            return
        if service not in self._resolving:
            self._peers[service] = {}
            self._again[service] = asyncio.Event()
            self._found[service] = asyncio.Event()
            self._resolving[service] = asyncio.create_task(self._resolve(service, self._found[service]))
        try:
            async with asyncio.timeout(_LOOKING_UP):
                await self._found[service].wait()
            async with asyncio.timeout(self._settings.connect_timeout):
                for peer in list(self._peers.get(service, {}).values()):
                    await peer.looked.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        following = [peer.asking for peers in self._peers.values() for peer in peers.values() if peer.asking is not None]
        tasks: list[asyncio.Task[Any]] = [*self._resolving.values(), *following]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for found in self._found.values():
            found.set()
        self._resolving.clear()
        self._peers.clear()
        self._where.clear()

    # Addresses

    async def _resolve(self, service: str, found: asyncio.Event) -> None:
        """Looks again and again which addresses the service's names have."""
        peers = self._peers[service]
        failures = 0
        while True:
            again = self._again[service]
            again.clear()
            looked_up = await asyncio.gather(*map(self._look_up, self._places[service]))
            known = {place for places in looked_up for place in places or ()}
            complete = None not in looked_up
            failures = 0 if complete else failures + 1
            for place in known - peers.keys():
                peer = peers[place] = _Peer(place)
                peer.asking = asyncio.create_task(self._follow(service, peer))
            if complete:
                for place in peers.keys() - known:
                    if peers[place].node is None:  # one that still answers is followed to its end
                        asking = peers.pop(place).asking
                        assert asking is not None
                        asking.cancel()
            found.set()
            nobody = all(peer.node is None and not peer.is_us for peer in peers.values())
            pause = min(_LONGEST * 2 ** min(failures, 10), self._settings.heartbeat) if nobody else _LOOKED_UP
            try:
                async with asyncio.timeout(self._random.jitter(pause)):
                    await again.wait()
            except TimeoutError:
                continue
            await self._clock.sleep(self._random.jitter(_LONGEST))  # whoever went has no name at the moment

    async def _look_up(self, url: URL) -> set[Place] | None:
        try:
            async with asyncio.timeout(_LOOKING_UP):
                return await places_of(url, self._resolver)
        except Exception as error:  # whatever it is, it must not end the looking
            self._log.debug("%s has no address: %r", url.authority, error)
            return None

    # Asking

    async def _follow(self, service: str, peer: _Peer) -> None:
        """Asks one address about a service, for ever."""
        pause = _SOON
        wait = 0.0
        while True:
            known = peer.node
            try:
                news = await self._ask(service, peer, wait)
            except PeerUnreachable as error:
                self._gone(service, peer, error)
                wait = 0.0
                if isinstance(error, Untrusted):
                    self._complain(service, peer.place, error)
            except (LinkLost, TimeoutError) as error:
                if known is not None and not peer.suspected:
                    peer.suspected, wait = True, 0.0
                    self._receiver.suspected(Address(service, known))
                    continue  # it may have been stopped in good order, be busy, or dead: the next answer says
                self._gone(service, peer, error)
                wait = 0.0
            except TransportError as error:
                self._gone(service, peer, error)
                self._complain(service, peer.place, error)
            else:
                self._told.discard(str(peer.place))
                if news is not None:
                    self._heard(service, peer, news)
                    wait, pause = self._settings.heartbeat, _SOON
                    peer.looked.set()
                    continue
                wait, pause = self._settings.heartbeat, _SOON  # the node is there, and tells when the service is
            peer.looked.set()
            await self._clock.sleep(self._random.jitter(pause))
            pause = min(pause * 2, _LONGEST)

    async def _ask(self, service: str, peer: _Peer, wait: float) -> News | None:
        """What the node at an address has to say; None if it has nothing of the service.

        Raises:
            TransportError: it answers with something that is no answer.
            TimeoutError: it does not answer.
        """
        query = f"version={peer.version}&heads={peer.heads}&wait={round(wait * 1000)}&node={peer.node or ''}"
        headers = {fields.NODE: self._node, fields.ASSERTION: self._assertion(service)}
        async with asyncio.timeout(wait + self._settings.heartbeat):
            answer = await self._client.get(peer.place, f"/{service}/presence?{query}", headers)
        node = answer.fields.get(fields.NODE, "")
        if answer.status == 404 and node:
            self._withdrawn(service, peer, node)
            return None
        if answer.status != 200 or not node:
            raise TransportError(f"{peer.place} answers {answer.status} when asked about {service}: {answer.body[:200]!r}")
        peer.is_us = node == self._node
        if peer.is_us:
            peer.looked.set()
            await self._clock.sleep(self._settings.heartbeat)  # that is us
            return None
        try:
            news = msgspec.json.decode(answer.body, type=News)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TransportError(f"what {peer.place} says of {service} cannot be read: {error}") from None
        if news.manifest is not None and news.manifest.address != Address(service, node):
            raise TransportError(f"{peer.place} has the manifest of {news.manifest.address} under the name of {service}@{node}")
        if peer.node not in (None, node):
            self._gone(service, peer, PeerUnreachable(f"{node} is there now"))
        if news.manifest is None and (peer.manifest is None or peer.version != news.version):
            raise LinkLost(f"{peer.place} gave no manifest")  # it was started anew in between
        peer.node = node
        return news

    def _heard(self, service: str, peer: _Peer, news: News) -> None:
        assert peer.node is not None
        address = Address(service, peer.node)
        before, peer.heads, peer.version = peer.heads, news.heads, news.version
        peer.manifest = news.manifest or peer.manifest
        assert peer.manifest is not None
        peer.suspected = False
        self._where[address] = peer.place
        self._receiver.joined(peer.manifest, news.load)
        if news.head is not None and news.heads != before:
            envelope = Envelope("head", "", f"{service}.head", msgspec.json.encode(news.head), service)
            for subscriber in self.subscribers(service):
                self._receiver.receive(envelope, subscriber)

    def _withdrawn(self, service: str, peer: _Peer, node: str) -> None:
        """A node is there, and has nothing of the service (any more)."""
        if peer.node is not None and peer.node != node:
            self._gone(service, peer, PeerUnreachable(f"{node} is there now"))
        elif peer.manifest is not None:
            peer.manifest = None
            self._receiver.left(Address(service, node), lost=False)
        peer.version = peer.heads = 0

    def _gone(self, service: str, peer: _Peer, error: Exception) -> None:
        """Nobody answers there."""
        if peer.node is not None:
            address = Address(service, peer.node)
            others = [one for one in self._peers[service].values() if one is not peer and one.node == peer.node]
            self._log.debug("%s is gone from %s: %s", address, peer.place, error)
            if others:
                self._where[address] = others[0].place  # there are two ways to it, and this was only one
            else:
                self._where.pop(address, None)
                self._receiver.left(address, lost=True)
            self._lost(address, peer.place)
            self._again[service].set()  # started anew it may have another address
        peer.node = peer.manifest = None
        peer.version = peer.heads = 0
        peer.suspected = False

    def _complain(self, service: str, place: Place, error: Exception) -> None:
        """Somebody is there, and will not speak to us: that is for an operator, once."""
        if str(place) not in self._told:
            self._told.add(str(place))
            self._log.warning("it cannot be known whether %s is there: %s", service, error)
