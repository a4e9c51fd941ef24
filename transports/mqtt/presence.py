"""Which instances are alive, judged by retained manifests, heartbeats, and Wills. There is no I/O here: the transport feeds it."""

import asyncio
import enum

import msgspec

from runtime import Clock
from runtime.network import Address, Manifest, PeerUnreachable, Receiver

_SUSPECTED = 2
"""An instance that has missed this many heartbeats is suspected: it may be busy or gone."""
MISSED = 3
"""An instance that was never live is lost after this many heartbeats without an announcement."""


class PeerState(enum.Enum):
    """What is known about one instance."""

    RETAINED = enum.auto()
    """Known from the broker's retained manifest alone. It may be dead."""
    LIVE = enum.auto()
    """It has announced itself while this node listened, or the broker has confirmed that it listens."""
    SUSPECTED = enum.auto()
    """It was live, and has missed heartbeats."""
    CUT = enum.auto()
    """It was live when this node's link was cut, and has not been heard of since."""
    CUT_RETAINED = enum.auto()
    """It was not known to be live when this node's link was cut, and has not been heard of since."""
    RETURNING = enum.auto()
    """It was live before the cut; since then only its retained manifest has arrived. It may still be reconnecting."""
    WITHDRAWN = enum.auto()
    """It has withdrawn. It may still answer what it has begun, until its node is gone."""

    @property
    def is_live(self) -> bool:
        """Whether the instance is known to listen, so that the broker does not have to confirm it."""
        return self in _LISTENING

    @property
    def is_cut(self) -> bool:
        """Whether the instance has not been heard of since this node's link was cut."""
        return self in (PeerState.CUT, PeerState.CUT_RETAINED)

    @property
    def is_present(self) -> bool:
        """Whether the instance or the broker has announced it since this node's link was last restored."""
        return not self.is_cut and self is not PeerState.WITHDRAWN

    @property
    def was_live(self) -> bool:
        """Whether the instance is live or was live before the cut, which gives it more time before it is lost."""
        return self.is_live or self in (PeerState.CUT, PeerState.RETURNING)


_LISTENING = (PeerState.LIVE, PeerState.SUSPECTED)
"""The states of an instance that is known to listen. A constant, because every request looks here."""


class PeerEvent(enum.Enum):
    """What changes the state of an instance."""

    ANNOUNCED = enum.auto()
    """The instance has published its manifest."""
    REMEMBERED = enum.auto()
    """The broker has sent the instance's retained manifest."""
    WITHDRAWN = enum.auto()
    """The instance has withdrawn its manifest."""
    SILENT = enum.auto()
    """The instance has missed heartbeats."""
    LINK_CUT = enum.auto()
    """This node's link was cut."""
    CONFIRMED = enum.auto()
    """The broker has delivered a request to the instance's inbox."""
    UNCONFIRMED = enum.auto()
    """The broker has found nobody at the inbox of an instance that may still be reconnecting."""


def state_after(event: PeerEvent, state: PeerState) -> PeerState:
    """Return the state of an instance after an event."""
    match event, state:
        case PeerEvent.ANNOUNCED, _:
            return PeerState.LIVE
        case PeerEvent.WITHDRAWN, _:
            return PeerState.WITHDRAWN
        case PeerEvent.REMEMBERED, PeerState.SUSPECTED:
            return PeerState.LIVE
        case PeerEvent.REMEMBERED, PeerState.CUT | PeerState.WITHDRAWN:
            return PeerState.RETURNING
        case PeerEvent.REMEMBERED, PeerState.CUT_RETAINED:
            return PeerState.RETAINED
        case PeerEvent.SILENT, PeerState.LIVE:
            return PeerState.SUSPECTED
        case PeerEvent.LINK_CUT, PeerState.LIVE | PeerState.SUSPECTED:
            return PeerState.CUT
        case PeerEvent.LINK_CUT, PeerState.RETAINED | PeerState.CUT | PeerState.RETURNING:
            return PeerState.CUT_RETAINED
        case PeerEvent.CONFIRMED, PeerState.RETAINED | PeerState.RETURNING:
            return PeerState.LIVE
        case PeerEvent.UNCONFIRMED, PeerState.RETURNING:
            return PeerState.CUT
        case _:
            return state


class _Peer:
    """One instance."""

    __slots__ = ("heard_at", "manifest", "payload", "probe", "state")

    def __init__(self, manifest: Manifest, payload: bytes) -> None:
        self.manifest = manifest
        self.payload = payload
        self.heard_at = 0.0
        """When it was last heard of, on the clock's `monotonic` scale."""
        self.state = PeerState.RETAINED
        self.probe = asyncio.Lock()
        """Held by the one request that finds out whether the instance listens."""

    def __repr__(self) -> str:
        return f"{self.manifest.address} [{self.state.name}]"

    def on(self, event: PeerEvent) -> None:
        """Change the state after an event."""
        self.state = state_after(event, self.state)


class Presence:
    """The instances that this node has heard of. Reports every change to the receiver.

    Args:
        heartbeat: The seconds between two announcements of an instance.
        patience: The seconds of silence after which a live instance is lost even without its Will. An instance that was live
            before the broker restarted has this long to return.
    """

    def __init__(self, receiver: Receiver, clock: Clock, heartbeat: float, patience: float) -> None:
        self._receiver = receiver
        self._clock = clock
        self._heartbeat = heartbeat
        self._patience = patience
        self._peers: dict[Address, _Peer] = {}
        self._listening_since = clock.monotonic()
        self._news: dict[str, asyncio.Future[None]] = {}
        """By service, for its requests that wait: done when one of its instances is heard of or lost."""

    def __repr__(self) -> str:
        return f"<Presence {', '.join(map(repr, self._peers.values()))}>"

    # Events

    def heard(self, address: Address, payload: bytes, load: int, *, kept: bool) -> bool:
        """Handle an instance's manifest. An empty one is its withdrawal.

        Args:
            kept: Whether the manifest comes from the broker's memory, so that the instance may be dead.

        Returns:
            Whether the instance was not known before.

        Raises:
            ValueError: if the payload is not a manifest, or is the manifest of another instance.
        """
        peer = self._peers.get(address)
        if not payload:
            if peer is not None and peer.state is not PeerState.WITHDRAWN:
                peer.on(PeerEvent.WITHDRAWN)
                peer.heard_at = self._clock.monotonic()
                self._wake(address.service)
                self._receiver.left(address, lost=False)
            return False
        new = peer is None
        if peer is None or peer.payload != payload:
            manifest = _manifest(payload)
            if manifest.address != address:
                raise ValueError(f"the manifest of {manifest.address} was published under the name of {address}")
            if peer is None:
                peer = self._peers[address] = _Peer(manifest, payload)
            peer.manifest, peer.payload = manifest, payload
        peer.heard_at = self._clock.monotonic()
        peer.on(PeerEvent.REMEMBERED if kept else PeerEvent.ANNOUNCED)
        self._wake(address.service)
        self._receiver.joined(peer.manifest, load)
        if not peer.state.is_live:
            self._receiver.suspected(address)
        return new

    def gone(self, node: str) -> None:
        """Handle the end of a node, by its Will or at the end of an orderly stop: nothing there answers any more."""
        for address in [address for address in self._peers if address.node == node]:
            self._lose(address)

    def cut(self) -> None:
        """Handle the loss of this node's link. The instances may still be alive, but that is no longer known."""
        for address, peer in list(self._peers.items()):
            if peer.state is PeerState.WITHDRAWN:  # its last requests have failed with the link
                del self._peers[address]
                continue
            peer.on(PeerEvent.LINK_CUT)
            self._receiver.suspected(address)

    def restored(self) -> None:
        """Handle the return of this node's link."""
        self._listening_since = self._clock.monotonic()

    def check(self) -> None:
        """Suspect or give up the instances that have been silent. To be called at every heartbeat while the link is up."""
        now = self._clock.monotonic()
        for address, peer in list(self._peers.items()):
            silent = now - max(peer.heard_at, self._listening_since)
            if peer.state is PeerState.WITHDRAWN:
                continue  # it may be busy for long; `gone` follows when its node leaves
            if silent > (self._patience if peer.state.was_live else MISSED * self._heartbeat):
                self._lose(address)
            elif silent > _SUSPECTED * self._heartbeat and peer.state is PeerState.LIVE:
                peer.on(PeerEvent.SILENT)
                self._receiver.suspected(address)

    def _lose(self, address: Address) -> None:
        peer = self._peers.pop(address, None)
        if peer is not None:
            self._wake(address.service)
            self._receiver.left(address, lost=True)

    def _wake(self, service: str) -> None:
        """Have the requests that wait for a service's instance look at its state again."""
        news = self._news.pop(service, None)
        if news is not None:
            news.set_result(None)

    def nodes(self, service: str) -> list[str]:
        """Return the ids of the nodes on which a service has an instance."""
        return [
            address.node
            for address, peer in self._peers.items()
            if address.service == service and peer.state is not PeerState.WITHDRAWN
        ]

    # Questions of a request

    def is_live(self, address: Address) -> bool:
        """Return whether an instance is known to listen, so that the broker does not have to confirm it."""
        peer = self._peers.get(address)
        return peer is not None and peer.state in _LISTENING

    def probe(self, address: Address) -> asyncio.Lock | None:
        """Return the lock for the one request that finds out whether an instance listens; None if the instance is unknown."""
        peer = self._peers.get(address)
        return None if peer is None else peer.probe

    def mark_live(self, address: Address) -> None:
        """Note that the broker has delivered a request to an instance."""
        peer = self._peers.get(address)
        if peer is not None:
            peer.on(PeerEvent.CONFIRMED)
            peer.heard_at = self._clock.monotonic()

    def mark_absent(self, address: Address) -> None:
        """Note that the broker has found nobody at an instance's inbox.

        An instance that was live before the cut may still be reconnecting to the broker. It is not lost yet; the caller waits
        for it with `wait_until_known`. Neither is one that has announced itself meanwhile.

        Raises:
            PeerUnreachable: if the instance is lost.
        """
        peer = self._peers.get(address)
        if peer is not None and peer.state is PeerState.LIVE:
            return
        recently_cut = self._clock.monotonic() - self._listening_since < self._patience
        if peer is not None and peer.state in (PeerState.RETURNING, PeerState.CUT) and recently_cut:
            peer.on(PeerEvent.UNCONFIRMED)
            self._receiver.suspected(address)
            return
        self._lose(address)
        raise PeerUnreachable(f"{address} is not there")

    async def wait_until_known(self, address: Address) -> None:
        """Wait until an instance, or another one of its service, has been heard of since this node's link was cut.

        Raises:
            PeerUnreachable: if the instance is lost, or another one was heard of first.
        """
        peer = self._peers.get(address)
        while peer is not None and peer.state.is_cut:
            if any(other.state.is_present for to, other in self._peers.items() if to.service == address.service):
                raise PeerUnreachable(f"{address} has not been heard of since this node's link was cut, but another instance has")
            await asyncio.shield(self._news.setdefault(address.service, asyncio.get_running_loop().create_future()))
            peer = self._peers.get(address)
            if peer is None:
                raise PeerUnreachable(f"{address} has not come back")


def _manifest(payload: bytes) -> Manifest:
    try:
        return msgspec.json.decode(payload, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"the payload is not a manifest: {error}") from None
