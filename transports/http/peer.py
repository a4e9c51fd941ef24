"""What a node knows about one location of a service, as a state with named transitions."""

import asyncio
import enum

from runtime.network import Manifest
from transports.http.client import Location


class PeerState(enum.Enum):
    """What is known about the instance at one location."""

    UNASKED = enum.auto()
    """The location was not asked yet."""
    ABSENT = enum.auto()
    """There is no instance: nobody answers, or the node there has never had the service."""
    OURSELVES = enum.auto()
    """The location is this node's own."""
    PRESENT = enum.auto()
    """An instance answers."""
    SUSPECTED = enum.auto()
    """The node has not answered the last question in time."""
    WITHDRAWN = enum.auto()
    """The node answers, but its instance has withdrawn."""


_TRANSITIONS: dict[PeerState, tuple[PeerState, ...]] = {
    PeerState.UNASKED: (PeerState.ABSENT, PeerState.OURSELVES, PeerState.PRESENT),
    PeerState.ABSENT: (PeerState.OURSELVES, PeerState.PRESENT),
    PeerState.OURSELVES: (PeerState.ABSENT,),
    PeerState.PRESENT: (PeerState.SUSPECTED, PeerState.WITHDRAWN, PeerState.ABSENT),
    PeerState.SUSPECTED: (PeerState.PRESENT, PeerState.WITHDRAWN, PeerState.ABSENT),
    PeerState.WITHDRAWN: (PeerState.PRESENT, PeerState.SUSPECTED, PeerState.ABSENT),
}


class Peer:
    """One location of a service.

    Attributes:
        node: The node whose instance is `PRESENT`, `SUSPECTED`, or `WITHDRAWN` there; otherwise None.
        manifest: The instance's manifest, unless it has withdrawn.
        version: The version of the manifest.
        heads: The number of heads that the instance has reported.
        asked: Set when the location was asked for the first time.
        asking: The task that asks it.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.node: str | None = None
        self.manifest: Manifest | None = None
        self.version = 0
        self.heads = 0
        self.asked = asyncio.Event()
        self.asking: asyncio.Task[None] | None = None
        self._state = PeerState.UNASKED

    def __repr__(self) -> str:
        return f"{self.node or '-'} at {self.location} [{self._state.name}]"

    @property
    def state(self) -> PeerState:
        return self._state

    def enter(self, state: PeerState) -> None:
        """Change the state."""
        if state is self._state:
            return
        assert state in _TRANSITIONS[self._state], f"a peer that is {self._state.name} cannot become {state.name}"
        self._state = state
        self.asked.set()

    def forget(self) -> None:
        """Forget the instance. This node's own location is still known as such, even if it does not answer."""
        self.node = self.manifest = None
        self.version = self.heads = 0
        if self._state is not PeerState.OURSELVES:
            self.enter(PeerState.ABSENT)
