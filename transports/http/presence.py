"""Which instances are alive over HTTP: one task per address of each watched service asks that address again and again.

A question names what the asker already knows. It is answered as soon as there is something new, or after a heartbeat. So
instances that come, leave, or commit events are noticed at once; one that does not answer in time is suspected, then lost.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from yarl import URL

from runtime import Clock, Random
from runtime.network import Address, Envelope, Head, LinkLost, Manifest, PeerUnreachable, Receiver, TransportError
from runtime.tasks import Backoff, wait_for_event
from runtime.telemetry import logger
from transports.http import fields
from transports.http.client import Client, Location, Untrusted
from transports.http.peer import Peer, PeerState
from transports.http.settings import HttpSettings
from transports.resolver import Resolver

_RETRY = Backoff(0.1, 1.0)
"""Between two questions to a location without an instance: failing to connect costs little."""
_LOOKUP_INTERVAL = 30.0
"""Seconds after which a name is looked up again although no instance was lost: there may be more instances."""
_LOOKUP_TIMEOUT = 5.0
"""Seconds to wait for a name server. If the first of two is down, the system's resolver takes three."""


class News(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node reports about one of its services.

    Attributes:
        version: Counts the service's announcements.
        heads: Counts the heads of its stream that it has reported.
        load: How many messages the instance has running or waiting.
        manifest: Included if its version differs from the one that the question named.
        head: The current head of its stream.
    """

    version: int
    heads: int
    load: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0
    manifest: Manifest | None = None
    head: Head | None = None


async def locations_of(url: URL, resolver: Resolver) -> set[Location]:
    """Return the locations that a URL's host name currently stands for. Raises like `Resolver.addresses`."""
    assert url.host is not None
    assert url.port is not None
    return {Location(url.with_host(ip), url.host, url.authority) for ip in await resolver.addresses(url.host, url.port)}


class Presence:
    """Follows the instances of the services that are watched, and reports every change to the receiver.

    Args:
        urls: The URLs of each service.
        assertion: Makes the assertion that proves to a service which node asks.
        on_lost: Called when a node no longer answers at a location, after the receiver was called.
    """

    def __init__(
        self, node: str, receiver: Receiver, client: Client, settings: HttpSettings, clock: Clock, random: Random,
        urls: dict[str, tuple[URL, ...]], assertion: Callable[[str], str], on_lost: Callable[[Address, Location], None],
    ) -> None:  # fmt: skip
        self._node = node
        self._receiver = receiver
        self._client = client
        self._settings = settings
        self._clock = clock
        self._random = random
        self._urls = urls
        self._assertion = assertion
        self._on_lost = on_lost
        self._log = logger("http")
        self._peers: dict[str, dict[Location, Peer]] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._resolver = Resolver()
        self._resolved: dict[str, asyncio.Event] = {}
        """By service: set when its names were looked up for the first time."""
        self._resolve_again: dict[str, asyncio.Event] = {}
        """By service: set when its addresses may have changed."""
        self._subscribers: dict[str, set[str]] = {}
        self._locations: dict[Address, Location] = {}
        self._complained: set[Location] = set()

    def __repr__(self) -> str:
        return f"<Presence {', '.join(repr(peer) for peers in self._peers.values() for peer in peers.values())}>"

    def location(self, address: Address) -> Location | None:
        """Return where an instance is reached."""
        return self._locations.get(address)

    async def locations(self, service: str) -> list[Location]:
        """Return every location of a service, whether or not an instance answers there."""
        await self.watch(service)
        return list(self._peers.get(service, {}))

    def subscribers(self, publisher: str) -> tuple[str, ...]:
        """Return the services on this node that receive the heads of a publisher's stream."""
        return tuple(self._subscribers.get(publisher, ()))

    def subscribe(self, publisher: str, subscriber: str) -> None:
        """Deliver the heads of a publisher's stream to a service on this node from now on."""
        self._subscribers.setdefault(publisher, set()).add(subscriber)

    def unsubscribe(self, publisher: str, subscriber: str) -> None:
        """Stop delivering the heads of a publisher's stream to a service on this node."""
        self._subscribers.get(publisher, set()).discard(subscriber)

    async def watch(self, service: str) -> None:
        """Follow a service from now on. Returns when each of its locations was asked once, or after a timeout."""
        if service not in self._urls:
            return
        if service not in self._resolving:
            self._peers[service] = {}
            self._resolve_again[service] = asyncio.Event()
            self._resolved[service] = asyncio.Event()
            self._resolving[service] = asyncio.create_task(self._resolve(service, self._resolved[service]))
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT):
                await self._resolved[service].wait()
            async with asyncio.timeout(self._settings.connect_timeout):
                for peer in list(self._peers.get(service, {}).values()):
                    await peer.asked.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        following = [peer.asking for peers in self._peers.values() for peer in peers.values() if peer.asking is not None]
        tasks: list[asyncio.Task[Any]] = [*self._resolving.values(), *following]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for resolved in self._resolved.values():
            resolved.set()
        self._resolving.clear()
        self._peers.clear()
        self._locations.clear()

    # Name lookups

    async def _resolve(self, service: str, resolved: asyncio.Event) -> None:
        """Look up the service's names again and again, and follow the addresses that they stand for."""
        peers = self._peers[service]
        failures = 0
        while True:
            again = self._resolve_again[service]
            again.clear()
            lookups = await asyncio.gather(*map(self._look_up, self._urls[service]))
            known = {location for locations in lookups for location in locations or ()}
            complete = None not in lookups
            failures = 0 if complete else failures + 1
            for location in known - peers.keys():
                peer = peers[location] = Peer(location)
                peer.asking = asyncio.create_task(self._follow(service, peer))
            if complete:
                for location in peers.keys() - known:
                    if peers[location].node is None:  # one with an instance is followed until that is lost
                        asking = peers.pop(location).asking
                        assert asking is not None
                        asking.cancel()
            resolved.set()
            nobody = all(peer.node is None and peer.state is not PeerState.OURSELVES for peer in peers.values())
            retry = Backoff(_RETRY.longest, self._settings.heartbeat)
            pause = retry.delay(failures, self._random) if nobody else self._random.jitter(_LOOKUP_INTERVAL)
            if not await wait_for_event(again, pause):
                continue
            await self._clock.sleep(self._random.jitter(_RETRY.longest))  # an instance that restarts has no name for a moment

    async def _look_up(self, url: URL) -> set[Location] | None:
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT):
                return await locations_of(url, self._resolver)
        except Exception as error:  # no error whatsoever may end the lookups
            self._log.debug("%s has no address: %r", url.authority, error)
            return None

    # Questions

    async def _follow(self, service: str, peer: Peer) -> None:
        """Ask one location about a service, again and again."""
        failures = 0
        wait = 0.0
        while True:
            node = peer.node
            try:
                news = await self._ask(service, peer, wait)
            except PeerUnreachable as error:
                self._lose(service, peer, error)
                wait = 0.0
                if isinstance(error, Untrusted):
                    self._complain(service, peer.location, error)
            except (LinkLost, TimeoutError) as error:
                if node is not None and peer.state in (PeerState.PRESENT, PeerState.WITHDRAWN):
                    peer.enter(PeerState.SUSPECTED)
                    wait = 0.0
                    self._receiver.suspected(Address(service, node))
                    continue  # it may have stopped in good order, be busy, or be dead: the next answer shows which
                self._lose(service, peer, error)
                wait = 0.0
            except TransportError as error:
                self._lose(service, peer, error)
                self._complain(service, peer.location, error)
            else:
                self._complained.discard(peer.location)
                wait, failures = self._settings.heartbeat, 0
                if news is not None:
                    self._heard(service, peer, news)
                    continue
                # the node answers, and will report when it has the service
            await self._clock.sleep(_RETRY.delay(failures, self._random))
            failures += 1

    async def _ask(self, service: str, peer: Peer, wait: float) -> News | None:
        """Return what the node at a location reports about a service; None if there is nothing to handle.

        Args:
            wait: How long the node may wait for something new, in seconds.

        Raises:
            PeerUnreachable: if there is no connection.
            LinkLost: if the connection is lost, or the manifest is missing.
            TransportError: if the answer is not one.
            TimeoutError: if there is no answer in time.
        """
        query = f"version={peer.version}&heads={peer.heads}&wait={round(wait * 1000)}&node={peer.node or ''}"
        headers = {fields.NODE: self._node, fields.ASSERTION: self._assertion(service)}
        async with asyncio.timeout(wait + self._settings.heartbeat):
            answer = await self._client.get(peer.location, f"/{service}/presence?{query}", headers)
        node = answer.fields.get(fields.NODE, "")
        if answer.status == 404 and node:
            self._withdrawn(service, peer, node)
            return None
        if answer.status != 200 or not node:
            raise TransportError(f"{peer.location} answers {answer.status} when asked about {service}: {answer.body[:200]!r}")
        if peer.node not in (None, node):
            self._lose(service, peer, PeerUnreachable(f"{node} has replaced it"))
        if node == self._node:
            peer.enter(PeerState.OURSELVES)
            await self._clock.sleep(self._settings.heartbeat)
            return None
        if peer.state is PeerState.OURSELVES:
            peer.enter(PeerState.ABSENT)
        try:
            news = msgspec.json.decode(answer.body, type=News)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TransportError(f"the news of {service} from {peer.location} cannot be read: {error}") from None
        if news.manifest is not None and news.manifest.address != Address(service, node):
            raise TransportError(
                f"{peer.location} has the manifest of {news.manifest.address} under the name of {service}@{node}"
            )
        if news.manifest is None and (peer.manifest is None or peer.version != news.version):
            raise LinkLost(f"{peer.location} has sent no manifest")  # it was restarted meanwhile
        peer.node = node
        return news

    def _heard(self, service: str, peer: Peer, news: News) -> None:
        """Handle an instance's answer."""
        assert peer.node is not None
        address = Address(service, peer.node)
        before, peer.heads, peer.version = peer.heads, news.heads, news.version
        peer.manifest = news.manifest or peer.manifest
        assert peer.manifest is not None
        peer.enter(PeerState.PRESENT)
        self._locations[address] = peer.location
        self._receiver.joined(peer.manifest, news.load)
        if news.head is not None and news.heads != before:
            envelope = Envelope("head", "", f"{service}.head", msgspec.json.encode(news.head), service)
            for subscriber in self.subscribers(service):
                self._receiver.receive(envelope, subscriber)

    def _withdrawn(self, service: str, peer: Peer, node: str) -> None:
        """Handle the answer of a node that does not have the service, or no longer has it."""
        if peer.node not in (None, node):
            self._lose(service, peer, PeerUnreachable(f"{node} has replaced it"))
        elif peer.node is None:
            peer.forget()
        else:
            if peer.manifest is not None:
                peer.manifest = None
                self._receiver.left(Address(service, node), lost=False)
            peer.enter(PeerState.WITHDRAWN)
        peer.version = peer.heads = 0

    def _lose(self, service: str, peer: Peer, error: Exception) -> None:
        """Handle the loss of a location: nobody answers there any more, or another node does."""
        if peer.node is not None:
            address = Address(service, peer.node)
            others = [other for other in self._peers[service].values() if other is not peer and other.node == peer.node]
            self._log.debug("%s is gone from %s: %s", address, peer.location, error)
            if others:
                self._locations[address] = others[0].location  # the node is reached at several locations, and has lost one
            else:
                self._locations.pop(address, None)
                self._receiver.left(address, lost=True)
            self._on_lost(address, peer.location)
            self._resolve_again[service].set()  # after a restart it may have another address
        peer.forget()

    def _complain(self, service: str, location: Location, error: Exception) -> None:
        """Log, once for each location, that a node is there but cannot be talked to: an operator should know."""
        if location not in self._complained:
            self._complained.add(location)
            self._log.warning("the presence of %s is unknown: %s", service, error)
