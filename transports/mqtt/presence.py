"""Who is there, as retained manifests, heartbeats and Wills tell it. No network in here: messages in, what follows out."""

import asyncio

import msgspec

from runtime import Clock
from runtime.network import Address, Manifest, PeerUnreachable, Receiver

_SUSPECTED = 2
"""One that has missed so many heartbeats may be busy, or gone."""
MISSED = 3
"""One that has not announced itself for so many heartbeats since we listen is lost."""


class _Peer:
    """What is known of one instance."""

    __slots__ = ("cut", "heard_at", "knock", "live", "manifest", "payload", "suspected", "was_live", "withdrawn")

    def __init__(self, manifest: Manifest, payload: bytes) -> None:
        self.manifest = manifest
        self.payload = payload
        self.heard_at = 0.0
        self.live = False
        """It has announced itself while we listened. Of others the broker has kept a manifest, and they may be dead."""
        self.was_live = False
        """It was, before our link was cut."""
        self.cut = False
        """Our link was cut, and nothing was heard of it since."""
        self.suspected = False
        self.withdrawn = False
        self.knock = asyncio.Lock()
        """Held by the one request that finds out whether it is there, while only the broker says so."""

    @property
    def is_there(self) -> bool:
        """Whether it, or the broker, has said that it is there, since our link stands."""
        return not self.cut and not self.withdrawn


class Presence:
    """The instances that this node has heard of. The receiver is told of what changes.

    Args:
        patience: seconds of silence after which an instance is lost, though the broker has not told of its end; and for
            which one may take to come back to a broker that both have lost.
    """

    def __init__(self, receiver: Receiver, clock: Clock, heartbeat: float, patience: float) -> None:
        self._receiver = receiver
        self._clock = clock
        self._heartbeat = heartbeat
        self._patience = patience
        self._peers: dict[Address, _Peer] = {}
        self._since = clock.monotonic()
        """When we began to listen, or began again."""
        self._news: dict[str, asyncio.Future[None]] = {}
        """For services with requests that wait: done when one of its instances is heard of, or lost."""

    def __repr__(self) -> str:
        return f"<Presence {', '.join(str(address) for address, peer in self._peers.items() if not peer.withdrawn)}>"

    # What is heard

    def heard(self, address: Address, payload: bytes, load: int, *, kept: bool) -> None:
        """An instance's manifest, or, empty, its withdrawal. `kept`: from the broker's memory, not just said.

        Raises:
            ValueError: it is no manifest, or another's.
        """
        peer = self._peers.get(address)
        if not payload:
            if peer is not None and not peer.withdrawn:
                peer.withdrawn, peer.cut, peer.heard_at = True, False, self._clock.monotonic()
                self._wake(address.service)
                self._receiver.left(address, lost=False)
            return
        if peer is None or peer.payload != payload:
            manifest = _manifest(payload)
            if manifest.address != address:
                raise ValueError(f"the manifest of {manifest.address} under the name of {address}")
            if peer is None:
                peer = self._peers[address] = _Peer(manifest, payload)
            peer.manifest, peer.payload = manifest, payload
        peer.heard_at = self._clock.monotonic()
        peer.live = peer.live or not kept
        peer.cut = peer.suspected = peer.withdrawn = False
        self._wake(address.service)
        self._receiver.joined(peer.manifest, load)
        if not peer.live:
            self._receiver.suspected(address)

    def gone(self, node: str) -> None:
        """A node's Will: all its instances are lost."""
        for address in [address for address in self._peers if address.node == node]:
            self._lose(address)

    def cut(self) -> None:
        """Our link is down: whoever was there may be there still, and is not known to be."""
        for address, peer in self._peers.items():
            peer.was_live = peer.live
            peer.live, peer.cut = False, True
            self._receiver.suspected(address)

    def restored(self) -> None:
        """Our link is up again."""
        self._since = self._clock.monotonic()

    def check(self) -> None:
        """Suspects and gives up those that have been silent. To be called at every heartbeat while the link is up."""
        now = self._clock.monotonic()
        for address, peer in list(self._peers.items()):
            silent = now - max(peer.heard_at, self._since)
            if peer.withdrawn and silent > MISSED * self._heartbeat:
                del self._peers[address]
                self._wake(address.service)
            elif silent > (self._patience if peer.live or peer.was_live else MISSED * self._heartbeat):
                self._lose(address)
            elif peer.live and silent > _SUSPECTED * self._heartbeat and not peer.suspected:
                peer.suspected = True
                self._receiver.suspected(address)

    def _lose(self, address: Address) -> None:
        peer = self._peers.pop(address, None)
        if peer is not None:
            self._wake(address.service)
            self._receiver.left(address, lost=True)

    def _wake(self, service: str) -> None:
        """Lets the requests that wait for an instance look again."""
        news = self._news.pop(service, None)
        if news is not None:
            news.set_result(None)

    # Whom to ask

    def is_live(self, address: Address) -> bool:
        """Whether an instance is known to listen: it need not be asked of the broker."""
        peer = self._peers.get(address)
        return peer is not None and peer.live

    def knock(self, address: Address) -> asyncio.Lock | None:
        """What only one request may hold that finds out whether an instance is there; None if nothing is known of it."""
        peer = self._peers.get(address)
        return None if peer is None else peer.knock

    def answers(self, address: Address) -> None:
        """The broker says that somebody listens there."""
        peer = self._peers.get(address)
        if peer is not None:
            peer.live, peer.heard_at = True, self._clock.monotonic()

    async def here(self, address: Address) -> None:
        """Waits while it is not known whether an instance is still there, because our link was cut, or whether another is.

        Raises:
            PeerUnreachable: it is not, or another is.
        """
        peer = self._peers.get(address)
        while peer is not None and peer.cut:
            if any(other.is_there for to, other in self._peers.items() if to.service == address.service):
                raise PeerUnreachable(f"{address} was not heard of since our link was cut, and another was")
            await asyncio.shield(self._news.setdefault(address.service, asyncio.get_running_loop().create_future()))
            peer = self._peers.get(address)
            if peer is None:
                raise PeerUnreachable(f"{address} has not come back")

    def missing(self, address: Address) -> None:
        """The broker says that nobody listens there. A peer that was there before the cut may still come back to the broker.

        Raises:
            PeerUnreachable: it is not there.
        """
        peer = self._peers.get(address)
        if peer is not None and peer.was_live and self._clock.monotonic() - self._since < self._patience:
            peer.cut = True
            self._receiver.suspected(address)
            return
        self._lose(address)
        raise PeerUnreachable(f"{address} is not there")


def _manifest(payload: bytes) -> Manifest:
    try:
        return msgspec.json.decode(payload, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"it is no manifest: {error}") from None
